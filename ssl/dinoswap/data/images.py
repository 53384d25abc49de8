"""Defines the interfaces of data sources: images by row, their labels, and what a source reports about itself."""

import hashlib
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import Literal, Protocol, overload

import numpy as np
from numpy.typing import NDArray

from dinoswap.data.decoding import CorruptImage, Decoding, Pixels, corrupt_if_undecodable, decode, extensions, to_rgb

__all__ = [
    "CorruptImage",
    "Decoding",
    "ImageSource",
    "Images",
    "Labels",
    "Pixels",
    "corrupt_if_undecodable",
    "decode",
    "extensions",
    "first_labelled",
    "numbered",
    "to_rgb",
]

Labels = NDArray[np.int64]


class Images(Protocol):
    """Represents a finite list of images that is read at random positions. It is safe to use from forked workers."""

    labels: Labels | None
    """int64 [len(self)], all >= 0; None when there are no images, or one of them has no label."""
    classes: Sequence[str] | None
    """Class names by label, when the source knows them."""
    blocks: Sequence[int]
    """Sizes of consecutive blocks of rows that are cheap to read together; a single block when reads are random."""

    def __len__(self) -> int: ...

    def load(self, row: int) -> Pixels:
        """Returns the pixels of an image, uint8 [H, W, 3], writable. Raises CorruptImage when it cannot be decoded."""
        ...

    def name(self, row: int) -> str:
        """Returns a unique name by which a person finds the image."""
        ...

    def encoded(self, row: int) -> bytes | memoryview | None:
        """Returns the image as it is stored, or None when only pixels are kept. Raises CorruptImage when the stored
        image cannot be read."""
        return None

    def size(self, row: int) -> int:
        """Returns the size of the stored image in bytes, or 0 when it is not known without reading the image."""
        return 0

    def label(self, row: int) -> int | None:
        """Returns the label of an image, or None when the images have no labels."""
        return None if self.labels is None else int(self.labels[row])

    def fingerprint(self) -> str:
        """Returns a hexadecimal digest of the names and labels of the images, which does not depend on where they are
        stored: a copy in another folder has the same digest, other images have another one. No image is decoded."""
        digest = hashlib.sha256(f"{len(self)}\n".encode())
        for row in range(len(self)):
            digest.update(f"{self.name(row)} {self.label(row)}\n".encode(errors="surrogateescape"))
        return digest.hexdigest()


class ImageSource(ABC):
    """Provides training images and test images: the base class of the options of `data`."""

    @cached_property
    def ignored(self) -> Counter[str]:
        """Counts what was left out, by kind, e.g. ".heic" or "hidden file"."""
        return Counter()

    @cached_property
    def remarks(self) -> list[str]:
        """Returns sentences that a run logs as warnings when it starts."""
        return []

    @property
    def labelled_by(self) -> str | None:
        """Returns in a word or two what labels are taken from, e.g. "folder", for a source that has a choice; else
        None."""
        return None

    @abstractmethod
    def train(self) -> Images:
        """Returns the images to train on, of which there is at least one. Raises ValueError when there are none."""

    @abstractmethod
    def test(self) -> Images | None:
        """Returns labelled images that are no training images, or None when there are none."""

    def fingerprint(self) -> str:
        """Returns a hexadecimal digest of the images of both parts, see `Images.fingerprint`."""
        test = self.test()
        parts = [self.train().fingerprint(), "" if test is None else test.fingerprint()]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()

    @overload
    def split(self, part: Literal["train"]) -> Images: ...

    @overload
    def split(self, part: Literal["test"]) -> Images | None: ...

    def split(self, part: str) -> Images | None:
        """Returns the images of a part, "train" or "test". Raises ValueError for any other name."""
        if part not in ("train", "test"):
            raise ValueError(f"split({part!r}): a data set has the parts 'train' and 'test'")
        return self.train() if part == "train" else self.test()


def first_labelled(candidates: Iterable[Images]) -> Images | None:
    """Returns the first candidate that has labels, or None when no candidate has."""
    return next((images for images in candidates if images.labels is not None), None)


def numbered(names: Sequence[str], classes: Sequence[str] | None, where: str) -> tuple[Labels, Sequence[str]]:
    """Returns class names as int64 labels [len(names)], and the classes that the labels index: the given ones, else the
    names that occur, sorted. Raises ValueError, naming `where`, for a name that is not among the given classes."""
    classes = classes or sorted(set(names))
    unknown = sorted(set(names) - set(classes))
    if unknown:
        raise ValueError(f"{where}: classes {unknown[:5]} do not occur in the training part: remove or rename them")
    numbers = {name: number for number, name in enumerate(classes)}
    return np.array([numbers[name] for name in names], dtype=np.int64), classes
