"""Annotated images in the layouts in which data sets ship, written as real files and read back."""

import io
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from numpy.typing import NDArray
from PIL import Image
from pyarrow import parquet

from dinoswap.data.images import CorruptImage, Images
from dinoswap.dense.annotated import read_map
from dinoswap.dense.base import AnnotatedParts
from dinoswap.dense.folder import AnnotatedFolder
from dinoswap.dense.parquet import AnnotatedParquet

VALUES = np.array([[0, 0, 1, 1, 7], [2, 2, 255, 255, 7], [2, 2, 150, 19, 7]], dtype=np.uint8)


def write(path: Path, image: NDArray[np.uint8], palette: bool = False) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    made = Image.fromarray(image)
    if palette:
        made = made.convert("P") if image.ndim == 3 else Image.fromarray(image, mode="P")
        made.putpalette(np.arange(768) % 256)
    made.save(path, quality=95)


def photo(level: int) -> NDArray[np.uint8]:
    """Three rows, five columns, dark on the left."""
    return (
        np.full((3, 5, 3), [[[level]], [[level]], [[level]]], dtype=np.uint8)
        + np.arange(5, dtype=np.uint8)[:, None] * 20
    )


def ade20k(root: Path) -> None:
    for part, level in (("training", 10), ("validation", 90)):
        for number in range(3):
            write(root / "images" / part / f"ADE_{number}.jpg", photo(level + number))
            write(root / "annotations" / part / f"ADE_{number}.png", VALUES)


def voc(root: Path) -> None:
    for number in range(6):
        write(root / "JPEGImages" / f"2007_{number}.jpg", photo(10 if number < 3 else 90))
        if number != 5:  # not all images of VOC are annotated
            write(root / "SegmentationClass" / f"2007_{number}.png", VALUES, palette=True)
    lists = root / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("2007_0\n2007_1\n2007_2\n")
    (lists / "val.txt").write_text("2007_3\n2007_4\n")


def cityscapes(root: Path) -> None:
    for part, level in (("train", 10), ("val", 90)):
        for city in ("aachen", "bonn"):
            write(root / "leftImg8bit" / part / city / f"{city}_0_leftImg8bit.png", photo(level))
            write(root / "gtFine" / part / city / f"{city}_0_gtFine_labelIds.png", VALUES)
            write(root / "gtFine" / part / city / f"{city}_0_gtFine_color.png", photo(0))


def own(root: Path) -> None:
    for part, level in (("train", 10), ("val", 90)):
        for number in range(2):
            write(root / "images" / part / "a" / f"{number}.png", photo(level))
            write(root / "annotations" / part / "a" / f"{number}.png", VALUES)


EXPECTED: Mapping[Callable[[Path], None], tuple[int, int, int, list[list[int]]]] = {  # train, test, classes, truth
    ade20k: (3, 3, 150, [[-1, -1, 0, 0, 6], [1, 1, -1, -1, 6], [1, 1, 149, 18, 6]]),
    voc: (3, 2, 21, [[0, 0, 1, 1, 7], [2, 2, -1, -1, 7], [2, 2, -1, 19, 7]]),
    cityscapes: (2, 2, 19, [[-1, -1, -1, -1, 0], [-1, -1, -1, -1, 0], [-1, -1, -1, 6, 0]]),
}


def read(root: Path, **settings: Any) -> AnnotatedParts:
    whole = {"size": 32, "classes": None, "train": None, "test": None} | settings
    return AnnotatedFolder(path=str(root), **whole).parts(None, None, 64, 8)  # type: ignore[arg-type]


@pytest.mark.parametrize("layout", EXPECTED, ids=lambda layout: layout.__name__)
def test_a_data_set_as_it_ships(tmp_path: Path, layout: Callable[[Path], None]) -> None:
    layout(tmp_path)
    parts, (train, test, classes, truth) = read(tmp_path), EXPECTED[layout]
    assert (len(parts.train), len(parts.test), len(parts.classes)) == (train, test, classes)
    for part, level in ((parts.train, 10), (parts.test, 90)):
        scene = part.load(1)
        assert scene.truth.tolist() == truth
        assert scene.views.shape == (1, 3, 32, 32) == (1, *scene.views.shape[1:])
        left, right = scene.views[0, :, :, :3].mean(), scene.views[0, :, :, -3:].mean()
        assert abs(left - level) < 12
        assert right > left + 50, "the whole image, squashed"


