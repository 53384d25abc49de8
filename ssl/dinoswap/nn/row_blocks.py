"""Cutting a tensor [..., K] into blocks of rows: what is computed block by block has small temporaries."""

from collections.abc import Iterator, Sequence
from math import prod

from torch import Tensor

CPU_BLOCK = 2**18
"""Elements. All temporaries of a block stay in the cache: the fastest size for K = 65536 of 2^17 to 2^24, and the one
with the least memory. A small tensor is one block."""
GPU_BLOCK = 2**24
"""Each block costs a launch of every kernel."""

Rows = tuple[int | slice, ...]
"""Index of a block: what it takes of each leading dimension."""


def row_blocks(x: Tensor) -> Iterator[Rows]:
    """Indices that cover x [..., K] once, of blocks of whole rows: as many as fit into a block, at least one."""
    *leading, width = x.shape
    block = CPU_BLOCK if x.device.type == "cpu" else GPU_BLOCK
    return _cut(leading, max(block // max(width, 1), 1))


def _cut(leading: Sequence[int], most: int) -> Iterator[Rows]:
    """By at most `most` rows. A block spans a dimension only with all that is below it, so that it may be a view of a
    tensor with any strides."""
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
