import hashlib
from functools import partial
from importlib.resources import files

import numpy as np
import pytest
from PIL import Image

from dinoswap.data import embedded
from dinoswap.data.embedded import TileImages
from options import build_option, open_source

open_parquet = partial(open_source, "parquet")


@pytest.fixture(scope="module")
def source():
    return build_option("data/embedded", tile=32, stride=16, test_fraction=0.25)


def test_thirteen_labelled_photographs_in_both_parts(source):
    for part in ("train", "test"):
        images = source.split(part)
        assert set(images.labels.tolist()) == set(range(13)) and len(images.classes) == 13
        assert images.load(len(images) - 1).shape == (32, 32, 3)
        assert images.blocks == [len(images)] == [len(images.labels)]


def test_tiles_are_gray_and_of_equal_mean_and_contrast(source):
    images = source.split("test")
    whole = 0
    for row in range(0, len(images), 37):
        tile = images.load(row)
        assert (tile == tile[..., :1]).all()
        if tile.min() > 0 and tile.max() < 255:  # nothing was clipped
            assert tile.mean() == pytest.approx(128, abs=0.5)
            assert tile.std() == pytest.approx(40, abs=0.5)
            whole += 1
    assert whole > 10


def test_parts_share_no_pixel(source):
    """Tiles of the left three quarters end before the border, tiles of the right quarter begin behind it."""
    whole = open_parquet(str(files("dinoswap.data") / "files/photos.parquet")).split("train")
    widths = {name: whole.load(row).shape[1] * 3 // 4 for row, name in enumerate(whole.classes)}
    train, test = source.split("train"), source.split("test")
    for row in range(len(train)):
        name, _, place = train.name(row).rpartition("@")
        assert int(place.split(",")[1]) + 32 <= widths[name]
    # the first test tile of the first photograph, by hand from its right-hand part
    photo = np.asarray(Image.fromarray(whole.load(0)).convert("L"))[:, widths[whole.classes[0]] :]
    name, _, place = test.name(0).rpartition("@")
    y, x = (int(part) for part in place.split(","))
    assert name == whole.classes[0]
    tile = photo[y : y + 32, x : x + 32].astype(np.float64)
    expected = ((tile - tile.mean()) / tile.std() * 40 + 128).round().clip(0, 255)
    assert np.abs(test.load(0)[..., 0] - expected).max() <= 1  # float32 against float64 at a rounding edge


def test_tiles_by_hand():
    rng = np.random.default_rng(0)
    photos = [rng.integers(0, 256, (5, 7), dtype=np.uint8), np.full((4, 3), 9, np.uint8)]
    images = TileImages(photos, ["a", "b"], tile=3, stride=2, min_contrast=1.0)
    assert images.places == [f"a@{y},{x}" for y in (0, 2) for x in (0, 2, 4)]  # the second photo has no contrast
    assert images.labels.tolist() == [0] * 6
    before = images.load(0).copy()
    images.load(0)[:] = 0
    np.testing.assert_array_equal(images.load(0), before)  # a tile is a copy


@pytest.mark.parametrize(
    ("arguments", "key"),
    [
        ({"tile": 0}, "data.tile=0"),
        ({"stride": 0}, "data.stride=0"),
        ({"test_fraction": 1.0}, "data.test_fraction"),
        ({"tile": 97}, "data.tile=97"),
        ({"min_contrast": 0.0}, "data.min_contrast=0.0"),
    ],
)
def test_refusals(arguments, key):
    with pytest.raises(ValueError, match=key):
        build_option("data/embedded", **arguments)


def test_the_fingerprint_is_that_of_the_shipped_file(source, monkeypatch, tmp_path):
    assert source.fingerprint() == build_option("data/embedded", tile=16, stride=32).fingerprint()
    other = tmp_path / "photos.parquet"
    other.write_bytes(embedded._photos().read_bytes() + b"x")
    monkeypatch.setattr(embedded, "_photos", lambda: other)
    assert source.fingerprint() == hashlib.sha256(other.read_bytes()).hexdigest()
