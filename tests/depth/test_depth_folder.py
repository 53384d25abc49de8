"""Images and depth maps in folders, as written by PIL and NumPy, and what is said of folders that lack something."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from dinoswap.config.command_line import check_arguments, compose_config
from dinoswap.config.measured import build_metrics
from dinoswap.config.schema import ConfigError
from dinoswap.data.images import CorruptImage, Images
from dinoswap.dense.base import Scene
from dinoswap.depth.folder import FolderDepth
from dinoswap.evaluate import with_overrides
from dinoswap.files.pictures import Picture
from dinoswap.metric.depth import Depth


def noise(height: int, width: int, seed: int) -> Picture:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def write(root: Path, name: str, image: Picture, depth: NDArray[Any] | None, suffix: str = ".png") -> None:
    """Images as PNG, so that pixels come back as they are; depth maps as 16-bit PNG or as .npy."""
    (root / "images" / name).parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(root / "images" / f"{name}.png")
    if depth is not None:
        (root / "depth" / name).parent.mkdir(parents=True, exist_ok=True)
        path = root / "depth" / f"{name}{suffix}"
        if suffix == ".npy":
            np.save(path, depth)
        else:
            Image.fromarray(depth).save(path)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for part, count in (("train", 3), ("test", 2)):
        for number in range(count):
            depth = np.random.default_rng(number).integers(0, 12_000, (24, 32), dtype=np.uint16)
            write(tmp_path, f"{part}/scene/{number}", noise(24, 32, number), depth)
    return tmp_path


def source(root: Path, **settings: Any) -> FolderDepth:
    chosen = {"scale": 1000.0, "valid": (0.5, 10.0), "train": 10, "test": 10, "side": 2} | settings
    return FolderDepth(path=str(root), **chosen)


class NoImages(Images):
    labels, classes, blocks = None, None, ()


def scenes(depth: FolderDepth, part: str = "train", size: int = 12) -> list[Scene]:
    read = getattr(depth.parts(NoImages(), None, size, 4), part)
    return [read.load(index) for index in range(len(read))]


def test_16_bit_png_come_back_in_metres(root: Path) -> None:
    for part, count in (("train", 3), ("test", 2)):
        found = scenes(source(root), part)
        assert len(found) == count
        for number, scene in enumerate(found):
            stored = np.random.default_rng(number).integers(0, 12_000, (24, 32), dtype=np.uint16)[:, 4:28]
            outside = (stored < 500) | (stored > 10_000)
            assert np.isnan(scene.truth[outside]).all() and 0 < outside.mean() < 0.5
            assert np.allclose(scene.truth[~outside], stored[~outside] / 1000)
            assert scene.truth.dtype == np.float32
            middle = noise(24, 32, number)[:, 4:28].transpose(2, 0, 1)
            assert np.array_equal(scene.views, middle[None]), "24 pixels high, and read at 2 times 12"


def test_arrays_are_read_and_may_be_larger_than_their_image(tmp_path: Path) -> None:
    depth = np.linspace(0.1, 5, 48 * 40, dtype=np.float64).reshape(1, 48, 40)
    depth[0, 20, 20] = np.nan
    for part in ("train", "test"):
        write(tmp_path, f"{part}/a", noise(24, 20, 0), depth, ".npy")
    (scene,) = scenes(source(tmp_path, scale=1.0, valid=(0.2, 80.0)))
    middle = depth[0, 4:44]
    known = np.isfinite(middle) & (middle >= 0.2)
    assert scene.views.shape == (1, 3, 24, 24)
    assert scene.truth.shape == (40, 40)
    assert np.array_equal(np.isfinite(scene.truth), known)
    assert np.allclose(scene.truth[known], middle[known])


def test_at_most_so_many_are_read_and_always_the_same(root: Path) -> None:
    some, again = (scenes(source(root, train=2)) for _ in range(2))
    assert len(some) == 2
    assert all(np.array_equal(one.views, other.views) for one, other in zip(some, again, strict=True))


def test_what_is_missing_is_said_at_once(root: Path, tmp_path: Path) -> None:
    (root / "depth/train/scene/1.png").rename(tmp_path / "away.png")
    with pytest.raises(ValueError, match=r"path=.*: 1 files of the train part .*images/train/scene/1 is not in"):
        source(root)
    (tmp_path / "away.png").rename(root / "depth/train/scene/1.png")
    write(root, "test/scene/0", noise(4, 4, 0), np.ones((4, 4)), ".npy")
    with pytest.raises(ValueError, match=r"depth/test/scene/0 is there twice, as 0.npy and 0.png"):
        source(root)
    (root / "images" / "test").rename(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match=r"path=.*: has no folder images/test; it holds images/train"):
        source(root)
    (root / "images" / "test").mkdir()
    with pytest.raises(ValueError, match="images/test holds no file with one of"):
        source(root)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"scale": 0.0}, "scale=0.0"),
        ({"valid": (0.0, 10.0)}, r"valid=\[0.0, 10.0\]"),
        ({"valid": (3.0, 2.0)}, r"valid=\[3.0, 2.0\]"),
        ({"test": 0}, "test=0: must be at least 1"),
    ],
)
def test_wrong_settings_are_refused(root: Path, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        source(root, **settings)


@pytest.mark.parametrize(
    ("depth", "suffix", "reason"),
    [
        (noise(24, 32, 0), ".png", "mode RGB, where a depth map is gray"),
        (np.zeros((24, 32, 3)), ".npy", r"float64 \[24, 32, 3\], where"),
        (np.array([["a", "b"]]), ".npy", "where a depth map is"),
        (np.ones((24, 24)), ".npy", "a depth map of 24 x 24 for an image of 32 x 24 pixels"),
    ],
)
def test_what_is_no_depth_map_is_a_corrupt_image(root: Path, depth: Any, suffix: str, reason: str) -> None:
    (root / "depth/test/scene/0.png").unlink()
    write(root, "test/scene/0", noise(24, 32, 0), depth, suffix)
    read = source(root).parts(NoImages(), None, 12, 4).test
    with pytest.raises(CorruptImage, match=reason):
        read.load(0)
    (root / f"depth/test/scene/0{suffix}").write_bytes(b"\x93NUMPY or not")
    with pytest.raises(CorruptImage):
        read.load(0)
    read.load(1)


# --- on the command line ----------------------------------------------------------------------------------------------


def test_an_evaluation_of_any_run_may_read_a_folder(root: Path) -> None:
    named = root.rename(root.with_name("NYU (v2)"))
    typed = ["metric=[knn,depth]", "depth=folder", f"evaluation.depth.path={named}", "evaluation.depth.scale=500"]
    family = build_metrics(with_overrides(compose_config(["recipe=smoke"]), typed))["depth"]
    assert isinstance(family, Depth)
    assert np.nanmax(scenes(family.depth)[0].truth) <= 10  # type: ignore[arg-type]
    assert family.depth.scale == 500  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["evaluation.depth.path=/none"], "evaluation.depth.path=/none: has no folder images/train"),
        (["evaluation.depth.path=/none", "evaluation.depth.valid=[2,1]"], r"evaluation.depth.valid=\[2.0, 1.0\]"),
        ([], "evaluation.depth.path: has to be given"),
    ],
)
def test_a_run_is_refused_before_it_begins(arguments: list[str], message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        check_arguments(["recipe=smoke", "metric=[knn,depth]", "depth=folder", f"results_dir={tmp_path}", *arguments])
