"""OfficialAugmentation as called: views, clean crops, determinism, unusual images, refusals, speed."""

import runpy
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from augmentation_reference import differences, photograph, pil_crop
from PIL import Image

from dinoswap.augmentation.official import OfficialAugmentation
from dinoswap.values import Views

TOOL = Path(__file__).parents[2] / "tools" / "benchmark_augmentation.py"
PHOTO = photograph()[:200, :300]
COLOURLESS = {"jitter": 0.0, "grayscale": 0.0, "global2_blur": 0.0, "local_blur": 0.0, "global2_solarize": 0.0}


def augment(image: np.ndarray, seed: int = 0, **settings: Any) -> Views:
    settings = {"global_crops_size": 32, "local_crops_size": 16, "local_crops_number": 3, **settings}
    return OfficialAugmentation(**settings)(image, np.random.default_rng(seed))


def equal(some: list[torch.Tensor], others: list[torch.Tensor]) -> bool:
    return len(some) == len(others) and all(torch.equal(a, b) for a, b in zip(some, others, strict=True))


def test_shapes() -> None:
    views = augment(PHOTO, global_crops_size=(48, 32), extra_crops=1, clean_crops=True)
    large = [*views.global_crops, *views.extra_crops, *views.clean_crops]
    assert [tuple(v.shape) for v in large] == [(3, 48, 32)] * 4
    assert [tuple(v.shape) for v in views.local_crops] == [(3, 16, 16)] * 3
    assert all(v.dtype == torch.uint8 and v.is_contiguous() for v in [*large, *views.local_crops])
    bare = augment(PHOTO, local_crops_number=0)
    assert (len(bare.global_crops), bare.local_crops, bare.extra_crops, bare.clean_crops) == (2, [], [], [])


def test_depends_on_the_generator_alone() -> None:
    before = PHOTO.copy()
    first, again, other = augment(PHOTO, 5), augment(PHOTO, 5), augment(PHOTO, 6)
    assert equal([*first.global_crops, *first.local_crops], [*again.global_crops, *again.local_crops])
    assert not any(torch.equal(a, b) for a, b in zip(first.global_crops, other.global_crops, strict=True))
    assert (before == PHOTO).all()


@pytest.mark.parametrize("extra", [0, 1])
def test_asking_for_more_views_leaves_the_others(extra: int) -> None:
    small, full = augment(PHOTO, local_crops_number=2), augment(PHOTO, extra_crops=extra, clean_crops=True)
    assert equal(small.global_crops, full.global_crops)
    assert equal(small.local_crops, full.local_crops[:2])


@pytest.mark.parametrize("extra", [0, 1])
def test_clean_crops_share_the_geometry(extra: int) -> None:
    settings: dict[str, Any] = {"extra_crops": extra, "clean_crops": True}
    views, colourless = augment(PHOTO, **settings), augment(PHOTO, **settings, **COLOURLESS)
    carriers = colourless.extra_crops if extra else colourless.global_crops
    assert equal(colourless.clean_crops, carriers)
    assert equal(views.clean_crops, carriers)
    assert not equal(views.clean_crops, views.extra_crops if extra else views.global_crops)


def test_clean_crops_are_the_pixels_of_the_image() -> None:
    multicrop = OfficialAugmentation(32, 16, clean_crops=True)
    drawn = multicrop.draw(np.random.default_rng(0), *PHOTO.shape[:2])
    for clean, (crop, _) in zip(multicrop.render(PHOTO, drawn).clean_crops, drawn, strict=False):
        assert differences(clean.permute(1, 2, 0).numpy(), pil_crop(PHOTO, crop, (32, 32))).max() <= 1


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (9, 1), (2, 3), (1, 700), (700, 1), (2500, 3300)])
def test_unusual_sizes(shape: tuple[int, int]) -> None:
    """A flat image of any size stays flat in every view."""
    image = np.full((*shape, 3), (200, 90, 30), np.uint8)
    for seed in range(3):
        views = augment(image, seed, extra_crops=1, clean_crops=True)
        for view in [*views.global_crops, *views.extra_crops, *views.local_crops, *views.clean_crops]:
            assert (view == view[:, :1, :1]).all()
        assert (views.clean_crops[0][:, 0, 0] == torch.tensor([200, 90, 30])).all()


def test_gray_images_stay_gray() -> None:
    gray = np.repeat(PHOTO[..., :1], 3, axis=2)
    for seed in range(5):
        views = augment(gray, seed)
        for view in [*views.global_crops, *views.local_crops]:
            assert (view == view[:1]).all()


def test_read_only_and_strided_images() -> None:
    mirrored = PHOTO[:, ::-1]
    expected = augment(np.ascontiguousarray(mirrored))
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # torch warns where it is given memory that must not be written
        assert equal(augment(mirrored).global_crops, expected.global_crops)
        read_only = np.asarray(Image.fromarray(np.ascontiguousarray(mirrored)))
        read_only.flags.writeable = False
        assert equal(augment(read_only).global_crops, expected.global_crops)


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({"global_crops_size": 0}, "global_crops_size=0"),
        ({"local_crops_size": (16, -1)}, r"local_crops_size=\(16, -1\)"),
        ({"local_crops_number": -1}, "local_crops_number=-1"),
        ({"extra_crops": 2}, "extra_crops=2"),
        ({"global_crops_scale": (0.0, 1.0)}, r"global_crops_scale=\(0.0, 1.0\)"),
        ({"local_crops_scale": (0.4, 0.3)}, r"local_crops_scale=\(0.4, 0.3\)"),
        ({"local_crops_scale": (0.4, 1.3)}, r"local_crops_scale=\(0.4, 1.3\)"),
        ({"horizontal_flip": 1.5}, "horizontal_flip=1.5"),
        ({"global2_blur": -0.1}, "global2_blur=-0.1"),
        ({"hue": 0.6}, "hue=0.6"),
        ({"brightness": float("nan")}, "brightness=nan"),
    ],
)
def test_refused_settings(settings: dict[str, Any], name: str) -> None:
    with pytest.raises(ValueError, match=f"^{name}: "):
        OfficialAugmentation(**settings)


@pytest.mark.parametrize(
    "image", [np.zeros((8, 8), np.uint8), np.zeros((8, 8, 4), np.uint8), np.zeros((8, 8, 3)), np.zeros((0, 8, 3), "u1")]
)
def test_refused_images(image: np.ndarray) -> None:
    with pytest.raises(ValueError, match="convert it to RGB"):
        augment(image)


@pytest.fixture
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_speed(one_thread: None) -> None:
    """A guard, far below what is measured on a quiet machine (10 times the PIL pipeline at 32 px, 7 at 224)."""
    measure = runpy.run_path(str(TOOL))["measure"]
    assert measure("32", rounds=3)["ratio"] >= 3
