"""`dinoswap-embed` writes the features of every image, goes on after an interruption, and never mixes."""

import contextlib
import errno
import io
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

import dinoswap
from dinoswap import embed
from dinoswap.evaluation import visualise
from dinoswap.evaluation.features import clean_crop
from ranks import launched
from run_folders import write_run

SIZE, IMAGES = 32, 21


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("embed") / "run"
    write_run(folder)
    return folder


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Train images of two classes, one of which cannot be decoded, in files of eight."""
    monkeypatch.setattr(embed, "PART", 8)
    draws = np.random.default_rng(0)
    for place in range(IMAGES):
        path = tmp_path / "images" / "ab"[place % 2] / f"{place:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draws.integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)).save(path)
    broken = tmp_path / "images" / "b" / "03.png"
    broken.write_bytes(broken.read_bytes()[:60])
    settings = ["evaluation.batch_size=5", "trainer.precision=fp32"]
    return ["data=image_folder", f"data.path={tmp_path / 'images'}", *settings]


def frame(out: Path) -> pd.DataFrame:
    return pd.concat([pd.read_parquet(path) for path in sorted(out.glob("train-*.parquet"))], ignore_index=True)


def test_features_are_those_of_the_backbone(run: Path, data: list[str], tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert embed.main([str(run), *data, "--features", "cls", "patch_mean", "patch", "-o", str(out)]) == 0
    assert len(list(out.glob("train-*.parquet"))) == 3
    found, patches = frame(out), np.load(out / "train-patch.npy", mmap_mode="r")
    assert len(found) == IMAGES - 1
    assert patches.shape == (IMAGES, 16, 32)
    backbone = dinoswap.load_backbone(run)
    for _, entry in found.iterrows():
        path = tmp_path / "images" / entry["name"]
        assert entry["label"] == "ab".index(path.parent.name)
        pixels = torch.from_numpy(clean_crop(np.asarray(Image.open(path)), SIZE, SIZE).copy()).permute(2, 0, 1)
        mean, std = (torch.tensor(backbone.config[key])[:, None, None] for key in ("mean", "std"))
        with torch.no_grad():
            tokens = backbone(((pixels / 255 - mean) / std)[None])
        assert tokens.patch is not None
        np.testing.assert_allclose(entry["cls"], tokens.cls[0], atol=1e-5)
        np.testing.assert_allclose(entry["patch_mean"], tokens.patch[0].mean(0), atol=1e-5)
        np.testing.assert_allclose(patches[entry["row"]], tokens.patch[0], atol=1e-5)
    (missing,) = set(range(IMAGES)) - set(found["row"])
    assert not patches[missing].any()


def test_it_goes_on_where_it_was_interrupted(
    run: Path, data: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = [str(run), *data, "--features", "cls", "patch"]
    assert embed.main([*arguments, "-o", str(tmp_path / "whole")]) == 0
    written: list[Path] = []

    def interrupted(path: Path, content: Any) -> None:
        if sum(file.suffix == ".parquet" for file in written) == 2:
            raise KeyboardInterrupt
        written.append(path)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())

    out = tmp_path / "out"
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(embed, "write_atomically", interrupted)
        embed.main([*arguments, "-o", str(out)])
    before = {path: path.stat().st_mtime_ns for path in out.glob("train-*.parquet")}
    assert len(before) == 2
    assert embed.main([*arguments, "-o", str(out)]) == 0
    assert all(path.stat().st_mtime_ns == time for path, time in before.items())
    pd.testing.assert_frame_equal(frame(out), frame(tmp_path / "whole"))
    first, second = (np.load(folder / "train-patch.npy") for folder in (out, tmp_path / "whole"))
    np.testing.assert_array_equal(first, second)


def test_the_nearest_images_of_a_query_are_drawn(
    run: Path, data: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Against all similarities at once. The first query is image 12 of the set; the other is a new one."""
    known, new, out = tmp_path / "images" / "a" / "12.png", tmp_path / "new.jpg", tmp_path / "out"
    Image.fromarray(np.random.default_rng(1).integers(0, 256, (40, 50, 3), dtype=np.uint8)).save(new)
    drawn, figure = [], visualise.neighbours_figure

    def noted(rows: Any) -> visualise.Picture:
        drawn.append(rows)
        return figure(rows)

    monkeypatch.setattr(visualise, "neighbours_figure", noted)
    arguments = [str(run), *data, "-o", str(out), "--query", str(known), str(new), "--neighbours", "3"]
    assert embed.main(arguments) == 0
    assert Image.open(out / "neighbours.png").size
    rows, found = drawn[0], frame(out)
    memory = np.stack(found["cls"])
    memory /= np.linalg.norm(memory, axis=1, keepdims=True)
    backbone = dinoswap.load_backbone(run)
    for path, row in zip((known, new), rows, strict=True):
        assert row[0][1] == ["by cls", path.name]
        pixels = torch.from_numpy(clean_crop(np.asarray(Image.open(path)), SIZE, SIZE).copy()).permute(2, 0, 1)
        mean, std = (torch.tensor(backbone.config[key])[:, None, None] for key in ("mean", "std"))
        with torch.no_grad():
            vector = backbone(((pixels / 255 - mean) / std)[None]).cls[0].numpy()
        similarity = memory @ vector / np.linalg.norm(vector)
        nearest = np.argsort(-similarity)[:3]
        names = [found["name"][place] for place in nearest]
        assert [text[1] for _, text in row[1:]] == names
        expected = [f"{similarity[place]:.3f}  {'ab'[found['label'][place]]}" for place in nearest]
        assert [text[0] for _, text in row[1:]] == expected
        for (crop, _), name in zip(row[1:], names, strict=True):
            assert np.array_equal(crop, np.asarray(Image.open(tmp_path / "images" / name)))
    assert rows[0][1][1] == ["1.000  a", str(known)]
    capsys.readouterr()
    for wrong, message in (
        (["--query", str(tmp_path / "none.png")], "none.png: No such file or directory; give image files"),
        (["--query", str(out / "embedding.json")], "embedding.json: not an image in a format that PIL decodes"),
        (["--query", str(new), "--features", "patch"], "compared by cls or patch_mean; add one of them to --features"),
        (["--query", str(new), "--neighbours", "0"], "--neighbours 0: at least one has to be shown"),
        (["data.mean=[0.5,0.5,0.5]", "--query", str(new)], "has features of other mean"),
    ):
        assert embed.main([str(run), *data, "-o", str(out), *wrong]) == 2
        assert message in capsys.readouterr().err


