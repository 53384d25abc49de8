"""Rectangles until the target count is reached, never beyond it: the masks of the official recipe.

One `_place` call puts down at most one rectangle: it stops at the first of 10 attempts that hides anything new. The
outer loop accumulates rectangles and gives up when a call places none, so the count may stay below its target.
Follows dinov2/data/masking.py of facebookresearch/dinov2 @ b8931f7, draw for draw.
"""

import math
import random
from collections.abc import Callable

import numpy as np

from dinoswap.masking.batch_policy import generate_block_masks
from dinoswap.rng import python_generator

ATTEMPTS = 10


def max_num_patches(crop_size: tuple[int, int], patch_size: int) -> float:
    """The official cap of one rectangle: half of the grid, with floor divisions taken from left to right."""
    return 0.5 * crop_size[0] // patch_size * crop_size[1] // patch_size


class BlockMaskGenerator:
    """Masks for one grid (h, w). Called with a target count and a generator, returns bool [h, w]."""

    def __init__(
        self, grid: tuple[int, int], max_num_patches: float, min_num_patches: int = 4, min_aspect: float = 0.3
    ) -> None:
        self.height, self.width = grid
        self.max_num_patches = max_num_patches
        self.min_num_patches = min_num_patches
        self.log_aspect = (math.log(min_aspect), math.log(1 / min_aspect))

    def __call__(self, target: int, rng: random.Random) -> np.ndarray:
        mask = np.zeros((self.height, self.width), dtype=bool)
        count = 0
        while count < target:
            placed = self._place(mask, min(target - count, self.max_num_patches), rng)
            if placed == 0:
                break
            count += placed
        return mask

    def _place(self, mask: np.ndarray, cap: float, rng: random.Random) -> int:
        """Hide one rectangle of at most `cap` patches not hidden before; the number of them, 0 if none fitted."""
        for _ in range(ATTEMPTS):
            area = rng.uniform(self.min_num_patches, cap)
            aspect = math.exp(rng.uniform(*self.log_aspect))
            h, w = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if not (w < self.width and h < self.height):
                continue
            top, left = rng.randint(0, self.height - h), rng.randint(0, self.width - w)
            block = mask[top : top + h, left : left + w]
            placed = h * w - int(np.count_nonzero(block))
            if 0 < placed <= cap:
                block[:] = True
                return placed
        return 0


class BlockMasking:
    """`mask_sample_probability` of the crops carry a mask over a share of their patches in `mask_ratio_min_max`."""

    def __init__(
        self,
        mask_sample_probability: float = 0.5,
        mask_ratio_min_max: tuple[float, float] = (0.1, 0.5),
        min_num_patches: int = 4,
        min_aspect: float = 0.3,
    ) -> None:
        low, high = mask_ratio_min_max
        if not 0 <= mask_sample_probability <= 1:
            raise ValueError(f"mask_sample_probability={mask_sample_probability}: must lie between 0 and 1")
        if not 0 <= low <= high <= 1:
            raise ValueError(f"mask_ratio_min_max={list(mask_ratio_min_max)}: needs 0 <= min <= max <= 1")
        if not 0 < min_aspect <= 1:
            raise ValueError(f"min_aspect={min_aspect}: must lie above 0 and not above 1")
        self.probability = mask_sample_probability
        self.ratio_min_max = (low, high)
        self.min_num_patches = min_num_patches
        self.min_aspect = min_aspect

    def sampler(
        self, *, crop_size: tuple[int, int], patch_size: int, crops: int, images: int, seed: int
    ) -> Callable[[int], np.ndarray]:
        """step -> bool [crops (P), images (B of all ranks), N], drawn jointly over all mask-carrying crops."""
        grid = (crop_size[0] // patch_size, crop_size[1] // patch_size)
        cap = max_num_patches(crop_size, patch_size)
        generator = BlockMaskGenerator(grid, cap, self.min_num_patches, self.min_aspect)

        def draw(step: int) -> np.ndarray:
            masks = generate_block_masks(
                generator,
                crops * images,
                grid[0] * grid[1],
                probability=self.probability,
                ratio_min_max=self.ratio_min_max,
                rng=python_generator(seed, "mask", step),
            )
            return masks.reshape(crops, images, -1)  # [P * B, N] -> [P, B, N]

        return draw
