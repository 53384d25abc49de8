"""Rectangles until the target count is reached, never beyond it: the masks of the official recipe.

One `place` call puts down at most one rectangle: it stops at the first of 10 attempts that hides anything new, where
`block_accumulate` goes on. The outer loop gives up when a call places none, so the count may stay below its target,
which `block_exact` then fills up.
Follows dinov2/data/masking.py of facebookresearch/dinov2 @ b8931f7, draw for draw.
"""

import random

import numpy as np

from dinoswap.masking.batch_policy import MaskGenerator, patch_grid
from dinoswap.masking.rectangles import RectangleMaskGenerator, RectangleMasking


def max_num_patches(crop_size: tuple[int, int], patch_size: int) -> float:
    """Returns the official maximum of a rectangle in patches: half of the grid, with floor divisions left to right."""
    return 0.5 * crop_size[0] // patch_size * crop_size[1] // patch_size


class BlockMaskGenerator(RectangleMaskGenerator):
    """Draws masks that hide at most the target count."""

    def place(self, mask: np.ndarray, cap: float, rng: random.Random) -> int:
        return next(self.attempts(mask, cap, rng), 0)


class BlockMasking(RectangleMasking):
    """The batch policy with masks of `BlockMaskGenerator`."""

    def generator(self, crop_size: tuple[int, int], patch_size: int) -> MaskGenerator:
        grid, cap = patch_grid(crop_size, patch_size), max_num_patches(crop_size, patch_size)
        return BlockMaskGenerator(grid, cap, self.min_num_patches, self.min_aspect)
