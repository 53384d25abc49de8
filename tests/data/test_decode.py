import io
import re

import numpy as np
import pytest
from data_fakes import encoded, picture
from PIL import Image

from dinoswap.data.images import CorruptImage, decode, numbered


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


def test_too_many_pixels_are_corrupt(monkeypatch):
    data = encoded(picture(13, 20, 20))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 199)
    with pytest.raises(CorruptImage, match=r"400 pixels.*exceeds limit"):
        decode(data, "x")


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