def embedded(part: int, threads: int, arguments: list[str], rank: int) -> int:
    torch.set_num_threads(threads)  # matrices are added up in another order with others
    embed.PART = part
    return embed.main(arguments)


def test_two_ranks_write_the_files_of_one(run: Path, data: list[str], tmp_path: Path) -> None:
    """Bit for bit, also those that one process has left."""
    arguments = [str(run), *data, "--features", "cls", "patch"]
    assert embed.main([*arguments, "-o", str(tmp_path / "one")]) == 0
    out = tmp_path / "two"
    shutil.copytree(tmp_path / "one", out)
    (out / "train-000000.parquet").unlink()
    (out / "train-000002.parquet").unlink()
    patches = np.lib.format.open_memmap(out / "train-patch.npy", "r+")
    patches[:8] = patches[16:] = 0
    patches.flush()
    before = (out / "train-000001.parquet").stat().st_mtime_ns
    assert launched(partial(embedded, 8, torch.get_num_threads(), [*arguments, "-o", str(out)]), tmp_path) == [0, 0]
    assert (out / "train-000001.parquet").stat().st_mtime_ns == before
    files = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert sorted(path.name for path in out.iterdir()) == files
    for name in files:
        assert (out / name).read_bytes() == (tmp_path / "one" / name).read_bytes(), name


def broken_on(number: int, part: int, arguments: list[str], rank: int) -> tuple[int, str]:
    """The exit status and what was printed, where one rank cannot write."""
    if rank == number:

        def refuses(path: Path, content: Any) -> None:
            raise OSError(errno.ENOSPC, "No space left on device", str(path))

        embed.write_atomically = refuses
    with contextlib.redirect_stderr(io.StringIO()) as printed:
        return embedded(part, 1, arguments, rank), printed.getvalue().splitlines()[-1]


def test_the_failure_of_one_rank_ends_all_with_its_reason(run: Path, data: list[str], tmp_path: Path) -> None:
    work = partial(broken_on, 1, 8, [str(run), *data, "-o", str(tmp_path / "out")])
    (status, first), (other_status, second) = launched(work, tmp_path)
    assert status == other_status == 1
    assert "rank 1: OSError" in first
    assert "No space left on device" in first
    assert "No space left on device" in second


def test_features_of_something_else_are_not_mixed_in(
    run: Path, data: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = ["-o", str(tmp_path / "out")]
    assert embed.main([str(run), *data, *out]) == 0
    assert embed.main([str(run), "--network", "student", *data, *out]) == 2
    assert "has features of other weights; give another folder" in capsys.readouterr().err
    assert embed.main([str(run), *data, "data.mean=[0.5,0.5,0.5]", *out]) == 2
    assert "has features of other mean" in capsys.readouterr().err
    assert embed.main([str(run), *data, *out]) == 0  # has nothing to do


def test_help_fits_a_screen() -> None:
    lines = embed.parser().format_help().splitlines()
    assert len(lines) <= 26
    assert max(map(len, lines)) <= 88
