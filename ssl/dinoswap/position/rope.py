"""Axial rotary positions: each patch turns its queries and keys by angles that grow with its row and its column.

With d channels a head and F = d / 4 frequencies, period_j = base^(j / F), j = 0 .. F - 1, or F periods from the
smallest to the largest in geometric progression. A patch in row i of H is at y = 2 (i + 0.5) / H - 1, likewise x, and

    angle = 2 pi (y / period_0, .., y / period_{F-1}, x / period_0, .., x / period_{F-1}), twice: channels i, i + d / 2

In training mode coordinates may be shifted by U(-s, s) per axis, multiplied by exp U(-ln j, ln j) per axis and by
exp U(-ln r, ln r) in common: drawn in this order, for each block and each list entry.
Follows dinov3/layers/rope_position_encoding.py of facebookresearch/dinov3 @ 6876159, in whose training every one of
these operations is rounded to bfloat16, whatever its configs say of the type.
"""

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Literal, TypedDict

import torch
from torch import Tensor

from dinoswap.position.base import Grid, Position, Rotation, may_be_kept

Normalise = Literal["separate", "min", "max"]
TYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


class Like(TypedDict):
    """Says where tables are made, and in which type."""

    device: torch.device
    dtype: torch.dtype


class Rope(Position):
    """Rotary positions."""

    has_table = False

    def __init__(
        self,
        *,
        base: float | None,
        periods: list[float] | None,
        normalise: Normalise,
        shift: float | None,
        jitter: float | None,
        rescale: float | None,
        dtype: Literal["bf16", "fp32"],
    ) -> None:
        """`periods` [smallest, largest] takes the place of `base`. `normalise` says by which side a coordinate is
        divided: its own one, the smaller, or the larger. Raises ValueError for a value out of range."""
        if (base is None) == (periods is None):
            raise ValueError(f"base={base}: give either base or periods, and null for the other; periods={periods}")
        if base is not None and not base > 0:
            raise ValueError(f"base={base}: must be above 0; 100 is usual")
        if periods is not None and not (len(periods) == 2 and 0 < periods[0] <= periods[1]):
            raise ValueError(f"periods={periods}: must be the smallest and the largest one, both above 0")
        for name, value, least in (("shift", shift, 0.0), ("jitter", jitter, 1.0), ("rescale", rescale, 1.0)):
            if value is not None and not value >= least:
                raise ValueError(f"{name}={value}: must be at least {least:g}, or null")
        self.base, self.limits, self.normalise = base, periods, normalise
        self.shift, self.jitter, self.rescale = shift, jitter, rescale
        self.dtype = TYPES[dtype]
        self._still = lru_cache(maxsize=64)(self._rotation)

    def check(self, head_width: int) -> None:
        if head_width % 4:
            raise ValueError(
                "position=rope: turns pairs of channels by row and by column, so model.embed_dim / num_heads="
                f"{head_width} must be a multiple of 4"
            )

    def periods(self, head_width: int, like: Like) -> Tensor:
        """Returns the periods [F], in units of half an image's side."""
        count = head_width // 4
        if self.limits is None:
            exponents = 2 * torch.arange(count, **like) / (head_width // 2)
            return torch.pow(self.base, exponents)  # type: ignore[arg-type]
        smallest, largest = self.limits
        ratio = largest / smallest
        growing = ratio ** torch.linspace(0, 1, count, **like)
        periods: Tensor = growing / ratio * largest
        return periods

    def coordinates(self, grid: Grid, like: Like) -> Tensor:
        """Returns row and column of the centre of each patch, [N, 2], in -1 .. 1."""
        sides = {"separate": grid, "min": (min(grid),) * 2, "max": (max(grid),) * 2}[self.normalise]
        axes = [torch.arange(0.5, count, **like) / side for count, side in zip(grid, sides, strict=True)]
        return 2.0 * torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).flatten(0, 1) - 1.0

    def rotations(
        self, grids: Sequence[Grid], head_width: int, tokens: Tensor, training: bool, block: int
    ) -> Sequence[Rotation | None]:
        # For tokens in float64, fp32 means no less than that
        dtype = torch.float64 if (tokens.dtype, self.dtype) == (torch.float64, torch.float32) else self.dtype
        if training and any(value is not None for value in (self.shift, self.jitter, self.rescale)):
            return [self._drawn(grid, head_width, {"device": tokens.device, "dtype": dtype}) for grid in grids]
        still = self._still if may_be_kept(tokens) else self._rotation
        return [still(grid, head_width, tokens.device, dtype) for grid in grids]

    def _rotation(self, grid: Grid, head_width: int, device: torch.device, dtype: torch.dtype) -> Rotation:
        """Returns the rotation of a grid of patches without augmentation."""
        like: Like = {"device": device, "dtype": dtype}
        return _turn(self.coordinates(grid, like), self.periods(head_width, like))

    def _drawn(self, grid: Grid, head_width: int, like: Like) -> Rotation:
        """Returns the rotation of a grid of patches with shift, jitter and rescaling drawn anew."""
        coordinates = self.coordinates(grid, like)
        if self.shift is not None:
            coordinates = coordinates + _uniform(2, self.shift, like)
        if self.jitter is not None:
            coordinates = coordinates * _uniform(2, math.log(self.jitter), like).exp()
        if self.rescale is not None:
            coordinates = coordinates * _uniform(1, math.log(self.rescale), like).exp()
        return _turn(coordinates, self.periods(head_width, like))


def _uniform(count: int, limit: float, like: Like) -> Tensor:
    """Draws [count] values from -limit to limit, in the type of the tables."""
    return torch.empty(count, **like).uniform_(-limit, limit)


def _turn(coordinates: Tensor, periods: Tensor) -> Rotation:
    """Returns the rotation by coordinates [N, 2] and periods [F]."""
    angles = 2 * math.pi * coordinates[:, :, None] / periods  # [N, 2, F]
    angles = angles.flatten(1).tile(2)  # [N, 2 F] -> [N, 4 F = d]
    return Rotation(torch.sin(angles), torch.cos(angles))
