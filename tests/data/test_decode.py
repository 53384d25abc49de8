import io
import random
import re
import subprocess
import sys

import cv2
import numpy as np
import pytest
from data_fakes import encoded, picture
from PIL import Image, ImageFile, features

from dinoswap.data import decoding
from dinoswap.data.decoding import CorruptImage, Decoding, corrupt_if_undecodable, decode, extensions, formats
from dinoswap.data.images import numbered


def test_rgb_png_is_exact_and_writable():
    pixels = picture(3, 5, 7)
    result = decode(encoded(pixels), "x")
    assert result.dtype == np.uint8 and result.flags.writeable
    np.testing.assert_array_equal(result, pixels)


@pytest.mark.parametrize(
    ("orientation", "upright"),
    [
        (1, lambda a: a),
        (2, np.fliplr),
        (3, lambda a: a[::-1, ::-1]),
        (4, np.flipud),
        (5, lambda a: a.swapaxes(0, 1)),
        (6, lambda a: np.rot90(a, -1)),
        (7, lambda a: a[::-1, ::-1].swapaxes(0, 1)),
        (8, lambda a: np.rot90(a, 1)),
    ],
)
def test_exif_orientation_is_applied(orientation, upright):
    stored = picture(1, 4, 7)
    exif = Image.Exif()
    exif[0x0112] = orientation
    np.testing.assert_array_equal(decode(encoded(stored, exif=exif), "x"), upright(stored))


def test_gray_is_repeated():
    gray = picture(2)[:, :, 0]
    np.testing.assert_array_equal(decode(encoded(gray), "x"), np.stack([gray] * 3, axis=2))


def test_bilevel():
    bits = picture(2)[:, :, 0] > 127
    np.testing.assert_array_equal(decode(encoded(Image.fromarray(bits)), "x")[:, :, 1], bits * 255)


