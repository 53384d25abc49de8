"""Rotary position embedding in two dimensions.

Of the channels of a head the first half turns with the row of a token, the second half with its column. In a half of w
channels, k and k + w / 2 are a pair (a, b), turned by the angle t = position * 100^(-2k / w):

    (a, b) -> (a cos t - b sin t, b cos t + a sin t)

Follows model/dinov2/layers/rope.py of ByteDance-Seed/Depth-Anything-3 @ 2c21ea8, with tables where it has a cache.
"""

import torch
from torch import Tensor
from torch.nn import functional

BASE = 100.0


def local_positions(grid: tuple[int, int], device: torch.device) -> Tensor:
    """Returns row and column of each token, float32 [1 + P, 2]: (0, 0) of the special token, patches from (1, 1)
    on."""
    rows, columns = (torch.arange(1, side + 1, dtype=torch.float32, device=device) for side in grid)
    return _with_special_token(torch.cartesian_prod(rows, columns))


def global_positions(grid: tuple[int, int], device: torch.device) -> Tensor:
    """Returns the positions [1 + P, 2] that blocks across views use: (0, 0) of the special token, and (1, 1) of every
    patch."""
    return _with_special_token(torch.ones(grid[0] * grid[1], 2, device=device))


def _with_special_token(patches: Tensor) -> Tensor:
    return functional.pad(patches, (0, 0, 1, 0))  # [P, 2] -> [1 + P, 2]


def rotation_table(positions: Tensor, head_dim: int) -> Tensor:
    """Returns cosines and sines of each channel's angle at `positions` [T, 2]: float32 [2, T, head_dim]."""
    width = head_dim // 2
    exponents = torch.arange(0, width, 2, dtype=torch.float32, device=positions.device) / width
    angles = positions[:, :, None] * (1 / BASE**exponents)  # [T, 2, w / 2]
    angles = angles.repeat(1, 1, 2).flatten(1)  # both channels of a pair: [T, 2, w] -> [T, d]
    return torch.stack([angles.cos(), angles.sin()])


def rotate(x: Tensor, table: Tensor) -> Tensor:
    """Returns queries or keys [b, h, T, d] rotated by a table [2, T, d], in the wider of the two precisions."""
    cos, sin = table
    a, b = x.reshape(*x.shape[:-1], 2, 2, x.shape[-1] // 4).unbind(-2)  # [b, h, T, d] -> [b, h, T, 2, w / 2] each
    rotated = torch.stack([-b, a], dim=-2).flatten(-3)  # [b, h, T, 2, 2, w / 2] -> [b, h, T, d]
    out: Tensor = x * cos + rotated * sin
    return out
