"""Cuts a tensor [..., K] into blocks of rows, so that a computation block by block has small temporaries."""

from collections.abc import Iterator, Sequence
from math import prod

import torch
from torch import Tensor

CPU_BLOCK = 2**18
"""Number of elements of a block on a CPU. All temporaries of a block then stay in the cache: of 2^17 to 2^24 it is the
fastest for K = 65536 and needs the least memory. A small tensor is one block."""
GPU_BLOCK = 2**24
"""Number of elements of a block on a GPU, where each block costs a launch of every kernel."""

Rows = tuple[int | slice, ...]
"""Index of a block: an index or a slice for each leading dimension."""


def row_blocks(x: Tensor) -> Iterator[Rows]:
    """Yields indices of blocks that cover x [..., K] once. A block has as many whole rows as fit, at least one."""
    return row_blocks_of(x.shape, x.device)


def row_blocks_of(shape: Sequence[int], device: torch.device) -> Iterator[Rows]:
    """Yields what `row_blocks` does, for a tensor of this shape that need not be there as a whole."""
    *leading, width = shape
    block = CPU_BLOCK if device.type == "cpu" else GPU_BLOCK
    return _cut(leading, max(block // max(width, 1), 1))


def _cut(leading: Sequence[int], most: int) -> Iterator[Rows]:
    """Yields indices of blocks of at most `most` rows. A block takes a part of one dimension and all of those after it,
    so that it is a view for any strides."""
    if not leading:
        yield ()
        return
    below = prod(leading[1:])
    if below <= most:
        step = most // max(below, 1)
        for first in range(0, leading[0], step):
            yield (slice(first, first + step),)
    else:
        for index in range(leading[0]):
            for rest in _cut(leading[1:], most):
                yield (index, *rest)
