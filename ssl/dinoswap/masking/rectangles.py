"""Rectangles at random places of the patch grid, the base of `block`, `block_exact` and `block_accumulate`.

A rectangle is drawn by its area, uniform from `min_num_patches` to a cap, and its aspect h / w, log-uniform from
`min_aspect` to the inverse. It has to be smaller than the grid on both sides, and to hide at least one new patch and at
most as many as the cap. The options differ in how many rectangles one call of `place` puts down.
Follows dinov2/data/masking.py of facebookresearch/dinov2 @ b8931f7.
"""

import math
import random
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Literal

import numpy as np

from dinoswap.masking.batch_policy import BatchPolicy, Draws, Generators

ATTEMPTS = 10


class RectangleMaskGenerator(ABC):
    """Draws masks for one grid (h, w). Calling it with a target count and the generators returns bool [h, w]. Raises
    ValueError where the smallest rectangle has more patches than the grid."""

    def __init__(
        self,
        grid: tuple[int, int],
        max_num_patches: float,
        min_num_patches: int,
        min_aspect: float,
    ) -> None:
        self.height, self.width = grid
        if min_num_patches > self.height * self.width:
            raise ValueError(
                f"masking.min_num_patches={min_num_patches}: a crop has {self.height} x {self.width} patches; use fewer"
            )
        self.max_num_patches = max_num_patches
        self.min_num_patches = min_num_patches
        self.log_aspect = (math.log(min_aspect), math.log(1 / min_aspect))

    @abstractmethod
    def place(self, mask: np.ndarray, cap: float, rng: random.Random) -> int:
        """Hides rectangles of at most `cap` new patches each. Returns the number of new patches, 0 if none fitted."""

    def __call__(self, target: int, rng: Generators) -> np.ndarray:
        mask = np.zeros((self.height, self.width), dtype=bool)
        count = 0
        while count < target:
            placed = self.place(mask, min(target - count, self.max_num_patches), rng.python)
            if placed == 0:
                break
            count += placed
        return mask

    def attempts(self, mask: np.ndarray, cap: float, rng: random.Random) -> Iterator[int]:
        """Draws up to ATTEMPTS rectangles, hides each that fits, and yields the number of new patches that it hides. It
        is lazy: no more are drawn once the caller stops."""
        for _ in range(ATTEMPTS):
            area = rng.uniform(self.min_num_patches, cap)
            aspect = math.exp(rng.uniform(*self.log_aspect))
            rows, columns = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if not (columns < self.width and rows < self.height):
                continue
            top, left = rng.randint(0, self.height - rows), rng.randint(0, self.width - columns)
            block = mask[top : top + rows, left : left + columns]
            new_patches = rows * columns - int(np.count_nonzero(block))
            if 0 < new_patches <= cap:
                block[:] = True
                yield new_patches


class RectangleMasking(BatchPolicy):
    """The batch policy with the bounds of a rectangle. Raises ValueError for a bound out of range."""

    def __init__(
        self,
        *,
        mask_sample_probability: float,
        mask_ratio_min_max: tuple[float, float],
        min_num_patches: int,
        min_aspect: float,
        scope: Literal["batch", "crop"],
        draws: Draws,
    ) -> None:
        super().__init__(mask_sample_probability, mask_ratio_min_max, scope, draws)
        if min_num_patches < 1:
            raise ValueError(f"min_num_patches={min_num_patches}: a rectangle has at least 1 patch")
        if not 0 < min_aspect <= 1:
            raise ValueError(f"min_aspect={min_aspect}: must lie above 0 and not above 1")
        self.min_num_patches = min_num_patches
        self.min_aspect = min_aspect
