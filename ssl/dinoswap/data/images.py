"""What every data source offers, and the one place where encoded images become pixels.

All pixels are uint8 [H, W, 3] RGB. Decoding rules, in this order:
  * EXIF orientation is applied;
  * 16-bit gray is divided by 257 and rounded, so that 0..65535 covers 0..255 (PIL alone would clip at 255);
  * transparency is composited on white (dropping it would show the colours hidden under it);
  * palette, bilevel, gray, CMYK, YCbCr: PIL's conversion to RGB;
  * of an animation, the first frame.
Whatever else there is (float pixels, a truncated file, more pixels than PIL's decompression-bomb limit) is a
`CorruptImage` with its reason: nothing is guessed and nothing is half decoded.
"""

import hashlib
import io
import struct
import zlib
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Literal, Protocol, overload

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

Pixels = NDArray[np.uint8]
Labels = NDArray[np.int64]


class CorruptImage(Exception):
    """An image that cannot be decoded: `name` says which, `reason` why."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(name, reason)
        self.name = name
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.name}: {self.reason}"


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

    ignored: Counter[str]  # what was left out -> how many, e.g. ".heic" or "hidden file"
    remarks: list[str]  # sentences that a run logs as warnings when it starts

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


# PIL's plug-ins let their parsers' errors through; MemoryError and I/O errors of the disk are not among them,
# since `decode` is given bytes.
_DECODER_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    LookupError,
    ArithmeticError,
    EOFError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)


@contextmanager
def corrupt_if_undecodable(name: str) -> Iterator[None]:
    """Turns what a decoder raises into CorruptImage(name, reason)."""
    try:
        yield
    except UnidentifiedImageError as error:  # its message holds a memory address
        raise CorruptImage(name, "not an image in a format that PIL knows") from error
    except _DECODER_ERRORS as error:
        raise CorruptImage(name, f"{type(error).__name__}: {error}") from error


def decode(data: bytes | memoryview, name: str) -> Pixels:
    """An encoded image as uint8 [H, W, 3]. Raises CorruptImage."""
    if not len(data):
        raise CorruptImage(name, "no bytes")
    with corrupt_if_undecodable(name), Image.open(io.BytesIO(data)) as image:
        return to_rgb(image)


def to_rgb(image: Image.Image) -> Pixels:
    """A PIL image of any mode as uint8 [H, W, 3]. Raises ValueError for modes without a defined range."""
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):
        return _from_16_bit(np.asarray(image))
    if image.mode == "F":
        raise ValueError("float pixels have no defined range: store 8 or 16 bit")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return np.array(image.convert("RGB"))


def _from_16_bit(gray: NDArray[np.integer]) -> Pixels:
    """Integers [H, W] in 0..65535 to uint8 [H, W, 3]."""
    low, high = int(gray.min()), int(gray.max())
    if low < 0 or high > 65535:
        raise ValueError(f"integer pixels in {low}..{high}: only 0..65535 is defined")
    levels = ((gray.astype(np.uint32) + 128) // 257).astype(np.uint8)
    return np.repeat(levels[:, :, None], 3, axis=2)  # [H, W] -> [H, W, 3]
