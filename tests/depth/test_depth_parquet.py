"""Images and depth maps in columns of tables, as written by pyarrow: encoded, in rows, and flat."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray
from PIL import Image

from dinoswap.data.images import CorruptImage, Images
from dinoswap.dense.base import Scene
from dinoswap.depth.parquet import ParquetDepth

HEIGHT, WIDTH = 12, 16


class NoImages(Images):
    labels, classes, blocks = None, None, ()


def image(seed: int) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)


def metres(seed: int) -> NDArray[np.float64]:
    return np.random.default_rng(seed).integers(500, 9000, (HEIGHT, WIDTH)) / 1000


def encoded(pixels: NDArray[Any], form: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format=form)
    return buffer.getvalue()


STORED = {
    "png": lambda seed: {"bytes": encoded((1000 * metres(seed)).round().astype(np.uint16)), "path": None},
    "tiff": lambda seed: encoded((1000 * metres(seed)).astype(np.float32), "TIFF"),
    "rows": lambda seed: (1000 * metres(seed)).tolist(),
    "flat": lambda seed: (1000 * metres(seed)).ravel().tolist(),
}


def write(path: Path, seeds: range, form: str, **others: Any) -> None:
    columns = {
        "image": [{"bytes": encoded(image(seed)), "path": None} for seed in seeds],
        "depth_map": [STORED[form](seed) for seed in seeds],
    }
    pq.write_table(pa.table(columns | others), path, row_group_size=2)


def source(path: Path, **settings: Any) -> ParquetDepth:
    chosen = {"image_column": "image", "depth_column": "depth_map", "scale": 1000.0, "valid": (0.1, 10.0)}
    return ParquetDepth(path=str(path), **(chosen | {"train": 9, "test": 9, "side": 1} | settings))


def scenes(found: ParquetDepth, part: str) -> list[Scene]:
    read = getattr(found.parts(NoImages(), None, HEIGHT, 4), part)
    return [read.load(index) for index in range(len(read))]


@pytest.mark.parametrize("form", STORED)
def test_rows_come_back_in_metres_however_they_are_stored(form: str, tmp_path: Path) -> None:
    write(tmp_path / "train-0.parquet", range(3), form)
    write(tmp_path / "train-1.parquet", range(3, 5), form)
    write(tmp_path / "validation.parquet", range(5, 7), form)
    found = source(tmp_path)
    for part, seeds in (("train", range(5)), ("test", range(5, 7))):
        for seed, scene in zip(seeds, scenes(found, part), strict=True):
            assert np.array_equal(scene.views[0], image(seed)[:, 2:14].transpose(2, 0, 1))
            assert np.allclose(scene.truth, metres(seed)[:, 2:14], atol=1e-6)


def test_what_is_no_depth_map_is_named_by_its_row(tmp_path: Path) -> None:
    write(tmp_path / "train.parquet", range(1), "rows")
    maps = [metres(0).tolist(), [[1.0, 2.0], [3.0]], None]
    columns = {"image": [encoded(image(0))] * 3, "depth_map": pa.array(maps, pa.list_(pa.list_(pa.float64())))}
    pq.write_table(pa.table(columns), tmp_path / "test.parquet")
    read = source(tmp_path).parts(NoImages(), None, HEIGHT, 4).test
    read.load(0)
    for row in (1, 2):
        with pytest.raises(CorruptImage, match=rf"test.parquet#{row}: "):
            read.load(row)


def test_what_is_missing_is_said_at_once(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"path=.*nowhere.*: nothing found"):
        source(tmp_path / "nowhere")
    write(tmp_path / "train.parquet", range(2), "png")
    with pytest.raises(ValueError, match=r"path=.*: 1 files, but none for the test part"):
        source(tmp_path)
    write(tmp_path / "test.parquet", range(2), "png")
    with pytest.raises(
        ValueError, match=r"depth_column=depth: the columns of .*train.parquet are \['image', 'depth_map'\]"
    ):
        source(tmp_path, depth_column="depth")
    (tmp_path / "test.parquet").write_bytes(b"PAR1 cut short")
    with pytest.raises(ValueError, match=r"test.parquet"):
        source(tmp_path)
