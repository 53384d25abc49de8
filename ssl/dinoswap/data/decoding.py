"""The one place where encoded images become pixels: uint8 [H, W, 3] RGB.

The rules, in this order:
  * EXIF orientation is applied, where it can be read; other metadata is of no consequence (metadata.py);
  * 16 bits: `Decoding.range_16bit`, by default 0..65535, becomes 0..255 (PIL alone would clip gray at 255);
  * transparency is composited on white (dropping it would show the colours hidden under it);
  * palette, bilevel, gray, CMYK, YCbCr: PIL's conversion to RGB;
  * of an animation, the first frame.
Whatever else there is (float pixels, a truncated file, too many pixels) is a `CorruptImage` with its reason: nothing is
guessed and nothing is half decoded. Images are converted in bands of rows, so that a large one needs the memory of its
decoded pixels (at most 4 bytes each) and of its result (3 bytes), and no more than a band beside.
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
    """An image that cannot be decoded: `name` says which, `reason` why, in one line."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(name, reason)
        self.name = name
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.name}: {self.reason}"


@dataclass(frozen=True)
class Decoding:
    """The keys of `data` that decide what is decoded, and how.

    `max_pixels` guards against files that unpack to more memory than there is: PIL's own limit. `range_16bit`: the
    values of 16 bits that become black and white, e.g. [0, 4095] for scans of 12 bits; what lies outside is clipped.
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
        """Of an encoded image: 16 for each pixel, more than any format needs, and some for what is not pixels."""
        return 16 * self.max_pixels + 2**24


DEFAULT = Decoding()


@cache
def formats() -> tuple[str, ...]:
    """What is decoded: all formats that the installed PIL reads without starting another program, usual ones first."""
    Image.init()
    rest = sorted(set(Image.OPEN) - {*_USUAL, *_NOT_DECODED})
    return (*(name for name in _USUAL if name in Image.OPEN), *rest)


@cache
def extensions() -> frozenset[str]:
    """The extensions of those formats, small letters with their dot."""
    return frozenset(suffix for suffix, name in Image.registered_extensions().items() if name in {*formats(), "MPO"})


@contextmanager
def corrupt_if_undecodable(name: str) -> Iterator[None]:
    """Turns whatever a decoder raises, but MemoryError, into CorruptImage(name, reason)."""
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
    """An encoded image as uint8 [H, W, 3], writable. Raises CorruptImage."""
    if not len(data):
        raise CorruptImage(name, "no bytes")
    try:
        return _decode(bytes(data), name, decoding)
    except CorruptImage as first:
        bare = without_metadata(bytes(data))
        if bare is None:
            raise
        try:
            return _decode(bare[0], name, decoding, exif_orientation(bare[1]))
        except CorruptImage:
            raise first from None


def _decode(data: bytes, name: str, decoding: Decoding, turn: int | None = None) -> Pixels:
    with open_image(data, name, decoding) as image:
        if decoding.range_16bit != FULL_RANGE and image.mode in ("RGB", "RGBA") and has_16_bits(image):
            return to_rgb(spread_colours(data, decoding.range_16bit), decoding, turn or orientation(image))
        return to_rgb(image, decoding, turn)


@contextmanager
def open_image(data: bytes | memoryview, name: str, decoding: Decoding = DEFAULT) -> Iterator[Image.Image]:
    """The header of an encoded image has been read, its pixels are when they are asked for. Raises CorruptImage, also
    for what is raised inside."""
    with (
        corrupt_if_undecodable(name),
        _quiet_up_to(decoding.max_pixels),
        Image.open(io.BytesIO(data), formats=formats()) as image,
    ):
        yield image


@contextmanager
def _quiet_up_to(max_pixels: int) -> Iterator[None]:
    """PIL's limit set to `max_pixels`, inside only, and no warnings: of what is unusual in a file, PIL warns on the
    way to decoding it or to an error."""
    before = Image.MAX_IMAGE_PIXELS
    Image.MAX_IMAGE_PIXELS = max_pixels / 2  # type: ignore[assignment]  # PIL warns at it, and refuses at twice of it
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        Image.MAX_IMAGE_PIXELS = before


# As an image is stored -> how its upright pixels [H, W, 3] are seen from there: views, through which bands are written.
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
    """A PIL image of any mode as uint8 [H, W, 3]. `turn`: its EXIF orientation; None: as the image says itself.

    Raises ValueError for modes without a defined range.
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
    """uint8 [h, w, 3], or [h, w, 1] where the three are equal, of an image as it is stored."""
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
