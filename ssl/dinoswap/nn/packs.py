"""Sequences of tokens of several lengths in one tensor, one after the other."""

from collections.abc import Iterable, Sequence
from itertools import islice
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from dinoswap.position.base import Rotation

T = TypeVar("T")
Shape = tuple[int, int]
"""Number of sequences, and of tokens in each of them."""


class Pack(NamedTuple):
    """Sequences of some shapes, packed: the tokens of one after those of the other."""

    x: Tensor  # [S, D]
    shapes: Sequence[Shape]
    rotations: Sequence[Rotation | None]  # for each shape, of the queries and keys of its patches
    rows: Tensor | None = None  # [R], the only tokens wanted, as indices into S


def packs_all(device: torch.device) -> bool:
    """Tells whether crops of all sizes are one pack: where kernels are launched, fewer and larger ones are faster. On a
    CPU each size is a pack, as its caches hold the tokens of the smaller ones."""
    return device.type != "cpu"


def packed(entries: Sequence[Tensor]) -> Pack:
    """Returns the tokens [b, T, D] of some crops as one pack, without rotations."""
    shapes = [(x.shape[0], x.shape[1]) for x in entries]
    tokens = [x.flatten(0, 1) for x in entries]
    return Pack(torch.cat(tokens) if len(tokens) > 1 else tokens[0], shapes, [None] * len(shapes))


def split(tokens: Tensor, shapes: Sequence[Shape]) -> list[Tensor]:
    """Returns the parts [b, T, ...] of packed tokens [S, ...], one for each shape."""
    parts = torch.split(tokens, [batch * length for batch, length in shapes]) if len(shapes) > 1 else [tokens]
    return [torch.unflatten(part, 0, shape) for part, shape in zip(parts, shapes, strict=True)]


def grouped(items: Iterable[T], counts: Sequence[int]) -> list[list[T]]:
    """Returns the items in lists of so many each."""
    left = iter(items)
    return [list(islice(left, count)) for count in counts]