def test_names_of_ade20k_are_read_where_they_are(tmp_path: Path) -> None:
    ade20k(tmp_path)
    table = "Idx\tRatio\tTrain\tVal\tStuff\tName\n" + "".join(
        f"{n}\t0\t1\t1\t0\tthing {n}, other\n" for n in range(1, 151)
    )
    (tmp_path / "objectInfo150.txt").write_text(table)
    assert read(tmp_path).classes[:2] == ["thing 1", "thing 2"]


def test_ones_own_needs_the_number_of_classes(tmp_path: Path) -> None:
    own(tmp_path)
    with pytest.raises(ValueError, match=r"evaluation.dense.classes=null: .* does not tell how many"):
        read(tmp_path)
    parts = read(tmp_path, classes=3, train=1)
    assert (len(parts.train), len(parts.test)) == (1, 2)
    assert parts.test.load(0).truth.tolist() == [[0, 0, 1, 1, -1], [2, 2, -1, -1, -1], [2, 2, -1, -1, -1]]


def test_what_does_not_fit_is_told(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="has none of the folders of a layout that is known: images and annotations"):
        read(tmp_path)
    with pytest.raises(ValueError, match="is no folder"):
        read(tmp_path / "missing")
    own(tmp_path)
    with pytest.raises(ValueError, match=r"evaluation.dense.size=30: .* a patch's side, 8, as 24 is"):
        read(tmp_path, size=30, classes=3)
    assert read(tmp_path, size=None, classes=3).train.shape == (1, 64, 64), "as whole images"
    with pytest.raises(ValueError, match=r"evaluation.dense.train=0"):
        read(tmp_path, train=0, classes=3)
    (tmp_path / "annotations" / "val" / "a" / "0.png").unlink()
    write(tmp_path / "annotations" / "val" / "a" / "1.png", VALUES[:2])
    parts = read(tmp_path, classes=3)
    with pytest.raises(CorruptImage, match="No such file"):
        parts.test.load(0)
    with pytest.raises(CorruptImage, match="an image of 5 x 3 pixels with an annotation of 5 x 2"):
        parts.test.load(1)


def encoded(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()


def test_maps_of_sixteen_bits_and_maps_in_colour() -> None:
    wide = np.array([[0, 300], [65535, 2]], dtype=np.uint16)
    assert read_map(encoded(Image.fromarray(wide)), "x").tolist() == wide.tolist()
    with pytest.raises(CorruptImage, match="an annotation of mode RGB: a palette or one grey channel is needed"):
        read_map(encoded(Image.new("RGB", (2, 2))), "x")
    with pytest.raises(CorruptImage):
        read_map(b"no image", "x")


def test_parquet_with_a_column_of_masks(tmp_path: Path) -> None:
    for name, level in (("train-00000-of-00001", 10), ("validation-00000", 90)):
        rows = [
            {
                "picture": {"bytes": encoded(Image.fromarray(photo(level + number))), "path": None},
                "mask": {"bytes": encoded(Image.fromarray(VALUES)), "path": None},
            }
            for number in range(5)
        ]
        parquet.write_table(pa.Table.from_pylist(rows), tmp_path / f"{name}.parquet", row_group_size=2)

    def source(**changed: Any) -> AnnotatedParquet:
        settings = {"image_column": "picture", "mask_column": "mask", "size": 32, "first_class": 1, "classes": 2}
        return AnnotatedParquet(path=str(tmp_path), **settings | {"train": None, "test": None} | changed)

    images: Images = None  # type: ignore[assignment]
    parts = source().parts(images, None, 64, 8)
    assert (len(parts.train), len(parts.test), parts.classes) == (5, 5, ["0", "1"])
    for index in (4, 0, 3):
        scene = parts.test.load(index)
        assert scene.truth.tolist() == [[-1, -1, 0, 0, -1], [1, 1, -1, -1, -1], [1, 1, -1, -1, -1]]
        assert abs(scene.views[0, :, :, 0].mean() - 90 - index) < 3
    assert len(source(test=2).parts(images, None, 64, 8).test) == 2
    with pytest.raises(ValueError, match="has no column masks; it has picture, mask"):
        source(mask_column="masks").parts(images, None, 64, 8)
    with pytest.raises(ValueError, match=r"classes=1: must be at least 2"):
        source(classes=1)
