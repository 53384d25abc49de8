"""A test part for data that has none: a share of each class, drawn once and for all, that is not trained on.

Which images are held out depends on their number and classes and on nothing else, so that all seeds, arms and ranks
have the same. Images whose stored bytes are the same stay together: a copy of a test image is not trained on.
"""

import hashlib
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from dinoswap.data.decoding import CorruptImage, Pixels
from dinoswap.data.images import Images, ImageSource, Labels
from dinoswap.rng import numpy_generator

Rows = NDArray[np.int64]


class HeldOut(ImageSource):
    """`source`, of whose training images about `fraction` become its test part. Raises ValueError, when its images are
    asked for, if it has a test part already, no labels, or too few images."""

    def __init__(self, source: ImageSource, fraction: float) -> None:
        self.source, self.fraction = source, fraction
        self.ignored, self.remarks = source.ignored, source.remarks

    def fingerprint(self) -> str:
        return self.source.fingerprint()

    @property
    def labelled_by(self) -> str | None:
        return self.source.labelled_by

    def train(self) -> Images:
        return self._parts[0]

    def test(self) -> Images:
        return self._parts[1]

    @cached_property
    def _parts(self) -> tuple["Subset", "Subset"]:
        key = f"data.test_fraction={self.fraction}"
        images, test = self.source.train(), self.source.test()
        if test is not None:
            raise ValueError(f"{key}: the data has a test part of {len(test)} images already; leave this key at 0")
        if images.labels is None:
            raise ValueError(f"{key}: the images have no labels, so a test part would measure nothing; leave it at 0")
        chosen = held_out(images, images.labels, self.fraction)
        if not chosen.any():
            raise ValueError(f"{key}: holds none of {len(images)} images out, a class at a time; choose more")
        return Subset(images, np.flatnonzero(~chosen)), Subset(images, np.flatnonzero(chosen))


class Subset(Images):
    """The given rows of `images`, ascending, as a list of their own."""

    def __init__(self, images: Images, rows: Rows) -> None:
        self.images, self.rows = images, rows
        self.labels = None if images.labels is None else images.labels[rows]
        self.classes = images.classes
        ends = np.searchsorted(rows, np.cumsum([0, *images.blocks]))
        self.blocks = [int(size) for size in np.diff(ends) if size]

    def __len__(self) -> int:
        return len(self.rows)

    def load(self, row: int) -> Pixels:
        return self.images.load(int(self.rows[row]))

    def name(self, row: int) -> str:
        return self.images.name(int(self.rows[row]))

    def encoded(self, row: int) -> bytes | memoryview | None:
        return self.images.encoded(int(self.rows[row]))

    def size(self, row: int) -> int:
        return self.images.size(int(self.rows[row]))


def held_out(images: Images, labels: Labels, fraction: float) -> NDArray[np.bool_]:
    """bool [len(images)]: about `fraction` of each class, at least one image and never all; copies alike."""
    first = first_copies(images)
    copies = np.bincount(first, minlength=len(images))
    chosen = np.zeros(len(images), dtype=np.bool_)
    for label in np.unique(labels).tolist():
        leaders = np.flatnonzero((labels == label) & (first == np.arange(len(images))))
        leaders = numpy_generator(0, "data/test_fraction", label).permutation(leaders)
        wanted = max(round(fraction * copies[leaders].sum()), 1)
        for row in leaders[1:].tolist():  # one stays for training
            if copies[row] <= wanted:
                chosen[row] = True
                wanted -= copies[row]
    return chosen[first]


def first_copies(images: Images) -> Rows:
    """For every row the first one that is stored in the same bytes, itself where it is the only one. Only images of
    the same size are read."""
    sizes = np.array([images.size(row) for row in range(len(images))])
    _, which, counts = np.unique(sizes, return_inverse=True, return_counts=True)
    first = np.arange(len(images))
    seen: dict[bytes, int] = {}
    for row in np.flatnonzero(counts[which] > 1).tolist():
        try:
            data = images.encoded(row)
            content = images.load(row).tobytes() if data is None else data
        except CorruptImage:
            continue
        first[row] = seen.setdefault(hashlib.sha256(content).digest(), row)
    return first
