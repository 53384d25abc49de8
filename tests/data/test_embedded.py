from importlib.resources import files

import numpy as np
import pytest

from dinoswap.data.embedded import EmbeddedData, TileImages
from dinoswap.data.parquet import ParquetData


@pytest.fixture(scope="module")
def source():
    return EmbeddedData(tile=32, stride=16, test_fraction=0.25)


def test_thirteen_labelled_photographs_in_both_parts(source):
    for part in ("train", "test"):
        images = source.split(part)
        assert set(images.labels.tolist()) == set(range(13)) and len(images.classes) == 13
        assert images.load(len(images) - 1).shape == (32, 32, 3)
        assert images.blocks == [len(images)] == [len(images.labels)]


def test_parts_share_no_pixel(source):
    train, test = source.split("train"), source.split("test")
    whole = ParquetData(str(files("dinoswap.data") / "files/photos.parquet")).split("train")
    assert len(whole) == 13
    for label, (left, right) in enumerate(zip(train.photos, test.photos, strict=True)):
        np.testing.assert_array_equal(np.hstack([left, right]), whole.load(label))
        assert left.shape[1] == whole.load(label).shape[1] * 3 // 4


def test_tiles_by_hand():
    photos = [np.arange(5 * 7 * 3, dtype=np.uint8).reshape(5, 7, 3), np.zeros((4, 3, 3), np.uint8)]
    images = TileImages(photos, ["a", "b"], tile=3, stride=2)
    corners = [(0, y, x) for y in (0, 2) for x in (0, 2, 4)] + [(1, 0, 0)]
    assert images.labels.tolist() == [c[0] for c in corners] and len(images) == 7
    for row, (photo, y, x) in enumerate(corners):
        np.testing.assert_array_equal(images.load(row), photos[photo][y : y + 3, x : x + 3])
    assert images.name(5) == "a@2,4"
    images.load(0)[:] = 0
    assert photos[0].any()  # a tile is a copy


@pytest.mark.parametrize(
    ("arguments", "key"),
    [
        ({"tile": 0}, "data.tile=0"),
        ({"stride": 0}, "data.stride=0"),
        ({"test_fraction": 1.0}, "data.test_fraction"),
        ({"tile": 97}, "data.tile=97"),
    ],
)
def test_refusals(arguments, key):
    with pytest.raises(ValueError, match=key):
        EmbeddedData(**arguments)
