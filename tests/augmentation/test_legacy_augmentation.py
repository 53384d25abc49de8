"""LegacyAugmentation: the square, what it shares with the official augmentation, the blur, refused settings."""

from typing import Any

import numpy as np
import pytest
import torch
from augmentation_reference import differences, photograph, pil_crop, pil_squash

from dinoswap.augmentation import photometric
from dinoswap.augmentation.multicrop import Draw
from options import build_augmentation

PHOTO = photograph()[:200, :300]
OFFICIAL_NUMBERS: dict[str, Any] = {
    "global_crops_scale": (0.32, 1.0),
    "local_crops_scale": (0.05, 0.32),
    "grayscale": 0.2,
    "extra_vertical_flip": 0.0,
    "extra_brightness": 0.4,
    "extra_contrast": 0.4,
    "extra_saturation": 0.2,
    "extra_hue": 0.1,
    "extra_grayscale": 0.2,
}


def pair(seed: int, **settings: Any) -> list[tuple[Draw, Draw]]:
    """(official, legacy) per view, from the same seed and the same square image."""
    shared: dict[str, Any] = {"global_crops_size": 64, "extra_crops": 1, "local_crops_number": 3}
    options = build_augmentation("official", **shared), build_augmentation("legacy", **shared, **settings)
    return list(zip(*(option.draw(np.random.default_rng(seed), 64, 64) for option in options), strict=True))


@pytest.mark.parametrize("size", [(32, 32), (48, 32)])
@pytest.mark.parametrize("resize", [None, 40])
def test_clean_crops_are_cut_from_the_squashed_image(size: tuple[int, int], resize: int | None) -> None:
    multicrop = build_augmentation(
        "legacy", global_crops_size=size, local_crops_size=16, resize=resize, extra_crops=1, clean_sizes=(32, 64)
    )
    drawn = multicrop.draw(np.random.default_rng(0), *PHOTO.shape[:2])
    square = pil_squash(PHOTO, size if resize is None else (resize, resize))
    for width, (clean,) in multicrop.render(PHOTO, drawn).clean_crops.items():
        shape = size[0] * width // size[1], width
        assert differences(clean, pil_crop(square, drawn[2][0], shape)).max() <= 1


def test_draws_do_not_depend_on_the_images_size() -> None:
    multicrop = build_augmentation("legacy", global_crops_size=32, local_crops_size=16)
    small, large = (multicrop.draw(np.random.default_rng(0), *shape) for shape in [(5, 90), (2000, 3000)])
    assert small == large


def test_the_same_numbers_give_the_same_draws() -> None:
    """With the official numbers nothing but the blur and global 2's solarization differs from `official`."""
    for seed in range(50):
        for official, legacy in pair(seed, **OFFICIAL_NUMBERS):
            assert legacy[0] == official[0]
            assert legacy[1].jitter == official[1].jitter
            assert legacy[1].grayscale == official[1].grayscale


def test_the_same_numbers_give_the_same_pixels() -> None:
    """Where official does not blur (global 1, extra), on a square image: squash and weak blur change nothing."""
    shared: dict[str, Any] = {"global_crops_size": 64, "extra_crops": 1, "clean_sizes": (64,)}
    image = np.ascontiguousarray(PHOTO[:64, :64])
    for seed in range(5):
        official = build_augmentation("official", **shared)(image, np.random.default_rng(seed))
        legacy = build_augmentation("legacy", **shared, **OFFICIAL_NUMBERS)(image, np.random.default_rng(seed))
        assert torch.equal(legacy.global_crops[0], official.global_crops[0])
        assert torch.equal(legacy.extra_crops[0], official.extra_crops[0])
        assert torch.equal(legacy.clean_crops[64][0], official.clean_crops[64][0])


def test_draws_shared_with_official() -> None:
    """As they are: the same flips and jitter; gray here is gray there, solarized there is solarized here."""
    gray, solarized = [], []
    for seed in range(400):
        for view, (official, legacy) in enumerate(pair(seed)):
            assert legacy[0].horizontal_flip == official[0].horizontal_flip
            assert [name for name, _ in legacy[1].jitter] == [name for name, _ in official[1].jitter]
            shares = {"brightness": 0.75, "contrast": 0.75, "saturation": 0.75, "hue": 0.5}
            for (name, ours), (_, theirs) in zip(legacy[1].jitter, official[1].jitter, strict=True):
                centre, share = float(name != "hue"), shares[name] if view == 2 else 1
                assert ours - centre == pytest.approx((theirs - centre) * share)
            gray.append((legacy[1].grayscale, official[1].grayscale))
            solarized.append((official[1].solarize_threshold is not None, legacy[1].solarize_threshold is not None))
    for pairs in (gray, solarized):
        assert set(pairs) == {(False, False), (False, True), (True, True)}


@pytest.mark.parametrize("sigma", [0.1, 0.15, 0.2])
def test_the_blur_changes_no_level(sigma: float) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    extremes = np.where(noise < 128, 0, 255).astype(np.uint8)
    for image in (noise, extremes):
        assert not differences(photometric.blur(image, sigma, kernel=3), image).any()


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({"resize": 0}, "resize=0"),
        ({"global_crops_size": 0}, "global_crops_size=0"),
        ({"global_crops_scale": (0.0, 1.0)}, r"global_crops_scale=\(0.0, 1.0\)"),
        ({"local_crops_scale": (0.4, 1.3)}, r"local_crops_scale=\(0.4, 1.3\)"),
        ({"extra_vertical_flip": 1.5}, "extra_vertical_flip=1.5"),
        ({"grayscale": -0.1}, "grayscale=-0.1"),
        ({"global2_solarize": 64}, "global2_solarize=64"),
        ({"extra_saturation": -0.1}, "extra_saturation=-0.1"),
        ({"extra_hue": 0.6}, "extra_hue=0.6"),
    ],
)
def test_refused_settings(settings: dict[str, Any], name: str) -> None:
    with pytest.raises(ValueError, match=f"^{name}: "):
        build_augmentation("legacy", **settings)