def on_white(colour: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    weight = alpha[:, :, None] / 255
    return colour * weight + 255 * (1 - weight)


def test_rgba_is_composited_on_white():
    rgba = np.concatenate([picture(4), picture(5)[:, :, :1]], axis=2)
    rgba[0, :2, 3] = 0, 255
    result = decode(encoded(rgba), "x")
    np.testing.assert_allclose(result, on_white(rgba[:, :, :3], rgba[:, :, 3]), atol=1)
    np.testing.assert_array_equal(result[0, 0], 255)
    np.testing.assert_array_equal(result[0, 1], rgba[0, 1, :3])


def test_gray_with_alpha_is_composited_on_white():
    gray, alpha = picture(6)[:, :, 0], picture(7)[:, :, 0]
    result = decode(encoded(Image.fromarray(np.stack([gray, alpha], axis=2), "LA")), "x")
    np.testing.assert_allclose(result, on_white(np.stack([gray] * 3, axis=2), alpha), atol=1)


def test_palette_with_and_without_transparency():
    indices = (picture(8)[:, :, 0] % 3).astype(np.uint8)
    colours = np.array([[10, 20, 30], [200, 100, 0], [0, 255, 9]], dtype=np.uint8)
    image = Image.fromarray(indices, "P")
    image.putpalette(colours.tobytes())
    np.testing.assert_array_equal(decode(encoded(image), "x"), colours[indices])
    colours[1] = 255
    np.testing.assert_array_equal(decode(encoded(image, transparency=1), "x"), colours[indices])


@pytest.mark.parametrize(("kind", "mode"), [("PNG", "I;16"), ("TIFF", "I;16"), ("TIFF", "I;16B"), ("TIFF", "I")])
def test_16_bit_gray_is_scaled_not_clipped(kind, mode):
    levels = np.array([[0, 1, 128, 129], [257, 256 * 100, 257 * 100, 40000], [65407, 65406, 65534, 65535]])
    stored = levels.astype({"I": np.int32, "I;16B": ">u2"}.get(mode, np.uint16))
    image = Image.frombytes(mode, (4, 3), stored.tobytes())
    expected = np.floor(levels / 257 + 0.5)
    assert expected.max() == 255 and expected[0, 2] == 0 and expected[0, 3] == 1
    np.testing.assert_array_equal(decode(encoded(image, kind), "x"), np.stack([expected] * 3, axis=2))


@pytest.mark.parametrize("window", [(0, 4095), (1000, 3000), (-1000, 70000), (5, 6)])
def test_a_window_of_16_bit_values_becomes_0_to_255(window):
    low, high = window
    levels = np.arange(0, 65536, 23, dtype=np.uint16)[None]
    expected = np.floor(np.clip((levels - np.float64(low)) / (high - low), 0, 1) * 255 + 0.5)
    result = decode(encoded(levels), "x", Decoding(range_16bit=window))
    np.testing.assert_array_equal(result[..., 0], expected)
    np.testing.assert_array_equal(result[..., 0], result[..., 2])


@pytest.mark.parametrize("suffix", [".png", ".tiff"])
@pytest.mark.parametrize("channels", [3, 4])
def test_a_window_of_16_bit_colours(suffix, channels):
    values = np.random.default_rng(0).integers(0, 65536, (5, 7, channels), dtype=np.uint16)
    values[..., :3] //= 16  # 12 bits
    stored = values[..., [2, 1, 0, 3][:channels]]  # OpenCV writes BGR and BGRA
    data = cv2.imencode(suffix, stored)[1].tobytes()
    colour = np.floor(np.clip(values[..., :3].astype(float) / 3000, 0, 1) * 255 + 0.5)
    alpha = np.floor(values[..., 3] / 257 + 0.5) if channels == 4 else np.full((5, 7), 255)
    result = decode(data, "x", Decoding(range_16bit=(0, 3000)))
    np.testing.assert_allclose(result, on_white(colour, alpha), atol=1 if channels == 4 else 0)
    narrow = decode(encoded(picture(3, 5, 7)), "x", Decoding(range_16bit=(0, 3000)))
    np.testing.assert_array_equal(narrow, picture(3, 5, 7))  # 8 bits are left alone
    with pytest.raises(CorruptImage):
        decode(data[: len(data) // 2], "x", Decoding(range_16bit=(0, 3000)))


def test_a_window_defines_other_integers_too():
    scan = Image.fromarray(np.array([[-1024, 0, 3000, 70000]], dtype=np.int32))
    expected = [0, round(1024 / 4024 * 255), 255, 255]
    assert decode(encoded(scan, "TIFF"), "x", Decoding(range_16bit=(-1024, 3000)))[0, :, 0].tolist() == expected


@pytest.mark.parametrize(
    ("values", "message"), [({"max_pixels": 0}, "max_pixels=0"), ({"range_16bit": (7, 7)}, "7, 7")]
)
def test_refused_settings(values, message):
    with pytest.raises(ValueError, match=message):
        Decoding(**values)


def test_cmyk():
    cmyk = np.concatenate([picture(9), picture(10)[:, :, :1] // 2], axis=2).astype(np.uint8)
    expected = (255 - cmyk[:, :, :3].astype(float)) * (255 - cmyk[:, :, 3:].astype(float)) / 255
    result = decode(encoded(Image.fromarray(cmyk, "CMYK"), "TIFF"), "x")
    np.testing.assert_allclose(result, expected, atol=1.01)
    # As a JPEG, Adobe's convention stores the inks inverted.
    flat = np.broadcast_to(np.array([10, 60, 110, 20], dtype=np.uint8), (16, 16, 4))
    jpeg = decode(encoded(Image.fromarray(flat.copy(), "CMYK"), "JPEG", quality=100), "x")
    np.testing.assert_allclose(jpeg[8, 8], (255 - flat[0, 0, :3].astype(float)) * (235 / 255), atol=4)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 9), (9, 1)])
def test_one_pixel_wide(height, width):
    pixels = picture(11, height, width)
    np.testing.assert_array_equal(decode(encoded(pixels), "x"), pixels)
    assert decode(encoded(pixels, "JPEG"), "x").shape == (height, width, 3)


def test_first_frame_of_an_animation():
    frames = [Image.fromarray(np.full((4, 4), value, dtype=np.uint8)) for value in (50, 200)]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    np.testing.assert_array_equal(decode(data, "x"), 50)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "TIFF"])
