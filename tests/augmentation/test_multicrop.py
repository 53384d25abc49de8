"""An augmentation as called, whichever it is: views, clean crops, determinism, unusual images, refused images."""

import warnings
from typing import Any

import numpy as np
import pytest
import torch
from augmentation_reference import photograph
from PIL import Image

from dinoswap.values import Views
from options import build_augmentation

PHOTO = photograph()[:200, :300]
COLOURLESS = {
    "official": dict.fromkeys(("jitter", "grayscale", "global2_blur", "local_blur", "global2_solarize"), 0.0),
    "legacy": dict.fromkeys(("jitter", "grayscale", "global2_solarize"), 0.0),
}
pytestmark = pytest.mark.parametrize("option", COLOURLESS)


def augment(option: str, image: np.ndarray, seed: int = 0, **settings: Any) -> Views:
    settings = {"global_crops_size": 32, "local_crops_size": 16, "local_crops_number": 3, **settings}
    return build_augmentation(option, **settings)(image, np.random.default_rng(seed))


def equal(some: list[torch.Tensor], others: list[torch.Tensor]) -> bool:
    return len(some) == len(others) and all(torch.equal(a, b) for a, b in zip(some, others, strict=True))


def test_shapes(option: str) -> None:
    views = augment(option, PHOTO, global_crops_size=(48, 32), extra_crops=1, clean_sizes=(16, 32))
    assert [tuple(v.shape) for v in views.clean_crops[16]] == [(3, 24, 16)]
    large = [*views.global_crops, *views.extra_crops, *views.clean_crops[32]]
    assert [tuple(v.shape) for v in large] == [(3, 48, 32)] * 4
    assert [tuple(v.shape) for v in views.local_crops] == [(3, 16, 16)] * 3
    assert all(v.dtype == torch.uint8 and v.is_contiguous() for v in [*large, *views.local_crops])
    bare = augment(option, PHOTO, local_crops_number=0)
    assert (len(bare.global_crops), bare.local_crops, bare.extra_crops, bare.clean_crops) == (2, [], [], {})


def test_depends_on_the_generator_alone(option: str) -> None:
    before = PHOTO.copy()
    first, again, other = augment(option, PHOTO, 5), augment(option, PHOTO, 5), augment(option, PHOTO, 6)
    assert equal([*first.global_crops, *first.local_crops], [*again.global_crops, *again.local_crops])
    assert not any(torch.equal(a, b) for a, b in zip(first.global_crops, other.global_crops, strict=True))
    assert (before == PHOTO).all()


@pytest.mark.parametrize("extra", [0, 1])
def test_asking_for_more_views_leaves_the_others(option: str, extra: int) -> None:
    small, full = (
        augment(option, PHOTO, local_crops_number=2),
        augment(option, PHOTO, extra_crops=extra, clean_sizes=(32, 64)),
    )
    assert equal(small.global_crops, full.global_crops)
    assert equal(small.local_crops, full.local_crops[:2])


@pytest.mark.parametrize("extra", [0, 1])
def test_clean_crops_share_the_geometry(option: str, extra: int) -> None:
    settings: dict[str, Any] = {"extra_crops": extra, "clean_sizes": (32,)}
    views, colourless = augment(option, PHOTO, **settings), augment(option, PHOTO, **settings, **COLOURLESS[option])
    carriers = colourless.extra_crops if extra else colourless.global_crops
    assert equal(colourless.clean_crops[32], carriers)
    assert equal(views.clean_crops[32], carriers)
    assert not equal(views.clean_crops[32], views.extra_crops if extra else views.global_crops)


@pytest.mark.parametrize("extra", [0, 1])
def test_clean_crops_of_another_size_are_those_that_views_of_it_have(option: str, extra: int) -> None:
    """With the same draws, at whatever size the views themselves are; the legacy square is given, it follows them."""
    settings: dict[str, Any] = {"extra_crops": extra, **({"resize": 50} if option == "legacy" else {})}
    views = augment(option, PHOTO, **settings, clean_sizes=(24, 32, 64))
    for size in (24, 32, 64):
        own = augment(option, PHOTO, **settings, global_crops_size=size, clean_sizes=(size,))
        assert equal(views.clean_crops[size], own.clean_crops[size])


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (9, 1), (2, 3), (1, 700), (700, 1), (2500, 3300)])
def test_unusual_sizes(option: str, shape: tuple[int, int]) -> None:
    """A flat image of any size stays flat in every view."""
    image = np.full((*shape, 3), (200, 90, 30), np.uint8)
    for seed in range(3):
        views = augment(option, image, seed, extra_crops=1, clean_sizes=(8, 32))
        clean = [*views.clean_crops[8], *views.clean_crops[32]]
        for view in [*views.global_crops, *views.extra_crops, *views.local_crops, *clean]:
            assert (view == view[:, :1, :1]).all()
        assert (views.clean_crops[8][0][:, 0, 0] == torch.tensor([200, 90, 30])).all()


def test_gray_images_stay_gray(option: str) -> None:
    gray = np.repeat(PHOTO[..., :1], 3, axis=2)
    for seed in range(5):
        views = augment(option, gray, seed)
        for view in [*views.global_crops, *views.local_crops]:
            assert (view == view[:1]).all()


def test_read_only_and_strided_images(option: str) -> None:
    mirrored = PHOTO[:, ::-1]
    expected = augment(option, np.ascontiguousarray(mirrored))
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # torch warns where it is given memory that must not be written
        assert equal(augment(option, mirrored).global_crops, expected.global_crops)
        read_only = np.asarray(Image.fromarray(np.ascontiguousarray(mirrored)))
        read_only.flags.writeable = False
        assert equal(augment(option, read_only).global_crops, expected.global_crops)


@pytest.mark.parametrize(
    "image", [np.zeros((8, 8), np.uint8), np.zeros((8, 8, 4), np.uint8), np.zeros((8, 8, 3)), np.zeros((0, 8, 3), "u1")]
)
def test_refused_images(option: str, image: np.ndarray) -> None:
    with pytest.raises(ValueError, match="convert it to RGB"):
        augment(option, image)
