"""Decodes images to pixels, uint8 [H, W, 3] RGB. No other module does.

The rules, in this order:

  * EXIF orientation is applied where it can be read; other metadata has no effect (metadata.py);
  * 16 bits: `Decoding.range_16bit`, by default 0..65535, becomes 0..255 (PIL alone would clip gray at 255);
  * transparency is composited on white (dropping it would show the colours hidden under it);
  * palette, bilevel, gray, CMYK and YCbCr are converted to RGB by PIL;
  * of an animation, the first frame is taken.

Anything else (float pixels, a truncated file, too many pixels) is a `CorruptImage` with its reason: nothing is guessed
and no image is decoded in part. Images are converted in bands of rows, so that a large one needs the memory of its
decoded pixels (at most 4 bytes each), of its result (3 bytes each), and of one band.
"""

import io
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from dinoswap.data.metadata import exif_orientation, orientation, without_metadata
from dinoswap.data.sixteen_bit import FULL_RANGE, has_16_bits, spread, spread_colours

Pixels = NDArray[np.uint8]

BAND_PIXELS = 2**22
_LONGEST_REASON = 300
_USUAL = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF", "JPEG2000")
# EPS starts Ghostscript, IPTC opens what it holds in any format, EPS included; the others are recognised only.
_NOT_DECODED = ("EPS", "IPTC", "BUFR", "GRIB", "HDF5", "MPEG", "WMF")