@pytest.mark.parametrize("share", [0.02, 0.5, 0.9])
def test_truncated_is_corrupt(kind, share):
    whole = encoded(picture(12, 40, 40), kind)
    assert decode(whole, "x").shape == (40, 40, 3)
    with pytest.raises(CorruptImage) as caught:
        decode(whole[: int(len(whole) * share)], "some/file")
    assert caught.value.name == "some/file"
    assert caught.value.reason and not re.search("0x[0-9a-f]{6}", caught.value.reason)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "no bytes"),
        (b"<html>404</html>", "not an image"),
        (encoded(Image.new("F", (3, 3)), "TIFF"), "float pixels"),
        (encoded(Image.new("I", (3, 3), 70000), "TIFF"), "70000..70000"),
    ],
)
def test_undefined_is_corrupt_with_its_reason(data, reason):
    with pytest.raises(CorruptImage, match="^x: .*" + re.escape(reason)):
        decode(data, "x")


def test_too_many_pixels_are_corrupt_and_a_key_allows_them():
    pixels = picture(13, 20, 20)
    data = encoded(pixels)
    with pytest.raises(
        CorruptImage, match=r"x: Image size \(400 pixels\) exceeds limit of 399 pixels; data.max_pixels"
    ):
        decode(data, "x", Decoding(max_pixels=399))
    np.testing.assert_array_equal(decode(data, "x", Decoding(max_pixels=400)), pixels)
    icon = io.BytesIO()  # says 16 x 16 in its directory and holds a picture of 20 x 20
    Image.fromarray(pixels).resize((16, 16)).save(icon, "ICO", sizes=[(16, 16)])
    at = icon.getvalue().index(b"\x89PNG")
    with pytest.raises(CorruptImage, match=r"data\.max_pixels"):
        decode(icon.getvalue()[:at] + data, "x", Decoding(max_pixels=399))
    assert Image.MAX_IMAGE_PIXELS == 89478485  # PIL's, for everybody else
    assert Decoding().max_pixels == 2 * Image.MAX_IMAGE_PIXELS


MODES = ["1", "L", "P", "RGB", "RGBA", "LA", "CMYK", "I;16", "I", "YCbCr"]


@pytest.mark.parametrize("turn", [1, 2, 3, 4, 5, 6, 7, 8])
@pytest.mark.parametrize("mode", MODES)
def test_large_images_are_converted_in_bands_to_the_same_pixels(mode, turn, monkeypatch):
    image = Image.fromarray(picture(15, 23, 17)).convert({"I;16": "L"}.get(mode, mode)).convert(mode)
    whole = decoding.to_rgb(image, turn=turn)
    monkeypatch.setattr(decoding, "BAND_PIXELS", 5 * 17 + 3)
    np.testing.assert_array_equal(decoding.to_rgb(image, turn=turn), whole)
    monkeypatch.setattr(decoding, "BAND_PIXELS", 1)
    np.testing.assert_array_equal(decoding.to_rgb(image, turn=turn), whole)


MEASURED = """
import io, resource, sys
from PIL import Image
from dinoswap.data.decoding import decode
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
file = io.BytesIO()
Image.new(sys.argv[1], (100, 100)).save(file, "PNG")
decode(file.getvalue(), "x")
file = io.BytesIO()
Image.new(sys.argv[1], (4000, 4000)).save(file, "PNG")
pixels, before = 4000 * 4000, peak()
decode(file.getvalue(), "x")
print((peak() - before) / pixels)
"""


@pytest.mark.parametrize(("mode", "stored"), [("1", 1), ("RGB", 4)])
def test_a_large_image_needs_little_more_memory_than_its_pixels(mode, stored):
    """Bytes per pixel: those of the image as PIL holds it, 3 of the result, and at most 2 of bands and buffers. (PIL's
    conversion of a whole image takes 3 to 8 more.) What saving the image took has been freed, and is reused first."""
    command = [sys.executable, "-c", MEASURED, mode]
    measured = float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert measured < stored + 3 + 2


def test_postscript_is_no_image_whatever_it_is_called(monkeypatch):
    def started(*_):
        raise AssertionError("another program was started")

    monkeypatch.setattr(subprocess, "Popen", started)
    eps = io.BytesIO()
    Image.fromarray(picture(1)).save(eps, "EPS")
    with pytest.raises(CorruptImage, match="x: not an image in a format that PIL decodes"):
        decode(eps.getvalue(), "x")
    assert "EPS" not in formats() and ".eps" not in extensions() and ".ps" not in extensions()


