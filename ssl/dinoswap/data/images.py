"""What every data source offers: images by row, their labels, and what a source says of itself."""

import hashlib
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import Literal, Protocol, overload

import numpy as np
from numpy.typing import NDArray

from dinoswap.data.decoding import CorruptImage, Decoding, Pixels, corrupt_if_undecodable, decode, to_rgb

__all__ = [
    "CorruptImage",
    "Decoding",
    "ImageSource",
    "Images",
    "Labels",
    "Pixels",
    "corrupt_if_undecodable",
    "decode",
    "first_labelled",
    "numbered",
    "to_rgb",
]

Labels = NDArray[np.int64]


class Images(Protocol):
    """A finite list of images, read at random: safe to use from forked workers."""

    labels: Labels | None
    """[len(self)], all >= 0; None unless there are images and every one has a label."""
    classes: Sequence[str] | None
    """Class names by label, where the source knows them."""
    blocks: Sequence[int]
    """Sizes of consecutive blocks of rows that are cheap to read together; one block when reads are random."""

    def __len__(self) -> int: ...

    def load(self, row: int) -> Pixels:
        """uint8 [H, W, 3], writable. Raises CorruptImage."""
        ...

    def name(self, row: int) -> str:
        """A unique name that lets a person find the image."""
        ...

    def encoded(self, row: int) -> bytes | memoryview | None:
        """The image as it is stored; None where only pixels are kept. Raises CorruptImage where that cannot be read."""
        return None

    def size(self, row: int) -> int:
        """Bytes of the stored image, 0 where that is not known without reading it."""
        return 0

    def label(self, row: int) -> int | None:
        return None if self.labels is None else int(self.labels[row])

    def fingerprint(self) -> str:
        """A digest, in hexadecimal, of what these images are and not of where they lie: a moved copy has the same one,
        other images have another one. Without decoding any."""
        digest = hashlib.sha256(f"{len(self)}\n".encode())
        for row in range(len(self)):
            digest.update(f"{self.name(row)} {self.label(row)}\n".encode(errors="surrogateescape"))
        return digest.hexdigest()


class ImageSource(ABC):
    """A data option: where its training and its test images are."""

    @cached_property
    def ignored(self) -> Counter[str]:
        """What was left out -> how many, e.g. ".heic" or "hidden file"."""
        return Counter()

    @cached_property
    def remarks(self) -> list[str]:
        """Sentences that a run logs as warnings when it starts."""
        return []

    @property
    def labelled_by(self) -> str | None:
        """What labels are taken from, in a word or two, e.g. "folder", where a source has a choice."""
        return None

    @abstractmethod
    def train(self) -> Images:
        """The images to train on, never empty. Raises ValueError when there are none."""

    @abstractmethod
    def test(self) -> Images | None:
        """Labelled images apart from the training images, or None."""

    def fingerprint(self) -> str:
        """A digest, in hexadecimal, of the images of both parts: see `Images.fingerprint`."""
        test = self.test()
        parts = [self.train().fingerprint(), "" if test is None else test.fingerprint()]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()

    @overload
    def split(self, part: Literal["train"]) -> Images: ...

    @overload
    def split(self, part: Literal["test"]) -> Images | None: ...

    def split(self, part: str) -> Images | None:
        if part not in ("train", "test"):
            raise ValueError(f"split({part!r}): a data set has the parts 'train' and 'test'")
        return self.train() if part == "train" else self.test()


def first_labelled(candidates: Iterable[Images]) -> Images | None:
    return next((images for images in candidates if images.labels is not None), None)


def numbered(names: Sequence[str], classes: Sequence[str] | None, where: str) -> tuple[Labels, Sequence[str]]:
    """Class names as int64 labels, with the classes that the labels count: the given ones, else those that occur,
    sorted. Raises ValueError, naming `where`, for a name that the given classes lack."""
    classes = classes or sorted(set(names))
    unknown = sorted(set(names) - set(classes))
    if unknown:
        raise ValueError(f"{where}: classes {unknown[:5]} do not occur in the training part: remove or rename them")
    numbers = {name: number for number, name in enumerate(classes)}
    return np.array([numbers[name] for name in names], dtype=np.int64), classes
