"""Maps a position p of the endless sample sequence to an image: a function of (seed, p), without state.

Epoch e = p // n visits every one of the n rows once, in an order of its own. A permutation of 0..n-1 is evaluated point
by point, so nothing of size n is stored: a Feistel network over pairs (l, r) of digits to the base m = ceil(sqrt(n)),
round i: (l, r) <- (r, l + f_i(r) mod m), is a bijection of 0..m*m-1 for any f_i, and is applied again to results
outside 0..n-1 ("cycle walking", Black and Rogaway 2002, "Ciphers with arbitrary finite domains").

Rows that live in several blocks (shards, row groups) are shuffled in windows: the blocks are permuted, every
`shuffle_window` consecutive ones form a window, and positions are permuted within their window. A reader touches the
blocks of one window only, and every row is still visited once per epoch.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dinoswap.rng import derive

SHUFFLE_WINDOW = 8
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_ROUND_KEYS = np.arange(8, dtype=np.uint64) * _GOLDEN

UInts = NDArray[np.uint64]
Rows = NDArray[np.int64]


def permuted(index: UInts, size: UInts, key: UInts) -> UInts:
    """Returns the images of `index` under the permutations of 0..size-1 that `key` selects, elementwise; index <
    size."""
    base = np.ceil(np.sqrt(size.astype(np.float64))).astype(np.uint64)
    result = _feistel(index, base, key)
    outside = result >= size
    while outside.any():
        result[outside] = _feistel(result[outside], base[outside], key[outside])
        outside = result >= size
    return result


def _feistel(value: UInts, base: UInts, key: UInts) -> UInts:
    left, right = np.divmod(value, base)
    for round_key in _ROUND_KEYS:
        left, right = right, (left + _mix(right + key + round_key) % base) % base
    return left * base + right


def _mix(x: UInts) -> UInts:
    """Applies the finaliser of SplitMix64 (Steele, Lea and Flood 2014), a bijection whose output bits look random."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


@dataclass(frozen=True)
class Order:
    """Defines the order of `sum(blocks)` rows. Raises ValueError for an empty set or a window below 1."""

    blocks: Sequence[int]
    seed: int
    shuffle_window: int = SHUFFLE_WINDOW

    def __post_init__(self) -> None:
        if len(self) == 0:
            raise ValueError("blocks: no rows to put in order: the data set is empty")
        if self.shuffle_window < 1:
            raise ValueError(f"shuffle_window={self.shuffle_window}: at least 1 block must be shuffled at a time")

    def __len__(self) -> int:
        return sum(self.blocks)

    def rows(self, positions: NDArray[np.integer]) -> Rows:
        """Returns the int64 rows at `positions` (>= 0, in any order) of the endless sequence, elementwise."""
        epochs, ranks = np.divmod(positions.astype(np.int64), len(self))
        rows = np.empty_like(ranks)
        for epoch in np.unique(epochs):
            rows[epochs == epoch] = self._epoch_rows(int(epoch), ranks[epochs == epoch])
        return rows

    def replacement(self, position: int, attempt: int) -> int:
        """Returns the row that is loaded instead of one at `position` that cannot be."""
        return derive(self.seed, "replace", position, attempt) % len(self)

    def _epoch_rows(self, epoch: int, ranks: Rows) -> Rows:
        """Returns the int64 rows at the positions `ranks` within an epoch, elementwise."""
        key = np.uint64(derive(self.seed, "order", epoch))
        sizes = np.asarray(self.blocks, dtype=np.int64)
        count = np.full(len(sizes), len(sizes), dtype=np.uint64)
        shuffled = permuted(np.arange(len(sizes), dtype=np.uint64), count, np.full_like(count, key)).astype(np.int64)
        ends = sizes[shuffled].cumsum()
        window_ends = np.append(ends[self.shuffle_window - 1 :: self.shuffle_window], ends[-1])
        window_starts = np.concatenate(([0], window_ends[:-1]))

        window = window_ends.searchsorted(ranks, side="right")
        start, size = window_starts[window], (window_ends - window_starts)[window]
        keys = _mix(key + (window.astype(np.uint64) + np.uint64(1)) * _GOLDEN)
        mixed = start + permuted((ranks - start).astype(np.uint64), size.astype(np.uint64), keys).astype(np.int64)

        slot = ends.searchsorted(mixed, side="right")
        block = shuffled[slot]
        offset = mixed - (ends[slot] - sizes[block])
        return (sizes.cumsum() - sizes)[block] + offset
