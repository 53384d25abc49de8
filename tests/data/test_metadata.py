"""Metadata decides which way an image is turned, and nothing else."""

import io
import struct
import zlib

import numpy as np
import pytest
from data_fakes import encoded, picture
from PIL import Image, ImageOps, PngImagePlugin, features

from dinoswap.data.decoding import CorruptImage, decode
from dinoswap.data.metadata import exif_orientation, without_metadata

TURNED = picture(1, 24, 40)


def ifd(*entries: tuple[int, int, int, bytes], order: str = "<", after: bytes = bytes(4)) -> bytes:
    """A TIFF with one directory of (tag, type, count, four bytes of value)."""
    start = b"II*\0" if order == "<" else b"MM\0*"
    body = b"".join(struct.pack(f"{order}HHI", *e[:3]) + e[3][:4].ljust(4, b"\0") for e in entries)
    return start + struct.pack(f"{order}IH", 8, len(entries)) + body + after


def turn(value: int, order: str = "<") -> tuple[int, int, int, bytes]:
    return 0x0112, 3, 1, struct.pack(f"{order}H", value)


def jpeg(exif: bytes, *others: tuple[int, bytes]) -> bytes:
    """TURNED with an EXIF segment and others, (marker, content), before everything else."""
    data = encoded(TURNED, "JPEG", quality=95)
    segments = [(0xE1, b"Exif\0\0" + exif), *others]
    written = b"".join(struct.pack(">BBH", 0xFF, marker, len(text) + 2) + text for marker, text in segments)
    return data[:2] + written + data[2:]


def png(*chunks: tuple[bytes, bytes], crc: int | None = None) -> bytes:
    """TURNED with chunks behind its header."""
    data = encoded(TURNED)
    written = [
        struct.pack(">I", len(text)) + kind + text + struct.pack(">I", zlib.crc32(kind + text) if crc is None else crc)
        for kind, text in chunks
    ]
    return data[:33] + b"".join(written) + data[33:]


@pytest.mark.parametrize("value", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
def test_images_are_turned_as_pil_turns_them(kind, value):
    if kind == "AVIF" and not features.check("avif"):
        kind = "PNG"
    exif = Image.Exif()
    exif[0x0112] = value
    data = encoded(TURNED, kind, exif=exif)
    expected = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))))
    assert expected.shape[:2] == ((40, 24) if value >= 5 else (24, 40))
    np.testing.assert_array_equal(decode(data, "x"), expected)


ODD = [
    ((0x010F, 2, 2**31, b"x"),),
    ((0x0100, 3, 2, b"\xff\xff\xff\xff"),),
    ((0x8769, 4, 1, b"\xff\xff\xff\x7f"),),
    ((0x8825, 2, 1, b"A"),),
    ((0x0201, 99, 1, b"A"), (0x02BC, 16, 1, b"\1"), (0x927C, 7, 4, b"AB\xe9\0")),
]


@pytest.mark.parametrize("odd", ODD)
@pytest.mark.parametrize("order", "<>")
def test_entries_that_make_no_sense_cost_neither_the_image_nor_its_turn(odd, order):
    exif = ifd(turn(6, order), *odd, order=order)
    upright = np.rot90(decode(encoded(TURNED, "JPEG", quality=95), "x"), -1)
    np.testing.assert_array_equal(decode(jpeg(exif), "x"), upright)
    np.testing.assert_array_equal(decode(png((b"eXIf", exif)), "x"), np.rot90(TURNED, -1))


@pytest.mark.parametrize(
    ("exif", "expected"),
    [
        (ifd(turn(6)), 6),
        (ifd((0x0112, 4, 1, struct.pack("<I", 8))), 8),
        (ifd((0x0112, 1, 1, b"\3")), 3),
        (ifd((0x0112, 3, 2, struct.pack("<HH", 5, 6))), 5),
        (ifd((0x0112, 2, 2, b"6\0")), None),  # text, a fraction, a type that nobody knows
        (ifd((0x0112, 5, 1, b"\6")), None),
        (ifd((0x0112, 99, 1, b"\6")), None),
        (ifd(turn(0)), None),
        (ifd(turn(9)), None),
        (ifd(turn(6))[:20], None),
        (ifd(turn(6))[:22], 6),  # cut behind the entry
        (b"II*\0\xff\xff\xff\xff", None),
        (b"II*\0", None),
        (b"garbage", None),
        (b"", None),
        ("text", None),
    ],
)
def test_orientation_is_read_where_it_is_a_whole_number(exif, expected):
    assert exif_orientation(exif) == expected
    if isinstance(exif, bytes):
        assert exif_orientation(b"Exif\0\0" + exif) == expected
        assert decode(jpeg(exif), "x").shape == ((40, 24, 3) if expected in (5, 6, 8) else (24, 40, 3))


