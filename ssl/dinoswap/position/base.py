"""The base class of position options: a table that is added to the tokens, or rotations of queries and keys."""

from collections.abc import Sequence
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

Grid = tuple[int, int]
"""Rows and columns of patches."""


class Rotation(NamedTuple):
    """Sines and cosines [N, d] by which each of N patches turns the d channels of its queries and keys."""

    sin: Tensor
    cos: Tensor


class Position:
    """An option of the group. `has_table`: whether the backbone trains a table of positions that it adds to its
    tokens."""

    has_table: ClassVar[bool]

    def check(self, head_width: int) -> None:
        """Raises ValueError where a head of this width cannot be turned."""

    def rotations(
        self, grids: Sequence[Grid], head_width: int, tokens: Tensor, training: bool
    ) -> Sequence[Rotation | None]:
        """Returns the rotation of each list entry for the next block, None where there is none, on the device of
        `tokens`. A block of a network in training mode may get another one than the block before, drawn from torch's
        default generator."""
        return [None] * len(grids)


def rotated(qkv: Tensor, rotation: Rotation) -> Tensor:
    """Returns qkv [b, T, 3, h, d] whose queries and keys are turned for the last N of the T tokens, the patches.

    Channel i is paired with channel i + d / 2. Queries and keys of all tokens pass through the type of the rotation,
    those that are not turned too, as in facebookresearch/dinov3 @ 6876159 (layers/attention.py).
    """
    sin, cos = (values[:, None, None] for values in rotation)  # [N, d] -> [N, 1, 1, d]
    turning = qkv[:, :, :2].to(sin.dtype)
    others, patches = turning.tensor_split([turning.shape[1] - len(sin)], dim=1)
    first, second = patches.chunk(2, dim=-1)
    patches = patches * cos + torch.cat([-second, first], dim=-1) * sin
    turned = torch.cat([others, patches], dim=1).to(qkv.dtype)
    return torch.cat([turned, qkv[:, :, 2:]], dim=2)
