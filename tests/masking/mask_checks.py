"""What the tests of the mask options share: seeded generators, and draws against the fixtures."""

import math
import random
from collections.abc import Callable
from typing import Any

import numpy as np

from dinoswap.masking.batch_policy import Generators, MaskGenerator
from options import build_option


def to_hex(mask: np.ndarray) -> str:
    return np.packbits(mask.flatten()).tobytes().hex()


def seeded(seed: int) -> Generators:
    """As random.seed(seed) and np.random.seed(seed) leave the two generators."""
    return Generators(random.Random(seed), np.random.RandomState(seed))


def assert_same_state(rng: Generators, case: dict[str, Any]) -> None:
    assert rng.python.random() == case["next_random_random"]
    assert rng.numpy.rand() == case["next_np_random_rand"]


def assert_same_draws(generator: MaskGenerator, case: dict[str, Any]) -> None:
    for draw in case["draws"]:
        rng = seeded(draw["seed"])
        masks = [generator(target, rng) for target in case["targets"]]
        assert [to_hex(mask) for mask in masks] == draw["masks"]
        assert_same_state(rng, draw)


def counts(generator: MaskGenerator, target: int, draws: int, seed: int = 0) -> np.ndarray:
    """How many patches each of `draws` masks hides."""
    rng = seeded(seed)
    return np.array([np.count_nonzero(generator(target, rng)) for _ in range(draws)])


Masks = Callable[..., np.ndarray]


def sampler(
    option: Any, *, crops: int = 2, images: int = 5, seed: int = 3, crop_size: tuple[int, int] = (96, 64)
) -> Masks:
    """Of crops with 6 x 4 patches."""
    masks: Masks = option.sampler(crop_size=crop_size, patch_size=16, crops=crops, images=images, seed=seed)
    return masks


def masking(option: str, probability: float, ratios: tuple[float, float], **changes: Any) -> Any:
    """An option of the block family that masks this share of the crops, over these shares of their patches."""
    return build_option(f"masking/{option}", mask_sample_probability=probability, mask_ratio_min_max=ratios, **changes)


def rectangles(
    generator: Callable[..., MaskGenerator], grid: tuple[int, int], cap: float = math.inf, **changes: Any
) -> MaskGenerator:
    """One with the bounds of a rectangle that all fixtures were drawn with."""
    return generator(grid, cap, min_num_patches=4, min_aspect=0.3, **changes)
