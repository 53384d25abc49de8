"""Photometric changes that are made to a whole batch on its device are those that OpenCV makes to each crop."""

from dataclasses import replace
from itertools import permutations
from typing import Any

import numpy as np
import pytest
import torch
from augmentation_reference import photograph
from torch import Tensor

from dinoswap.augmentation import photometric
from dinoswap.augmentation.photometric import Photometry, RandomPhotometry
from dinoswap.data.steps import collate
from dinoswap.photometry import changed
from dinoswap.values import Batch
from options import build_augmentation
from waits import DEVICE, no_waits

PHOTO = np.ascontiguousarray(photograph()[:96, :80])
NOISE = np.random.default_rng(0).integers(0, 256, PHOTO.shape, dtype=np.uint8)
FACTORS = {"brightness": (0.0, 0.7, 1.4), "contrast": (0.0, 0.6, 1.3), "saturation": (0.0, 0.8, 1.2)}
OPERATIONS = {
    "none": [Photometry()],
    **{name: [Photometry(((name, factor),)) for factor in factors] for name, factors in FACTORS.items()},
    "hue": [Photometry((("hue", turns),)) for turns in np.linspace(-0.5, 0.5, 11)],
    "gray": [Photometry(grayscale=True)],
    "blur": [Photometry(blur_sigma=sigma, blur_kernel=kernel) for sigma in (0.1, 0.6, 2.0) for kernel in (3, 9)],
    "solarize": [Photometry(solarize_threshold=threshold) for threshold in (0, 64, 128, 255)],
    "order": [
        Photometry(tuple(order))
        for order in permutations([("brightness", 1.3), ("contrast", 0.7), ("saturation", 1.2), ("hue", 0.0)])
    ],
}
RECIPE = RandomPhotometry(0.8, 0.4, 0.4, 0.2, 0.1, 0.2, blur=0.5, solarize=0.2)
ALL_COLOURS = np.stack(np.meshgrid(*[np.arange(0, 256, 15)] * 3, indexing="ij"), -1).reshape(54, -1, 3).astype(np.uint8)


def differences(changes: list[Photometry], image: np.ndarray) -> Tensor:
    """In levels, from what OpenCV makes of `image`, of crops [2, B] in one batch."""
    expected = torch.from_numpy(np.stack([photometric.apply(image, one) for one in changes])).permute(0, 3, 1, 2)
    pixels = torch.from_numpy(image).permute(2, 0, 1).expand(2, len(changes), 3, -1, -1)
    found = changed(pixels, torch.stack([one.numbers() for one in changes]).expand(2, -1, -1))
    assert found.dtype == torch.float32
    return (found - expected).abs()


def drawn(recipe: RandomPhotometry) -> list[Photometry]:
    return [recipe.draw(row) for row in np.random.default_rng(0).random((64, photometric.UNIFORMS)).tolist()]


@pytest.mark.parametrize("operation", OPERATIONS)
def test_an_operation_is_that_of_opencv(operation: str) -> None:
    for image in (PHOTO, NOISE, ALL_COLOURS):
        levels = differences(OPERATIONS[operation], image)
        assert levels.max() <= (operation == "blur")
        assert levels.mean() <= 1e-3


@pytest.mark.parametrize(("recipe", "largest"), [(RECIPE, 1), (replace(RECIPE, blur=0.0), 0)])
def test_all_of_them_together_are_those_of_opencv(recipe: RandomPhotometry, largest: int) -> None:
    for image in (PHOTO, NOISE, ALL_COLOURS):
        levels = differences(drawn(recipe), image)
        assert levels.max() <= largest
        assert levels.mean() <= 1e-3


def test_the_host_waits_for_nothing() -> None:
    numbers = torch.stack([RECIPE.draw([0.1] * photometric.UNIFORMS).numbers()] * 3)[None]
    pixels = torch.empty(1, 3, 3, 32, 32, dtype=torch.uint8, device=DEVICE)
    numbers = numbers.to(DEVICE)
    with no_waits():
        assert changed(pixels, numbers).shape == pixels.shape


# --- as options of an augmentation ------------------------------------------------------------------------------------


def batch_of(option: str, **settings: Any) -> Batch:
    """Four photographs with all views that there are."""
    sizes = {"global_crops_size": (48, 32), "local_crops_size": 16, "local_crops_number": 3}
    augment = build_augmentation(option, **sizes, extra_crops=1, clean_sizes=(32, 64), **settings)
    views = [augment(np.roll(PHOTO, shift, 0), np.random.default_rng(shift)) for shift in range(4)]
    return collate(views, np.zeros((1, 4, 6), bool), [0] * 4, [])


def levels_of(batch: Batch) -> dict[str, Tensor]:
    """Of its crops, by field."""
    batch = batch.normalised(torch.zeros(3), torch.full((3,), 1 / 255))
    return {name: tensor for name, tensor in batch.tensors().items() if "crops" in name and tensor.is_floating_point()}


@pytest.mark.parametrize("option", ["official", "legacy"])
def test_the_batch_is_the_same_wherever_it_is_changed(option: str) -> None:
    before, after = batch_of(option), batch_of(option, photometry_on_device=True)
    assert set(after.photometry) == {"global_crops", "extra_crops", "local_crops"}
    expected, found = levels_of(before), levels_of(Batch.of_tensors(after.tensors()))
    assert set(found) == set(expected) == {*after.photometry, "clean_crops.32", "clean_crops.64"}
    for name, levels in found.items():
        assert (levels - expected[name]).abs().max() <= (1.1 if name in after.photometry else 0), name
    assert not torch.equal(after.global_crops, before.global_crops)
    assert after.normalised(torch.zeros(3), torch.ones(3)).photometry == {}


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"share_jitter": True}, "share_jitter=true changes the whole image; set one of them to false"),
        ({"local_crops_size": 4}, "crops of 4 pixels are too small for its blur, which reads 4 pixels to each side"),
    ],
)
def test_what_it_cannot_do_is_refused(settings: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=f"photometry_on_device=true: .*{reason}"):
        build_augmentation("official", photometry_on_device=True, **settings)
