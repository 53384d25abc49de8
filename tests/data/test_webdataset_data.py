import io
import json
import os
import tarfile
from functools import partial

import numpy as np
import pytest
import webdataset
from data_fakes import encoded, picture

from dinoswap.data import tar_index as tar_index_module
from dinoswap.data.images import CorruptImage
from dinoswap.data.order import Order
from dinoswap.data.tar_index import tar_index
from options import open_source

open_shards = partial(open_source, "webdataset")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def write(path, members):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def shard(path, rows, label=lambda row: {"cls": str(row % 3).encode()}):
    """Samples of `picture(row)`, each with the members that `label` gives."""
    members = {}
    for row in rows:
        members[f"{row:06d}.png"] = encoded(picture(row))
        members |= {f"{row:06d}.{kind}": data for kind, data in label(row).items()}
    return write(path, members)


def rows(images):
    pixels = [images.load(i)[0, 0] for i in range(len(images))]
    return [int(p[0]) + 256 * int(p[1]) for p in pixels]


def test_shards_that_the_webdataset_package_wrote(tmp_path):
    for i in range(2):
        with webdataset.TarWriter(str(tmp_path / f"train-{i:03d}.tar")) as sink:
            for row in range(5 * i, 5 * i + 5):
                sink.write({"__key__": f"sample{row}", "png": encoded(picture(row)), "cls": row % 3})
    source = open_shards(f"{tmp_path}/train-{{000..001}}.tar")
    train = source.split("train")
    assert rows(train) == list(range(10)) and train.blocks == [5, 5]
    assert train.labels.tolist() == [row % 3 for row in range(10)]
    assert train.name(7) == f"{tmp_path}/train-001.tar#sample7"
    assert source.split("test") is None


def test_parts_by_name_and_by_test_path(tmp_path):
    shard(tmp_path / "a/train-0.tar", [0, 1])
    shard(tmp_path / "a/val-0.tar", [2])
    other = shard(tmp_path / "b/0.tar", [3])
    assert rows(open_shards(str(tmp_path / "a")).split("train")) == [0, 1]
    assert rows(open_shards(str(tmp_path / "a")).split("test")) == [2]
    assert rows(open_shards(str(tmp_path / "a/train-*.tar"), test_path=str(other)).split("test")) == [3]


@pytest.mark.parametrize(
    ("label", "expected"),
    [
        (lambda row: {"json": json.dumps({"label": row}).encode()}, [0, 1, 2]),
        (lambda row: {"txt": f"{row}\n".encode()}, [0, 1, 2]),
        (lambda row: {"txt": b"a caption"}, None),
        (lambda row: {}, None),
        (lambda row: {"cls": b"zebra" if row else b"ant"}, [0, 1, 1]),
        (lambda row: {"cls": b"1"} if row else {}, None),
        (lambda row: {"json": b'{"caption": "x"}', "cls": b"2"}, [2, 2, 2]),
    ],
)
def test_labels(tmp_path, label, expected):
    labels = open_shards(str(shard(tmp_path / "0.tar", range(3), label))).split("train").labels
    assert (labels if labels is None else labels.tolist()) == expected


def test_folders_other_members_and_capital_letters(tmp_path):
    data = encoded(picture(1))
    members = {"x/0.JPG": data, "y/0.png": data, "y/0.seg.png": b"-", "readme": b"-", "z/1.txt": b"5", ".hidden": b"-"}
    images = open_shards(str(write(tmp_path / "0.tar", members))).split("train")
    assert [images.name(i).split("#")[1] for i in range(len(images))] == ["x/0", "y/0"]
    assert rows(images) == [1, 1]


def test_only_the_samples_asked_for_are_read(tmp_path, monkeypatch):
    shard(tmp_path / "train-0.tar", range(50))
    images = open_shards(str(tmp_path)).split("train")
    read = []
    monkeypatch.setattr("dinoswap.data.webdataset.decode", lambda data, name, decoding: read.append(len(data)))
    for row in Order(images.blocks, 0).rows(np.arange(5)).tolist():
        images.load(row)
    assert len(read) == 5 and sum(read) == sum(len(encoded(picture(r))) for r in Order([50], 0).rows(np.arange(5)))


def test_the_index_is_kept_and_renewed(tmp_path, monkeypatch):
    path = shard(tmp_path / "0.tar", [1, 2])
    first = tar_index(path)
    assert (tmp_path / "0.tar.index").exists() and len(list(tmp_path.glob("*"))) == 2

    def fail(shard):
        raise AssertionError("built again")

    with monkeypatch.context() as patch:
        patch.setattr(tar_index_module, "read_samples", fail)
        again = tar_index(path)
    assert again.digest() == first.digest() and again.ignored == first.ignored
    shard(path, [7, 8, 9])
    os.utime(path, ns=(1, 1))
    assert list(tar_index(path).keys) == [b"000007", b"000008", b"000009"]


def test_beside_a_read_only_shard_the_users_cache_is_used(tmp_path, monkeypatch):
    path = shard(tmp_path / "0.tar", [1])
    real = tar_index_module.write_atomically

    def read_only(place, data):
        if place.parent == tmp_path:
            raise PermissionError(place)
        real(place, data)

    monkeypatch.setattr(tar_index_module, "write_atomically", read_only)
    index = tar_index(path)
    kept = list((tmp_path / "cache/dinoswap").iterdir())
    assert len(kept) == 1 and not (tmp_path / "0.tar.index").exists()
    monkeypatch.setattr(tar_index_module, "read_samples", lambda shard: None)
    assert list(tar_index(path).keys) == list(index.keys)


def test_damaged_samples_are_corrupt_and_damaged_shards_refused(tmp_path):
    data = encoded(picture(0))
    images = open_shards(str(write(tmp_path / "a.tar", {"0.png": data, "1.png": data[:50]}))).split("train")
    with pytest.raises(CorruptImage, match=r"a.tar#1: "):
        images.load(1)
    whole = shard(tmp_path / "b.tar", range(3)).read_bytes()
    (tmp_path / "b.tar").write_bytes(whole[: len(whole) // 4 + 100])
    with pytest.raises(ValueError, match=r"b.tar: .*complete, uncompressed tar"):
        open_shards(str(tmp_path / "b.tar"))
    with tarfile.open(tmp_path / "c.tar", "w:gz") as tar:
        tar.add(tmp_path / "a.tar", "a.tar")
    with pytest.raises(ValueError, match=r"c.tar: compressed \(gzip\): it must be a plain tar"):
        open_shards(str(tmp_path / "c.tar"))


def test_refusals(tmp_path):
    with pytest.raises(ValueError, match=r"data.path=.*train-1.tar: nothing found.*\.tar"):
        shard(tmp_path / "train-0.tar", [0])
        open_shards(f"{tmp_path}/train-{{0..1}}.tar")
    with pytest.raises(ValueError, match=r"data.test_path=.*none.tar: nothing found"):
        open_shards(str(tmp_path), test_path=str(tmp_path / "none.tar"))
    with pytest.raises(ValueError, match="no images among the members"):
        open_shards(str(write(tmp_path / "e.tar", {"0.cls": b"1"})))
    shard(tmp_path / "test-0.tar", [0], lambda row: {"cls": b"ant"})
    shard(tmp_path / "train-0.tar", [0], lambda row: {"cls": b"bee"})
    (tmp_path / "e.tar").unlink()
    with pytest.raises(ValueError, match=r"\['ant'\] do not occur"):
        open_shards(str(tmp_path)).split("test")
