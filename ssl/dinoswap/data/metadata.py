"""Reads the orientation from the metadata of an image, and removes metadata, so that damaged metadata never costs an
image.

EXIF is a TIFF file of its own: a header ("II" or "MM", 42, offset of the first directory), then directories of entries
of 12 bytes: tag, type, count, value or offset. Only the orientation is read, wherever PIL's own reader looks for it;
whatever else a camera or an editor wrote, damaged or not, is skipped.
"""

import re
import struct
from collections.abc import Iterator
from typing import Any

from PIL import Image

UPRIGHT = 1
_ORIENTATION = 0x0112
_INTEGERS = {1: "B", 3: "H", 4: "I", 6: "b", 8: "h", 9: "i"}
"""Maps TIFF's whole-number types to their format characters in `struct`."""
_XMP_ORIENTATION = re.compile(rb'tiff:Orientation(?:="|>)([1-8])')
_STRUCTURE = frozenset(
    (*range(254, 267), 273, *range(277, 281), 284, 292, 293, 317, 320, *range(322, 326), 332, 338, 339, 347)
) | {*range(512, 522), *range(529, 533)}
"""The tags of a TIFF that describe how its pixels are stored (TIFF 6.0, part 1 and 2)."""


def orientation(image: Image.Image) -> int:
    """Returns the EXIF orientation, 1 to 8, of a loaded image; 1, upright, when there is no valid one."""
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
    """Returns the orientation in the first directory of `exif`, which is bytes; None when it has none from 1 to 8."""
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
    """Yields the entries of the first directory of a TIFF, 12 bytes each; those that lie outside of the data are left
    out."""
    if len(tiff) < 8:
        return
    (start,) = struct.unpack_from(f"{order}I", tiff, 4)
    count = struct.unpack_from(f"{order}H", tiff, start)[0] if start + 2 <= len(tiff) else 0
    for place in range(start + 2, min(start + 2 + 12 * count, len(tiff) - 11), 12):
        yield tiff[place : place + 12]


def _tag(image: Image.Image) -> int | None:
    """Returns the orientation of a TIFF that PIL has not rotated itself, as its later versions do; else None."""
    try:
        return _valid(getattr(image, "tag_v2", {}).get(_ORIENTATION))
    except Exception:  # PIL reads a tag when it is asked for, and lets its parsers' errors through
        return None


def _valid(value: Any) -> int | None:
    """Returns the value as an orientation, or None when it is not one from 1 to 8."""
    return int(value) if value in range(1, 9) else None


def _raw_profile(text: Any) -> bytes:
    """Returns the EXIF that ImageMagick writes into a text chunk of a PNG: two lines of heading, a length, then
    hexadecimal digits. Returns b"" when the text is not of this form."""
    try:
        return bytes.fromhex("".join(text.split("\n")[3:])) if isinstance(text, str) else b""
    except ValueError:
        return b""


def _xmp_orientation(xmp: Any) -> int | None:
    """Returns the orientation that an XMP packet holds, else None."""
    text = xmp.encode(errors="replace") if isinstance(xmp, str) else xmp
    match = _XMP_ORIENTATION.search(text) if isinstance(text, bytes) else None
    return int(match[1]) if match else None


def without_metadata(data: bytes) -> tuple[bytes, bytes] | None:
    """Returns the encoded image with only its pixels and what is needed to decode them, and its EXIF. Returns None for
    formats whose metadata PIL does not read, and when there is no metadata to remove."""
    strip = next((strip for signature, strip in _STRIPPERS.items() if data.startswith(signature)), None)
    stripped, exif = strip(data) if strip else (data, b"")
    return None if stripped == data else (stripped, exif)


def _strip_jpeg(data: bytes) -> tuple[bytes, bytes]:
    """Returns a JPEG without comments and application segments, except for APP0 (JFIF) and APP14, which says how
    colours are stored; and its EXIF."""
    kept, exif, offset = [data[:2]], b"", 2
    while data[offset : offset + 1] == b"\xff" and offset + 4 <= len(data):
        marker, length = data[offset + 1], int.from_bytes(data[offset + 2 : offset + 4], "big")
        if marker in (0xDA, 0xFF) or 0xD0 <= marker <= 0xD9:  # the scan, or no segment: no metadata follows
            break
        segment = data[offset : offset + 2 + length]
        offset += len(segment)
        if marker == 0xE1 and segment[4:10] == b"Exif\0\0":
            exif = exif or segment[4:]
        if not (marker == 0xFE or 0xE1 <= marker <= 0xEF) or marker == 0xEE:
            kept.append(segment)
    return b"".join([*kept, data[offset:]]), exif


def _strip_png(data: bytes) -> tuple[bytes, bytes]:
    """Returns a PNG without ancillary chunks (those with a small first letter), except for the transparency of a
    palette or colour; and its EXIF."""
    kept, exif, offset = [data[:8]], b"", 8
    while offset + 12 <= len(data):
        length, kind = int.from_bytes(data[offset : offset + 4], "big"), data[offset + 4 : offset + 8]
        chunk = data[offset : offset + 12 + length]
        offset += len(chunk)
        if kind == b"eXIf":
            exif = chunk[8:-4]
        if kind[:1].isupper() or kind == b"tRNS":
            kept.append(chunk)
    return b"".join([*kept, data[offset:]]), exif


def _strip_tiff(data: bytes) -> tuple[bytes, bytes]:
    """Returns the first image of a TIFF, its directory rewritten in place with only the entries that describe pixels;
    and the original data, which hold the EXIF."""
    order = "<" if data[:2] == b"II" else ">"
    entries = list(_entries(data, order))
    kept = [entry for entry in entries if struct.unpack_from(f"{order}H", entry)[0] in _STRUCTURE]
    start = struct.unpack_from(f"{order}I", data, 4)[0] if entries else len(data)
    directory = struct.pack(f"{order}H", len(kept)) + b"".join(kept) + bytes(4)  # and no second image
    stripped = data[:start] + directory + data[start + len(directory) :]
    return (stripped if len(kept) < len(entries) else data), data


_STRIPPERS = {
    b"\xff\xd8": _strip_jpeg,
    b"\x89PNG\r\n\x1a\n": _strip_png,
    b"II*\0": _strip_tiff,
    b"MM\0*": _strip_tiff,
}
