"""Every other patch is hidden, as on a chessboard; which colour, is drawn for each crop."""

from collections.abc import Callable

import numpy as np

from dinoswap.masking.batch_policy import patch_grid
from dinoswap.rng import numpy_generator


class CheckerMasking:
    """Squares of `side` patches."""

    def __init__(self, *, side: int) -> None:
        if side < 1:
            raise ValueError(f"side={side}: must be at least 1")
        self.side = side

    def sampler(
        self, *, crop_size: tuple[int, int], patch_size: int, crops: int, images: int, seed: int
    ) -> Callable[[int], np.ndarray]:
        """step -> bool [crops (P), images (B of all ranks), N]"""
        rows, columns = np.indices(patch_grid(crop_size, patch_size)) // self.side
        board = ((rows + columns) % 2 == 1).reshape(-1)  # [h, w] -> [N]

        def draw(step: int) -> np.ndarray:
            colours = numpy_generator(seed, "mask", step).integers(0, 2, (crops, images, 1)).astype(bool)
            return board ^ colours

        return draw
