"""Rotary positions in one dimension: in patch n, counted row by row, pair j is turned by n / base^(2j / d)."""

from collections.abc import Sequence

import torch
from torch import Tensor

from dinoswap.position.base import Grid, Position, Rotation


class RasterPosition(Position):
    """Rotations by the number of the patch, and no table."""

    has_table = False

    def __init__(self, *, base: float) -> None:
        if not base > 1:
            raise ValueError(f"base={base}: must be above 1")
        self.base = base

    def check(self, head_width: int) -> None:
        if head_width % 2:
            raise ValueError(f"position=raster: turns pairs of channels, and a head has {head_width}")

    def rotations(
        self, grids: Sequence[Grid], head_width: int, tokens: Tensor, training: bool, block: int
    ) -> Sequence[Rotation]:
        return [self._rotation(rows * columns, head_width, tokens.device) for rows, columns in grids]

    def _rotation(self, patches: int, head_width: int, device: torch.device) -> Rotation:
        exponents = torch.arange(0, head_width, 2, device=device) / head_width
        angles = torch.arange(patches, device=device)[:, None] / self.base**exponents  # [N, d / 2]
        angles = angles.tile(2)  # [N, d]
        return Rotation(angles.sin(), angles.cos())