class CorruptImage(Exception):
    """Raised for an image that cannot be decoded: `name` identifies it, `reason` says in one line why."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(name, reason)
        self.name = name
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.name}: {self.reason}"


@dataclass(frozen=True)
class Decoding:
    """Holds the keys of `data` that decide which images are decoded, and how. Raises ValueError for values out of
    range.

    `max_pixels` is the largest number of pixels that is decoded, which guards against files that unpack to more memory
    than there is; the default is PIL's own limit. `range_16bit` holds the 16-bit values that become black and white,
    e.g. [0, 4095] for scans of 12 bits; values outside of it are clipped.
    """

    max_pixels: int = 178_956_970
    range_16bit: tuple[int, int] = FULL_RANGE

    def __post_init__(self) -> None:
        low, high = self.range_16bit
        if self.max_pixels < 1:
            raise ValueError(f"max_pixels={self.max_pixels}: must be at least 1")
        if not low < high:
            raise ValueError(
                f"range_16bit=[{low}, {high}]: the first value is shown black, the second, larger one white"
            )

    @property
    def most_bytes(self) -> int:
        """Returns the largest size of an encoded image in bytes: 16 for each pixel, more than any format needs, and 16
        MiB for metadata."""
        return 16 * self.max_pixels + 2**24


DEFAULT = Decoding()


@cache
def formats() -> tuple[str, ...]:
    """Returns the names of the formats that are decoded, usual ones first: all that the installed PIL reads without
    starting another program."""
    Image.init()
    rest = sorted(set(Image.OPEN) - {*_USUAL, *_NOT_DECODED})
    return (*(name for name in _USUAL if name in Image.OPEN), *rest)


@cache
def extensions() -> frozenset[str]:
    """Returns the file extensions of the formats that are decoded, in small letters with their dot."""
    return frozenset(suffix for suffix, name in Image.registered_extensions().items() if name in {*formats(), "MPO"})


@contextmanager
def corrupt_if_undecodable(name: str) -> Iterator[None]:
    """Turns every exception that a decoder raises, except MemoryError, into CorruptImage(name, reason)."""
    try:
        yield
    except (CorruptImage, MemoryError):
        raise
    except UnidentifiedImageError as error:  # its message holds a memory address
        raise CorruptImage(name, "not an image in a format that PIL decodes") from error
    except Image.DecompressionBombError as error:
        raise CorruptImage(
            name, f"{str(error).partition(',')[0].replace('.0 ', ' ')}; data.max_pixels sets the limit"
        ) from error
    except Exception as error:
        reason = re.sub(r" at 0x[0-9a-fA-F]+", "", f"{type(error).__name__}: {error}")
        raise CorruptImage(name, " ".join(reason.split())[:_LONGEST_REASON]) from error


def decode(data: bytes | memoryview, name: str, decoding: Decoding = DEFAULT) -> Pixels:
    """Returns the pixels of an encoded image, uint8 [H, W, 3], writable. An image that cannot be decoded is tried again
    without its metadata, which may be damaged. Raises CorruptImage when neither works."""
    if not len(data):
        raise CorruptImage(name, "no bytes")
    try:
        return _decode(bytes(data), name, decoding)
    except CorruptImage as first:
        stripped = without_metadata(bytes(data))
        if stripped is None:
            raise
        try:
            return _decode(stripped[0], name, decoding, exif_orientation(stripped[1]))
        except CorruptImage:
            raise first from None


def _decode(data: bytes, name: str, decoding: Decoding, turn: int | None = None) -> Pixels:
    """Returns the pixels of an encoded image, uint8 [H, W, 3]; `turn` is its EXIF orientation, None to read it from the
    image. Raises CorruptImage."""
    with open_image(data, name, decoding) as image:
        if decoding.range_16bit != FULL_RANGE and image.mode in ("RGB", "RGBA") and has_16_bits(image):
            return to_rgb(spread_colours(data, decoding.range_16bit), decoding, turn or orientation(image))
        return to_rgb(image, decoding, turn)


@contextmanager
def open_image(data: bytes | memoryview, name: str, decoding: Decoding = DEFAULT) -> Iterator[Image.Image]:
    """Opens an encoded image: its header has been read, its pixels are read when they are needed. Raises CorruptImage,
    also for an exception that is raised within the context."""
    with (
        corrupt_if_undecodable(name),
        _quiet_up_to(decoding.max_pixels),
        Image.open(io.BytesIO(data), formats=formats()) as image,
    ):
        yield image


@contextmanager
def _quiet_up_to(max_pixels: int) -> Iterator[None]:
    """Sets PIL's limit to `max_pixels` within the context, and silences warnings: PIL warns of unusual things in a file
    that it then either decodes or refuses."""
    previous_limit = Image.MAX_IMAGE_PIXELS
    Image.MAX_IMAGE_PIXELS = max_pixels / 2  # type: ignore[assignment]  # PIL warns at it, and refuses at twice of it
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        Image.MAX_IMAGE_PIXELS = previous_limit


# Maps an EXIF orientation to the view of upright pixels [H, W, 3] that has the layout of the stored image. Bands are
# written through this view.
_STORED: dict[int, Callable[[Pixels], Pixels]] = {
    1: lambda upright: upright,
    2: lambda upright: upright[:, ::-1],
    3: lambda upright: upright[::-1, ::-1],
    4: lambda upright: upright[::-1],
    5: lambda upright: upright.swapaxes(0, 1),
    6: lambda upright: upright[:, ::-1].swapaxes(0, 1),
    7: lambda upright: upright[::-1, ::-1].swapaxes(0, 1),
    8: lambda upright: upright[::-1].swapaxes(0, 1),
}


def to_rgb(image: Image.Image, decoding: Decoding = DEFAULT, turn: int | None = None) -> Pixels:
    """Returns a PIL image of any mode as uint8 [H, W, 3]; `turn` is its EXIF orientation, None to read it from the
    image.

    Raises ValueError for modes without a defined range, and for an image without pixels.
    """
    image.load()
    turn = turn or orientation(image)
    width, height = image.size
    if not width * height:
        raise ValueError(f"an image of {width} x {height} pixels")
    upright = np.empty((width, height, 3) if turn >= 5 else (height, width, 3), dtype=np.uint8)
    stored = _STORED[turn](upright)  # [height, width, 3]
    rows = max(BAND_PIXELS // width, 1)
    for top in range(0, height, rows):
        band = image if rows >= height else image.crop((0, top, width, min(top + rows, height)))
        stored[top : top + rows] = _levels(band, decoding)
    return upright


def _levels(image: Image.Image, decoding: Decoding) -> Pixels:
    """Returns the pixels of an image in the orientation in which it is stored: uint8 [h, w, 3], or [h, w, 1] when the
    three channels are equal. Raises ValueError for float pixels."""
    if image.mode.startswith("I"):
        return spread(np.asarray(image), decoding.range_16bit)[:, :, None]
    if image.mode == "F":
        raise ValueError("float pixels have no defined range: store 8 or 16 bit")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return np.asarray(Image.alpha_composite(white, image).convert("RGB"))
    if image.mode in ("1", "L"):
        return np.asarray(image.convert("L"))[:, :, None]
    return np.asarray(image.convert("RGB"))
