"""The base class of position options: a table that is added to the tokens, or rotations of queries and keys."""

from collections.abc import Sequence
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

Grid = tuple[int, int]
"""Rows and columns of patches."""


class Rotation(NamedTuple):
    """Sines and cosines [N, d] by which each of N patches turns the d channels of its queries and keys. The channels
    are `groups` equal parts, side by side, and in a part of w channels i and i + w / 2 are turned as a pair."""

    sin: Tensor
    cos: Tensor
    groups: int = 1


class Position:
    """An option of the group. `has_table`: whether the backbone trains a table of positions that it adds to its
    tokens."""

    has_table: ClassVar[bool]

    def check(self, head_width: int) -> None:
        """Raises ValueError where a head of this width cannot be turned."""

    def rotations(
        self, grids: Sequence[Grid], head_width: int, tokens: Tensor, training: bool, block: int
    ) -> Sequence[Rotation | None]:
        """Returns the rotation of each list entry for the block of this index, None where there is none, on the device
        of `tokens`. A block may get another one than the block before; that of a network in training mode may be drawn
        from torch's default generator."""
        return [None] * len(grids)


def may_be_kept(tokens: Tensor) -> bool:
    """Tells whether rotations that were made for these tokens may be used for others: not where the tokens are fake
    ones, by which only shapes are followed, nor those of a graph for all sizes."""
    return type(tokens) is Tensor and not torch.compiler.is_exporting()


def rotated(qkv: Tensor, rotation: Rotation) -> Tensor:
    """Returns qkv [b, T, 3, h, d] whose queries and keys are turned for the last N of the T tokens, the patches.

    Queries and keys of all tokens pass through the type of the rotation, those that are not turned too, as in
    facebookresearch/dinov3 @ 6876159 (layers/attention.py).
    """
    sin, cos = (values[:, None, None] for values in rotation[:2])  # [N, d] -> [N, 1, 1, d]
    turning = qkv[:, :, :2].to(sin.dtype)
    others, patches = turning.tensor_split([turning.shape[1] - sin.shape[0]], dim=1)
    first, second = torch.unflatten(patches, -1, (rotation.groups, 2, -1)).unbind(-2)  # [.., d] -> [.., groups, w / 2]
    patches = patches * cos + torch.stack([-second, first], dim=-2).flatten(-3) * sin
    turned = torch.cat([others, patches], dim=1).to(qkv.dtype)
    return torch.cat([turned, qkv[:, :, 2:]], dim=2)