@pytest.mark.parametrize(
    "chunk",
    [
        (b"zTXt", b"Comment\0\0" + zlib.compress(bytes(2**26 + 1))),
        (b"iTXt", b"Comment\0\1\0\0\0" + zlib.compress(bytes(2**26 + 1))),
        (b"tEXt", b"Comment\0" + bytes(10)),
        (b"iCCP", b"profile\0\0not compressed"),
        (b"iCCP", b"profile\0\7"),
        (b"pHYs", b""),
        (b"gAMA", b"\0"),
        (b"cHRM", b"\1"),
        (b"sRGB", b""),
        (b"acTL", b""),
        (b"fcTL", b""),
        (b"eXIf", b""),
    ],
)
def test_chunks_of_a_png_that_are_broken_or_large_are_passed_over(chunk):
    np.testing.assert_array_equal(decode(png(chunk, (b"eXIf", ifd(turn(3)))), "x"), TURNED[::-1, ::-1])
    np.testing.assert_array_equal(decode(png(chunk, crc=7), "x"), TURNED)


def test_transparency_is_not_among_the_metadata_that_are_left_out():
    palette = Image.fromarray(TURNED).quantize(4)
    text = PngImagePlugin.PngInfo()
    text.add_text("a", "b")
    whole = encoded(palette, transparency=1, pnginfo=text)
    crc = whole.index(b"tEXt") + 7  # behind the name and "a", 0, "b"
    damaged = whole[:crc] + bytes(4) + whole[crc + 4 :]
    assert without_metadata(damaged)[0] == without_metadata(whole)[0]
    np.testing.assert_array_equal(decode(damaged, "x"), decode(whole, "x"))
    assert (decode(whole, "x") == 255).all(2).sum() == (np.asarray(palette) == 1).sum()


def test_segments_of_a_jpeg_that_are_broken_are_passed_over():
    upright = decode(encoded(TURNED, "JPEG", quality=95), "x")
    for marker in range(0xE1, 0xF0):
        if marker != 0xEE:  # how colours are stored
            for text in (b"MPF\0MM\0*", b"ICC_PROFILE\0", b"Photoshop 3.0\x008BIM\4\4", b""):
                np.testing.assert_array_equal(decode(jpeg(b"", (marker, text)), "x"), upright)
    bare, exif = without_metadata(jpeg(ifd(turn(6)), (0xFE, b"a comment")))
    assert bare == encoded(TURNED, "JPEG", quality=95) and exif_orientation(exif) == 6


def tiff(*more: tuple[int, int, int, bytes]) -> bytes:
    """TURNED as a TIFF whose directory, moved to the end of the file, has more entries."""
    data = encoded(TURNED, "TIFF")
    (start,) = struct.unpack_from("<I", data, 4)
    (count,) = struct.unpack_from("<H", data, start)
    entries = [data[start + 2 + 12 * n :][:12] for n in range(count)]
    entries += [struct.pack("<HHI", *entry[:3]) + entry[3].ljust(4, b"\0") for entry in more]
    directory = struct.pack("<H", len(entries)) + b"".join(sorted(entries, key=lambda e: e[1::-1])) + bytes(4)
    return data[:4] + struct.pack("<I", len(data)) + data[8:] + directory


@pytest.mark.parametrize("tag", [0x8769, 0x8825, 0xA005, 0x83BB, 0x8649, 0x02BC, 0x8773])
@pytest.mark.parametrize("value", [b"\xff\xff\xff\xff", b"\x08\0\0\0", b"\x10\x27\0\0"])
def test_metadata_of_a_tiff_cost_neither_the_image_nor_its_turn(tag, value):
    for kind in (1, 4, 13, 99):
        np.testing.assert_array_equal(decode(tiff(turn(6), (tag, kind, 1, value)), "x"), np.rot90(TURNED, -1))


def test_a_tiff_without_its_metadata():
    bare, exif = without_metadata(tiff(turn(6), (0x8769, 4, 1, b"\xff\xff\xff\xff")))
    assert exif_orientation(exif) == 6
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(bare))), TURNED)


@pytest.mark.parametrize("cut", [0.3, 0.9])
def test_an_image_that_is_cut_stays_corrupt_without_its_metadata(cut):
    for data in (jpeg(ifd(turn(6))), png((b"eXIf", ifd(turn(6))))):
        with pytest.raises(CorruptImage, match=r"(?i)truncated"):
            decode(data[: int(len(data) * cut)], "x")
