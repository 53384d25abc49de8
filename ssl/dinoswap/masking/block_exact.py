"""The rectangles of `block`, then single patches at random until the target count is met exactly.

The targets are not drawn either: each masked crop takes the upper end of its part of the ratio range, so that every
step hides the same number of patches. With `circular_shift` a mask is moved around the grid by a random step along each
side, which takes away the preference for the centre.
Follows dinov3/data/{masking,collate}.py of facebookresearch/dinov3 @ 6876159, draw for draw; no code of it is used.
"""

from typing import Any, Literal

import numpy as np

from dinoswap.masking.batch_policy import Draws, Generators, MaskGenerator, patch_grid
from dinoswap.masking.block import BlockMaskGenerator, max_num_patches
from dinoswap.masking.rectangles import RectangleMasking


class BlockExactMaskGenerator(BlockMaskGenerator):
    """Draws masks that hide exactly the target count."""

    def __init__(
        self,
        grid: tuple[int, int],
        max_num_patches: float,
        min_num_patches: int,
        min_aspect: float,
        circular_shift: bool,
    ) -> None:
        super().__init__(grid, max_num_patches, min_num_patches, min_aspect)
        self.circular_shift = circular_shift

    def __call__(self, target: int, rng: Generators) -> np.ndarray:
        mask = super().__call__(target, rng)
        missing = target - np.count_nonzero(mask)
        # drawn even if none is missing: `choice` permutes the candidates, and the next mask follows on
        mask.flat[rng.numpy.choice(np.flatnonzero(~mask), missing, replace=False)] = True
        if self.circular_shift and target > 0:
            shift = rng.python.randint(0, self.height - 1), rng.python.randint(0, self.width - 1)
            mask = np.roll(mask, shift, axis=(0, 1))
        return mask


class BlockExactMasking(RectangleMasking):
    """The batch policy with masks of `BlockExactMaskGenerator` and the same targets at every step."""

    def __init__(
        self,
        *,
        mask_sample_probability: float,
        mask_ratio_min_max: tuple[float, float],
        min_num_patches: int,
        min_aspect: float,
        circular_shift: bool,
        scope: Literal["batch", "crop"],
        draws: Draws,
    ) -> None:
        super().__init__(
            mask_sample_probability=mask_sample_probability,
            mask_ratio_min_max=mask_ratio_min_max,
            min_num_patches=min_num_patches,
            min_aspect=min_aspect,
            scope=scope,
            draws=draws,
        )
        self.circular_shift = circular_shift

    def generator(self, crop_size: tuple[int, int], patch_size: int) -> MaskGenerator:
        grid, cap = patch_grid(crop_size, patch_size), max_num_patches(crop_size, patch_size)
        return BlockExactMaskGenerator(grid, cap, self.min_num_patches, self.min_aspect, self.circular_shift)

    def target(self, low: np.floating[Any], high: np.floating[Any], patches: int, rng: Generators) -> int:
        """Returns the upper end of the part of the ratio range, in patches. Nothing is drawn."""
        return int(np.float32(patches) * high)
