"""Test images that are held out of a data set without a test part."""

import io
import tarfile
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from data_fakes import FakeImages, encoded, picture
from test_image_folder import rows, write

from dinoswap.data.held_out import HeldOut, Subset, first_copies, held_out
from dinoswap.data.images import ImageSource
from options import open_source

open_parquet = partial(open_source, "parquet")
open_folder = partial(open_source, "image_folder")
open_shards = partial(open_source, "webdataset")


class Stored(FakeImages):
    """Rows of the given contents, of which some have equal bytes; `read` lists those that were asked for."""

    def __init__(self, contents, labels=None):
        super().__init__(len(contents))
        self.contents, self.read = contents, []
        self.labels = np.zeros(len(contents), dtype=np.int64) if labels is None else np.array(labels)

    def size(self, row):
        return len(self.contents[row])

    def encoded(self, row):
        self.read.append(row)
        return self.contents[row]


def contents(count):
    return [f"{row:09}".encode() for row in range(count)]


@pytest.mark.parametrize("fraction", [0.1, 0.25, 0.5])
def test_the_share_of_each_class(fraction):
    labels = [0] * 200 + [1] * 40 + [2] * 8
    chosen = held_out(Stored(contents(248), labels), np.array(labels), fraction)
    for label, count in enumerate((200, 40, 8)):
        assert chosen[np.array(labels) == label].sum() == max(round(fraction * count), 1)


def test_small_classes_have_an_image_in_each_part():
    labels = np.array([0, 1, 1, 2, 2, 2])
    chosen = held_out(Stored(contents(6), labels), labels, 0.01)
    assert [int(chosen[labels == label].sum()) for label in range(3)] == [0, 1, 1]


def test_copies_are_on_one_side_also_across_classes():
    rng = np.random.default_rng(0)
    numbers = rng.integers(0, 60, 200)  # about three copies of each
    images = Stored([b"%03d" % n for n in numbers], rng.integers(0, 3, 200))
    chosen = held_out(images, images.labels, 0.3)
    assert not set(numbers[chosen]) & set(numbers[~chosen])
    assert 0.2 < chosen.mean() < 0.4


def test_only_images_of_one_size_are_compared_and_those_by_their_bytes():
    images = Stored([b"a", b"bb", b"ab", b"ccc", b"bb", b"cccc", b"a", b"bb"])
    assert first_copies(images).tolist() == [0, 1, 2, 3, 1, 5, 0, 1]
    assert sorted(images.read) == [0, 1, 2, 4, 6, 7]


def test_images_that_are_kept_as_pixels_are_compared_by_them():
    class Pixels(FakeImages):
        def load(self, row):
            return picture(row % 5)

    assert first_copies(Pixels(12)).tolist() == [0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 0, 1]
    assert first_copies(FakeImages(4, corrupt=frozenset({1, 2}))).tolist() == [0, 1, 2, 3]


def test_a_part_of_a_folder(tmp_path):
    files = {f"{name}/{row:02}.png": row + 100 * at for at, name in enumerate(["cat", "dog"]) for row in range(20)}
    whole = open_folder(write(tmp_path, files))
    (tmp_path / "dog/copy.png").write_bytes(encoded(picture(7)))  # of cat/07.png
    source = HeldOut(open_folder(str(tmp_path)), 0.2)
    train, test = source.split("train"), source.split("test")
    assert len(train) + len(test) == 41 and 7 <= len(test) <= 9
    assert set(rows(train)) | set(rows(test)) == set(rows(whole.train()))
    assert not set(rows(train)) & set(rows(test))
    for row, number in enumerate(rows(test)):
        assert number == 7 or test.labels[row] == (number >= 100)
    assert train.name(0).startswith(str(tmp_path)) and list(train.classes) == ["cat", "dog"]
    assert rows(HeldOut(open_folder(str(tmp_path)), 0.2).test()) == rows(test)  # whoever asks, and again
    assert source.fingerprint() == source.source.fingerprint()


def test_blocks_of_a_subset():
    images = FakeImages(10)
    images.blocks = [3, 3, 4]
    subset = Subset(images, np.array([0, 2, 6, 9]))
    assert subset.blocks == [2, 2] and len(subset) == 4
    np.testing.assert_array_equal(subset.load(2), picture(6))


class OnlyTrain(ImageSource):
    def __init__(self, images, test=None):
        self.images, self.other = images, test

    def train(self):
        return self.images

    def test(self):
        return self.other


def test_refusals():
    unlabelled = FakeImages(4)
    with pytest.raises(ValueError, match=r"data.test_fraction=0.5: the images have no labels"):
        HeldOut(OnlyTrain(unlabelled), 0.5).train()
    with pytest.raises(ValueError, match=r"has a test part of 4 images already; leave this key at 0"):
        HeldOut(OnlyTrain(unlabelled, unlabelled), 0.5).test()
    with pytest.raises(ValueError, match=r"holds none of 3 images out"):
        HeldOut(OnlyTrain(Stored(contents(3), [0, 1, 2])), 0.5).train()


def test_stored_bytes_of_every_source(tmp_path):
    data = [encoded(picture(row)) for row in (1, 2, 1)]
    labels = [0, 0, 0]
    pq.write_table(
        pa.table({"image": [{"bytes": d, "path": ""} for d in data], "label": labels}), tmp_path / "x.parquet"
    )
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        for row, content in enumerate(data):
            info = tarfile.TarInfo(f"{row}.png")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    for source in (open_parquet(str(tmp_path / "x.parquet")), open_shards(str(tmp_path / "x.tar"))):
        images = source.train()
        assert [bytes(images.encoded(row)) for row in range(3)] == data
        assert [images.size(row) in (0, len(data[row])) for row in range(3)] == [True] * 3
        assert first_copies(images).tolist() == [0, 1, 0]
