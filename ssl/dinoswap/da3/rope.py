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
    """Row and column of each token, float32 [1 + P, 2]: (0, 0) of the special token, patches from (1, 1) on."""
    rows, columns = (torch.arange(1, side + 1, dtype=torch.float32, device=device) for side in grid)
    return _behind_special(torch.cartesian_prod(rows, columns))


def global_positions(grid: tuple[int, int], device: torch.device) -> Tensor:
    """What blocks across views use instead, [1 + P, 2]: every patch is at (1, 1), told apart from the special token
    alone."""
    return _behind_special(torch.ones(grid[0] * grid[1], 2, device=device))


def _behind_special(patches: Tensor) -> Tensor:
    return functional.pad(patches, (0, 0, 1, 0))  # [P, 2] -> [1 + P, 2]


def rotation_table(positions: Tensor, head_dim: int) -> Tensor:
    """Cosines and sines of the angles of each channel at `positions` [T, 2]: float32 [2, T, head_dim]."""
    width = head_dim // 2
    exponents = torch.arange(0, width, 2, dtype=torch.float32, device=positions.device) / width
    angles = positions[:, :, None] * (1 / BASE**exponents)  # [T, 2, w / 2]
    angles = angles.repeat(1, 1, 2).flatten(1)  # both of a pair: [T, 2, w] -> [T, d]
    return torch.stack([angles.cos(), angles.sin()])


def rotate(x: Tensor, table: Tensor) -> Tensor:
    """Queries or keys [b, h, T, d] turned by a table [2, T, d], in the wider of the two precisions."""
    cos, sin = table
    a, b = x.reshape(*x.shape[:-1], 2, 2, x.shape[-1] // 4).unbind(-2)  # [b, h, T, d] -> [b, h, T, 2, w / 2] each
    turned = torch.stack([-b, a], dim=-2).flatten(-3)  # [b, h, T, 2, 2, w / 2] -> [b, h, T, d]
    out: Tensor = x * cos + turned * sin
    return out
