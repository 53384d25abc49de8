"""The positions of Depth Anything 3: a trained table, and from a block on rotations in two dimensions.

Of the channels of a head the first half turns with the row of a patch, the second half with its column, both counted
from 1. In a half of w channels, k and k + w / 2 are a pair (a, b), turned by the angle t = position * 100^(-2k / w):

    (a, b) -> (a cos t - b sin t, b cos t + a sin t)

In a global block every patch counts as that in row 1 and column 1. The class token or what stands in its place is at
(0, 0), which turns nothing.
Follows model/dinov2/layers/rope.py of ByteDance-Seed/Depth-Anything-3 @ 2c21ea8.
"""

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from dinoswap.position.base import Grid, Position, Rotation, may_be_kept
from dinoswap.teacher.depth_anything.variants import Architecture

BASE = 100.0


class DA3Position(Position):
    """The positions of a network of this architecture."""

    has_table = True

    def __init__(self, architecture: Architecture) -> None:
        self.architecture = architecture

    def check(self, head_width: int) -> None:
        if self.architecture.rope_start is not None and head_width % 4:
            raise ValueError(
                f"num_heads={self.architecture.num_heads}: {self.architecture.embed_dim} channels must make heads of "
                "whole multiples of 4 channels"
            )

    def rotations(
        self, grids: Sequence[Grid], head_width: int, tokens: Tensor, training: bool, block: int
    ) -> Sequence[Rotation | None]:
        spec = self.architecture
        if spec.rope_start is None or block < spec.rope_start:
            return [None] * len(grids)
        dtype = torch.promote_types(tokens.dtype, torch.float32)
        turn = kept_rotation if may_be_kept(tokens) else rotation
        return [turn(grid, spec.is_global(block), head_width, tokens.device, dtype) for grid in grids]


def rotation(grid: Grid, is_global: bool, head_width: int, device: torch.device, dtype: torch.dtype) -> Rotation:
    """Returns the rotation of a grid's patches in a local or in a global block. Its angles are float32, whatever type
    its sines and cosines [P, head_width] are given in."""
    width = head_width // 2
    exponents = torch.arange(0, width, 2, dtype=torch.float32, device=device) / width
    angles = positions(grid, is_global, device)[:, :, None] * (1 / BASE**exponents)  # [P, 2, w / 2]
    angles = angles.repeat(1, 1, 2).flatten(1)  # both channels of a pair: [P, 2, w] -> [P, d]
    return Rotation(angles.sin().to(dtype), angles.cos().to(dtype), groups=2)


kept_rotation = lru_cache(maxsize=64)(rotation)


def positions(grid: Grid, is_global: bool, device: torch.device) -> Tensor:
    """Returns row and column of each patch, float32 [P, 2], as a local or a global block sees them."""
    rows, columns = (torch.arange(1, side + 1, dtype=torch.float32, device=device) for side in grid)
    places = torch.cartesian_prod(rows, columns)
    return torch.ones_like(places) if is_global else places