@pytest.mark.parametrize("kind", ["AVIF", "JPEG2000", "TGA", "ICO", "DDS", "QOI", "SGI", "PCX", "MPO"])
def test_formats_that_the_installed_pil_decodes(kind):
    if kind == "AVIF" and not features.check("avif"):
        kind = "WEBP"  # an older PIL: what it has instead
    pixels = picture(16, 32, 32)
    data = encoded(pixels, kind)
    expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    np.testing.assert_array_equal(decode(data, "x"), expected)
    assert {".jfif", ".jpg", ".png", ".tga", ".mpo", ".jp2"} <= extensions()


@pytest.mark.parametrize("error", [RuntimeError("a"), AttributeError("b"), NotImplementedError("c"), RecursionError()])
def test_whatever_a_decoder_raises_is_a_corrupt_image(error, monkeypatch):
    def fail(*_):
        raise error

    monkeypatch.setattr(ImageFile.ImageFile, "load", fail)
    with pytest.raises(CorruptImage, match=type(error).__name__):
        decode(encoded(picture(1), "BMP"), "x")


@pytest.mark.parametrize("error", [MemoryError, KeyboardInterrupt, SystemExit])
def test_what_is_not_about_the_image_is_not_taken_for_a_corrupt_one(error):
    with pytest.raises(error), corrupt_if_undecodable("x"):
        raise error


def test_a_reason_is_one_line_without_addresses():
    with pytest.raises(CorruptImage) as caught, corrupt_if_undecodable("x"):
        raise RuntimeError(f"at\n{object()}\n" + "long " * 1000)
    assert "\n" not in caught.value.reason and "0x" not in caught.value.reason and len(caught.value.reason) <= 300


@pytest.mark.filterwarnings("ignore")
def test_damaged_headers_of_every_format():
    """A decoder may refuse a file, but only so."""
    rng, tried, refused = random.Random(0), 0, 0
    for kind in sorted((set(Image.SAVE) & set(formats())) - {"ICNS"}):
        try:
            whole = encoded(picture(17, 24, 24), kind)
        except (OSError, ValueError, KeyError):  # a format for other kinds of images
            continue
        for _ in range(20):
            data = bytearray(whole)
            for _ in range(rng.choice((1, 2, 6))):
                data[min(int(rng.expovariate(1 / 40)), len(data) - 1)] = rng.choice(
                    (0, 1, 127, 255, rng.randrange(256))
                )
            tried += 1
            try:
                assert decode(bytes(data[: rng.choice((len(data), len(data) // 2))]), kind).shape[2] == 3
            except CorruptImage:
                refused += 1
    assert tried > 300 and 0.2 < refused / tried < 0.9


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP", "PPM"])
@pytest.mark.filterwarnings("ignore")
def test_damaged_bytes_give_an_image_or_corrupt_image(kind):
    whole = np.frombuffer(encoded(picture(14, 24, 24), kind), dtype=np.uint8)
    rng = np.random.default_rng(0)
    corrupt = 0
    for _ in range(150):
        damaged = whole.copy()
        damaged[rng.integers(0, min(len(whole), 200), 8)] = rng.integers(0, 256, 8)
        try:
            assert decode(damaged.tobytes(), "x").shape[2] == 3
        except CorruptImage:
            corrupt += 1
    assert corrupt > 0


def test_numbered_classes():
    labels, classes = numbered(["b", "a", "b"], None, "here")
    assert labels.tolist() == [1, 0, 1] and list(classes) == ["a", "b"]
    assert numbered(["b"], ["c", "b"], "here")[0].tolist() == [1]
    with pytest.raises(ValueError, match=r"here: classes \['d'\]"):
        numbered(["d", "b"], ["c", "b"], "here")


def test_file_objects_and_memoryviews():
    data = encoded(picture(1))
    np.testing.assert_array_equal(decode(memoryview(data), "x"), np.asarray(Image.open(io.BytesIO(data))))
