"""The visible region is one block; all around it is hidden. Exactly the target count, in every mask.

The block holds the N - target visible patches: its aspect h / w is log-uniform from `min_aspect` to the inverse, within
what the grid allows; its sides are rounded up, and it is filled row by row, so that its last rows may stay short. With
`roll` it is moved around the grid by a random step along each side, across the borders: then every patch is hidden
equally often.
Follows data.py (InverseBlockMasking) of facebookresearch/capi @ 43b3feb, draw for draw. That trainer hides 65 % of
every crop (mask_sample_probability=1, mask_ratio_min_max=[0.65,0.65]), does not encode what is hidden and predicts 5 %
of it. Here the batch policy and the losses stay those of `block`, which differs by the shape of the mask alone.
"""

import math
import random
from typing import Literal

import numpy as np

from dinoswap.masking.batch_policy import BatchPolicy, Draws, Generators, MaskGenerator, patch_grid


class InverseBlockMaskGenerator:
    """Draws masks for one grid (h, w). Calling it with a target count and the generators returns bool [h, w]."""

    def __init__(self, grid: tuple[int, int], min_aspect: float, roll: bool) -> None:
        self.height, self.width = grid
        self.log_aspect = (math.log(min_aspect), math.log(1 / min_aspect))
        self.roll = roll

    def __call__(self, target: int, rng: Generators) -> np.ndarray:
        patches = self.height * self.width
        if target in (0, patches):
            return np.full((self.height, self.width), target > 0)
        return ~self._block(patches - target, rng.python)

    def _block(self, count: int, rng: random.Random) -> np.ndarray:
        """Returns the visible block, bool [h, w] with `count` patches set."""
        aspect = math.exp(rng.uniform(*self._log_aspects(count)))
        rows = min(math.ceil(math.sqrt(count * aspect)), self.height)  # min: against the rounding of the root
        columns = min(math.ceil(math.sqrt(count / aspect)), self.width)
        top, left = rng.randint(0, self.height - rows), rng.randint(0, self.width - columns)
        row, column = np.divmod(np.arange(count), columns)
        block = np.zeros((self.height, self.width), dtype=bool)
        block[top + row, left + column] = True
        if self.roll:
            shift = rng.randint(0, self.height - 1), rng.randint(0, self.width - 1)
            block = np.roll(block, shift, axis=(0, 1))
        return block

    def _log_aspects(self, count: int) -> tuple[float, float]:
        """Returns the bounds of the log aspect, narrowed so that a block of `count` patches fits into the grid."""
        flattest, tallest = math.log(count / self.width**2), math.log(self.height**2 / count)
        low, high = self.log_aspect
        return max(flattest, min(low, tallest)), min(tallest, max(high, flattest))


class InverseBlockMasking(BatchPolicy):
    """The batch policy with masks of `InverseBlockMaskGenerator`. Raises ValueError for an aspect out of range."""

    def __init__(
        self,
        *,
        mask_sample_probability: float,
        mask_ratio_min_max: tuple[float, float],
        min_aspect: float,
        roll: bool,
        scope: Literal["batch", "crop"],
        draws: Draws,
    ) -> None:
        super().__init__(mask_sample_probability, mask_ratio_min_max, scope, draws)
        if not 0 < min_aspect <= 1:
            raise ValueError(f"min_aspect={min_aspect}: must lie above 0 and not above 1")
        self.min_aspect = min_aspect
        self.roll = roll

    def generator(self, crop_size: tuple[int, int], patch_size: int) -> MaskGenerator:
        return InverseBlockMaskGenerator(patch_grid(crop_size, patch_size), self.min_aspect, self.roll)
