"""Provides a test part for data that has none: a fixed share of each class is not trained on.

Which images are held out depends only on the number of images and their classes, so all seeds, arms and ranks hold out
the same ones. Images whose stored bytes are equal stay in the same part, so that no copy of a test image is trained on.
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
    """Splits the training images of `source` into a training part and a test part of about `fraction` of them. Raises
    ValueError, when the images are first requested, if the source already has a test part, has no labels, or has too
    few images."""

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
        """Returns the training part and the test part."""
        key = f"data.test_fraction={self.fraction}"
        images, test = self.source.train(), self.source.test()
        if test is not None:
            raise ValueError(f"{key}: the data has a test part of {len(test)} images already; leave this key at 0")
        if images.labels is None:
            raise ValueError(f"{key}: the images have no labels, so a test part would measure nothing; leave it at 0")
        is_test = held_out(images, images.labels, self.fraction)
        if not is_test.any():
            raise ValueError(f"{key}: holds none of {len(images)} images out, a class at a time; choose more")
        return Subset(images, np.flatnonzero(~is_test)), Subset(images, np.flatnonzero(is_test))


class Subset(Images):
    """Holds the given rows of `images`, in ascending order, as images of their own."""

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
    """Returns bool [len(images)], true for the images that are held out: about `fraction` of each class, at least one
    image and never all. Copies of an image are held out together."""
    first = first_copies(images)
    copies = np.bincount(first, minlength=len(images))
    is_test = np.zeros(len(images), dtype=np.bool_)
    for label in np.unique(labels).tolist():
        leaders = np.flatnonzero((labels == label) & (first == np.arange(len(images))))
        leaders = numpy_generator(0, "data/test_fraction", label).permutation(leaders)
        remaining = max(round(fraction * copies[leaders].sum()), 1)
        for row in leaders[1:].tolist():  # one stays for training
            if copies[row] <= remaining:
                is_test[row] = True
                remaining -= copies[row]
    return is_test[first]


def first_copies(images: Images) -> Rows:
    """Returns int64 [len(images)]: for every row, the first row whose stored bytes are the same, which is the row
    itself when there is no earlier copy. Only images that have the same size as another one are read."""
    sizes = np.array([images.size(row) for row in range(len(images))])
    _, size_group, counts = np.unique(sizes, return_inverse=True, return_counts=True)
    first = np.arange(len(images))
    seen: dict[bytes, int] = {}
    for row in np.flatnonzero(counts[size_group] > 1).tolist():
        try:
            data = images.encoded(row)
            content = images.load(row).tobytes() if data is None else data
        except CorruptImage:
            continue
        first[row] = seen.setdefault(hashlib.sha256(content).digest(), row)
    return first
