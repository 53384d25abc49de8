"""What is written around the pixels of an image, and must never cost one: which way is up, and how to leave it out.

EXIF is a TIFF file of its own: a header ("II" or "MM", 42, offset of the first directory), then directories of entries
of 12 bytes: tag, type, count, value or offset. Of it only the orientation is read, wherever PIL's own reader looks for
it; whatever else a camera or an editor wrote, whole or not, is passed over.
"""

import re
import struct
from collections.abc import Iterator
from typing import Any

from PIL import Image

UPRIGHT = 1
_ORIENTATION = 0x0112
_INTEGERS = {1: "B", 3: "H", 4: "I", 6: "b", 8: "h", 9: "i"}
"""TIFF's whole-number types -> how `struct` unpacks them."""
_XMP_ORIENTATION = re.compile(rb'tiff:Orientation(?:="|>)([1-8])')
_STRUCTURE = frozenset(
    (*range(254, 267), 273, *range(277, 281), 284, 292, 293, 317, 320, *range(322, 326), 332, 338, 339, 347)
) | {*range(512, 522), *range(529, 533)}
"""The tags of a TIFF that say how its pixels are stored (TIFF 6.0, part 1 and 2)."""


def orientation(image: Image.Image) -> int:
    """1 to 8, as EXIF counts them, of a loaded image; 1, upright, where nothing sensible is written."""
    info = image.info
    return (
        exif_orientation(info.get("exif"))
        or exif_orientation(_raw_profile(info.get("Raw profile type exif")))
        or _tag(image)
        or _xmp_orientation(info.get("XML:com.adobe.xmp"))
        or _xmp_orientation(info.get("xmp"))
        or UPRIGHT
    )


def exif_orientation(exif: Any) -> int | None:
    """The orientation in the first directory of `exif`, bytes; None where there is none from 1 to 8."""
    if not isinstance(exif, bytes):
        return None
    tiff = exif.removeprefix(b"Exif\0\0")
    order = {b"II": "<", b"MM": ">"}.get(tiff[:2])
    for entry in _entries(tiff, order) if order else ():
        tag, kind, count = struct.unpack_from(f"{order}HHI", entry)
        if tag == _ORIENTATION and kind in _INTEGERS and count:
            return _valid(struct.unpack_from(f"{order}{_INTEGERS[kind]}", entry, 8)[0])
    return None


def _entries(tiff: bytes, order: str) -> Iterator[bytes]:
    """The entries of the first directory of a TIFF, 12 bytes each, as far as they are there."""
    if len(tiff) < 8:
        return
    (start,) = struct.unpack_from(f"{order}I", tiff, 4)
    count = struct.unpack_from(f"{order}H", tiff, start)[0] if start + 2 <= len(tiff) else 0
    for place in range(start + 2, min(start + 2 + 12 * count, len(tiff) - 11), 12):
        yield tiff[place : place + 12]


def _tag(image: Image.Image) -> int | None:
    """Of a TIFF that PIL has not turned itself, as its later versions do."""
    try:
        return _valid(getattr(image, "tag_v2", {}).get(_ORIENTATION))
    except Exception:  # PIL reads a tag when it is asked for, and lets its parsers' errors through
        return None


def _valid(value: Any) -> int | None:
    return int(value) if value in range(1, 9) else None


def _raw_profile(text: Any) -> bytes:
    """ImageMagick's EXIF in a text chunk of a PNG: two lines of heading, a length, then hexadecimal digits."""
    try:
        return bytes.fromhex("".join(text.split("\n")[3:])) if isinstance(text, str) else b""
    except ValueError:
        return b""


def _xmp_orientation(xmp: Any) -> int | None:
    text = xmp.encode(errors="replace") if isinstance(xmp, str) else xmp
    found = _XMP_ORIENTATION.search(text) if isinstance(text, bytes) else None
    return int(found[1]) if found else None


def without_metadata(data: bytes) -> tuple[bytes, bytes] | None:
    """The same image with nothing but its pixels and what is needed to decode them, and its EXIF. None for formats
    whose metadata PIL does not look into, and where there is nothing to leave out."""
    strip = next((strip for signature, strip in _STRIPPERS.items() if data.startswith(signature)), None)
    bare, exif = strip(data) if strip else (data, b"")
    return None if bare == data else (bare, exif)


def _strip_jpeg(data: bytes) -> tuple[bytes, bytes]:
    """Without comments and application segments, but for APP0 (JFIF) and APP14, which says how colours are stored."""
    kept, exif, place = [data[:2]], b"", 2
    while data[place : place + 1] == b"\xff" and place + 4 <= len(data):
        marker, length = data[place + 1], int.from_bytes(data[place + 2 : place + 4], "big")
        if marker in (0xDA, 0xFF) or 0xD0 <= marker <= 0xD9:  # the scan, or no segment: no metadata follows
            break
        segment = data[place : place + 2 + length]
        place += len(segment)
        if marker == 0xE1 and segment[4:10] == b"Exif\0\0":
            exif = exif or segment[4:]
        if not (marker == 0xFE or 0xE1 <= marker <= 0xEF) or marker == 0xEE:
            kept.append(segment)
    return b"".join([*kept, data[place:]]), exif


def _strip_png(data: bytes) -> tuple[bytes, bytes]:
    """Without ancillary chunks (those with a small first letter), but for the transparency of a palette or colour."""
    kept, exif, place = [data[:8]], b"", 8
    while place + 12 <= len(data):
        length, kind = int.from_bytes(data[place : place + 4], "big"), data[place + 4 : place + 8]
        chunk = data[place : place + 12 + length]
        place += len(chunk)
        if kind == b"eXIf":
            exif = chunk[8:-4]
        if kind[:1].isupper() or kind == b"tRNS":
            kept.append(chunk)
    return b"".join([*kept, data[place:]]), exif


def _strip_tiff(data: bytes) -> tuple[bytes, bytes]:
    """The first image, its directory rewritten in its place with the entries that describe pixels."""
    order = "<" if data[:2] == b"II" else ">"
    entries = list(_entries(data, order))
    kept = [entry for entry in entries if struct.unpack_from(f"{order}H", entry)[0] in _STRUCTURE]
    start = struct.unpack_from(f"{order}I", data, 4)[0] if entries else len(data)
    directory = struct.pack(f"{order}H", len(kept)) + b"".join(kept) + bytes(4)  # and no second image
    bare = data[:start] + directory + data[start + len(directory) :]
    return (bare if len(kept) < len(entries) else data), data


_STRIPPERS = {
    b"\xff\xd8": _strip_jpeg,
    b"\x89PNG\r\n\x1a\n": _strip_png,
    b"II*\0": _strip_tiff,
    b"MM\0*": _strip_tiff,
}
