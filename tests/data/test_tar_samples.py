"""Tar shards as others write, cut and damage them: the samples of a shard, or a line that names it."""

import io
import os
import shutil
import tarfile
from collections import Counter
from functools import partial

import numpy as np
import pytest
from data_fakes import encoded, picture

from dinoswap.data import tar_index as tar_index_module
from dinoswap.data.filesystem import Unreadable
from dinoswap.data.tar_index import tar_index
from dinoswap.data.tar_samples import BAD_JSON, SECOND_DOT, read_samples
from options import open_source

open_shards = partial(open_source, "webdataset")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def write(path, *members, format=tarfile.PAX_FORMAT):
    """Members (name, bytes), or (name, target, type) for links."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=format) as tar:
        for name, content, *kind in members:
            info = tarfile.TarInfo(name)
            if kind:
                info.type, info.linkname = kind[0], content
                tar.addfile(info)
            else:
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    return path


def samples(count, label=None):
    for i in range(count):
        yield f"{i:03d}.png", encoded(picture(i))
        yield from [] if label is None else [(f"{i:03d}.cls", str(label(i)).encode())]


def found(path):
    images = open_shards(str(path)).train()
    return [int(images.load(row)[0, 0, 0]) for row in range(len(images))]


# --- cut and damaged shards -------------------------------------------------------------------------------------------


def test_a_shard_cut_anywhere_has_all_its_samples_or_is_refused(tmp_path):
    whole = write(tmp_path / "whole.tar", *samples(12, int)).read_bytes()
    end = len(whole.rstrip(b"\0")) // 512 * 512 + 512  # the last block that is not empty
    path = tmp_path / "cut.tar"
    cuts = {*np.random.default_rng(0).integers(1, len(whole), 400).tolist(), end - 1, end, end + 1, end + 512}
    accepted = []
    for cut in sorted(cuts):
        path.write_bytes(whole[:cut])
        try:
            assert len(read_samples(path)[0]) == 12
            accepted.append(cut)
        except Unreadable as error:
            assert str(error).startswith(f"{path}: ")
    assert accepted == [cut for cut in sorted(cuts) if cut > end]


@pytest.mark.parametrize("format", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_mutated_shards_are_read_or_refused_and_nothing_else(tmp_path, format):
    long = ("a" * 150 + "/\N{LATIN SMALL LETTER E WITH ACUTE}.png", encoded(picture(1)))
    whole = write(tmp_path / "whole.tar", *samples(4, int), long, format=format).read_bytes()
    rng, path = np.random.default_rng(1), tmp_path / "mutated.tar"
    headers = [at for at in range(0, len(whole), 512) if whole[at + 257 : at + 262] == b"ustar"]
    for _ in range(250):
        mutated = bytearray(whole)
        at = int(rng.choice(headers)) + int(rng.integers(512))
        mutated[at : at + int(rng.integers(1, 9))] = rng.bytes(int(rng.integers(1, 9)))
        path.write_bytes(mutated)
        try:
            assert len(read_samples(path)[0]) <= 5
        except Unreadable as error:
            assert str(error).startswith(f"{path}: ") and "\n" not in str(error)


def test_a_header_that_claims_another_size_takes_no_memory_and_never_loops(tmp_path):
    whole = write(tmp_path / "whole.tar", *samples(2)).read_bytes()
    for size in (2**60, -512):
        header = bytearray(whole[:512])
        header[124:136] = (b"\x80" if size > 0 else b"\xff") + (size % 2**88).to_bytes(11, "big")
        header[148:156] = b" " * 8
        header[148:156] = b"%06o\0 " % sum(header)
        for kind in (b"0", b"x", b"L"):
            header[148:156] = b" " * 8
            header[156:157] = kind
            header[148:156] = b"%06o\0 " % sum(header)
            (tmp_path / "x.tar").write_bytes(bytes(header) + whole[512:])
            with pytest.raises(Unreadable, match=r"x\.tar: "):
                read_samples(tmp_path / "x.tar")


def test_archives_one_after_another_and_holes_are_no_end(tmp_path):
    whole = write(tmp_path / "a.tar", *samples(3)).read_bytes()
    for content in (whole + whole, whole[:512] + bytes(1024) + whole[1536:]):
        (tmp_path / "b.tar").write_bytes(content)
        with pytest.raises(Unreadable, match=r"b\.tar: "):
            read_samples(tmp_path / "b.tar")


def test_a_failing_disk_is_no_damage(tmp_path, monkeypatch):
    write(tmp_path / "a.tar", *samples(2))

    def fail(*_, **__):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(tarfile, "open", fail)
    with pytest.raises(OSError, match=r"Input/output error: '.*a\.tar'"):
        open_shards(str(tmp_path))


def test_unreadable_shards_among_good_ones_are_left_out_by_name(tmp_path):
    whole = write(tmp_path / "train-0.tar", *samples(4)).read_bytes()
    (tmp_path / "train-1.tar").write_bytes(whole[:700])
    (tmp_path / "train-2.tar").touch()
    (tmp_path / "test-0.tar").write_bytes(whole)
    source = open_shards(str(tmp_path))
    assert len(source.train()) == 4 and [shard.name for shard in source.parts["train"]] == ["train-0.tar"]
    assert len(source.remarks) == 1
    for words in ("2 of 3 files", "train-1.tar: unexpected end of data", "train-2.tar: empty"):
        assert words in source.remarks[0]
    (tmp_path / "train-0.tar").unlink()
    with pytest.raises(
        ValueError, match=r"none of 2 files can be read: .*train-1\.tar"
    ):  # and test-0 is not trained on
        open_shards(str(tmp_path))


# --- members ----------------------------------------------------------------------------------------------------------


def test_links_hidden_files_and_other_members(tmp_path):
    image = encoded(picture(7))
    path = write(
        tmp_path / "0.tar",
        ("a.png", image),
        ("a.cls", b"3"),
        ("copy.png", "a.png", tarfile.LNKTYPE),
        ("copy.cls", "a.cls", tarfile.LNKTYPE),
        ("elsewhere.png", "gone.png", tarfile.LNKTYPE),
        ("soft.png", "a.png", tarfile.SYMTYPE),
        ("pipe.png", "", tarfile.FIFOTYPE),
        ("._a.png", b"\0\5\26\7"),
        ("a.seg.png", image),
        ("a.jpg", image),
        ("a.mp4", b"-"),
        ("README", b"-"),
        ("only.txt", b"5"),
    )
    source = open_shards(str(path))
    assert found(path) == [7, 7] and source.train().labels.tolist() == [3, 3]
    assert source.ignored == Counter(
        {
            "hard link to no member": 1,
            "symbolic link": 1,
            "member that is no regular file": 1,
            "hidden file": 1,
            "second .png of a sample": 2,  # a.jpg is preferred
            ".mp4": 1,
            "member without a suffix": 1,
            "sample without an image": 1,
        }
    )
    assert not source.remarks


def test_second_dots_are_counted_and_told(tmp_path):
    path = write(tmp_path / "0.tar", *samples(3), *((f"{i}.05.png", encoded(picture(i))) for i in range(4)))
    source = open_shards(str(path))
    assert len(source.train()) == 3 and source.ignored == {SECOND_DOT: 4}
    assert len(source.remarks) == 1 and source.remarks[0].startswith("4 images in shards are left out")
    assert open_shards(str(path)).ignored == {SECOND_DOT: 4}  # from the index


@pytest.mark.parametrize("kind", ["jfif", "PNG", "Jpg", "tif", "bmp", "jp2", "avif", "webp", "ppm"])
def test_every_kind_that_pillow_decodes_is_an_image(tmp_path, kind):
    formats = {"jfif": "JPEG", "Jpg": "JPEG", "jp2": "JPEG2000", "tif": "TIFF"}
    data = encoded(picture(1, 16, 16), formats.get(kind, kind.upper()))
    images = open_shards(str(write(tmp_path / "0.tar", (f"0.{kind}", data)))).train()
    assert images.load(0).shape == (16, 16, 3)


def test_names_that_are_no_utf_8_and_names_of_a_megabyte(tmp_path):
    path = tmp_path / "0.tar"
    members = [(os.fsdecode(b"\xe9\xff.png"), encoded(picture(1))), ("b" * 1_000_000 + ".png", encoded(picture(2)))]
    write(path, *members, *samples(30), format=tarfile.GNU_FORMAT)
    images = open_shards(str(path)).train()
    assert len(images) == 32 and images.name(0) == f"{path}#\\xe9\\xff" and len(images.name(1)) > 1_000_000
    assert images.load(1)[0, 0, 0] == 2 and images.fingerprint()
    assert (tmp_path / "0.tar.index").stat().st_size < 1_100_000  # fixed width would be 32 MB


@pytest.mark.parametrize(
    ("labels", "expected", "classes"),
    [
        ([("cls", b"007"), ("cls", b"1\n")], [7, 1], None),
        ([("cls", b"-1"), ("cls", b"3")], None, None),
        ([("cls", b"-0"), ("cls", b"3")], [0, 3], None),
        ([("cls", b"1" + b"0" * 30), ("cls", b"2")], [0, 1], ["1" + "0" * 30, "2"]),
        ([("cls", b"5000000"), ("cls", b"2")], [1, 0], ["2", "5000000"]),
        ([("cls", b"9" * 5000), ("cls", b"2")], [1, 0], ["2", "9" * 5000]),
        ([("cls", "\N{MICRO SIGN}".encode()), ("cls", b"\xff")], [1, 0], ["\\xff", "\N{MICRO SIGN}"]),
        ([("json", b'{"label": 1e30}'), ("json", b'{"label": true}')], [1, 0], ["1", str(int(1e30))]),
        ([("json", b'{"label": 4.0}'), ("json", b'{"label": "3"}')], [4, 3], None),
        ([("json", b'{"label": -1}'), ("json", b'{"label": 3}')], None, None),
        ([("json", b'{"label": "\\ud800"}'), ("json", b'{"label": "a"}')], [0, 1], ["\\ud800", "a"]),
    ],
)
def test_labels_of_every_kind(tmp_path, labels, expected, classes):
    members = [
        m for i, (kind, text) in enumerate(labels) for m in ((f"{i}.png", encoded(picture(i))), (f"{i}.{kind}", text))
    ]
    images = open_shards(str(write(tmp_path / "0.tar", *members))).train()
    assert (images.labels if expected is None else images.labels.tolist()) == expected
    assert (images.classes and list(images.classes)) == classes


@pytest.mark.parametrize(
    "text",
    [
        b"\xff\xfe",
        b"{broken",
        b"[" * 100_000,
        b'{"label": [1, 2]}',
        b'{"label": 1.5}',
        b'{"label": ' + b"9" * 5000 + b"}",
        b"",
    ],
    ids=lambda text: repr(text[:12]),
)
def test_a_bad_json_member_costs_a_label_and_no_image(tmp_path, text):
    path = write(tmp_path / "0.tar", *samples(2), ("000.json", b'{"label": 1}'), ("001.json", text))
    source = open_shards(str(path))
    assert len(source.train()) == 2 and source.train().labels is None
    assert source.ignored == {BAD_JSON: 1}
    assert source.remarks == [f"labels are not used, because 1 of 2 images lack one, the first being {path}#001"]


def test_texts_in_one_part_and_numbers_in_the_other_are_refused(tmp_path):
    write(tmp_path / "train-0.tar", *samples(2, int))
    write(tmp_path / "test-0.tar", *samples(2, lambda i: "ab"[i]))
    with pytest.raises(ValueError, match=r"test-0\.tar.*labels are texts"):
        open_shards(str(tmp_path)).test()


def test_test_shards_of_the_same_folder_are_not_trained_on(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "train-0.tar", *samples(3))
    write(tmp_path / "test-0.tar", *samples(2))
    write(tmp_path / "extra-0.tar", *samples(1))
    source = open_shards(str(tmp_path), test_path="extra-0.tar")  # one path absolute, the other relative
    assert source.ignored == {"shard for testing": 2}
    assert {part: [shard.name for shard in shards] for part, shards in source.parts.items()} == {
        "train": ["train-0.tar"],
        "test": ["extra-0.tar"],
    }


# --- the index and the fingerprint ------------------------------------------------------------------------------------


def test_an_index_damaged_in_any_way_is_built_again(tmp_path, monkeypatch):
    path = write(tmp_path / "0.tar", *samples(5, int))
    expected, place = tar_index(path).digest(), tmp_path / "0.tar.index"
    whole, rng = place.read_bytes(), np.random.default_rng(0)
    built = []
    monkeypatch.setattr(tar_index_module, "read_samples", lambda shard: built.append(shard) or read_samples(shard))
    damaged = [b"", b"PK", whole[:-1], whole + b"x", bytes(len(whole))]
    for at in rng.integers(0, len(whole), 60).tolist():
        damaged.append(whole[:at] + bytes([whole[at] ^ (1 + int(rng.integers(255)))]) + whole[at + 1 :])
    for content in damaged:
        place.write_bytes(content)
        assert tar_index(path).digest() == expected
        assert place.read_bytes() == whole
    assert len(built) == len(damaged)
    place.unlink()
    place.mkdir()  # not even a file
    assert tar_index(path).digest() == expected


def test_the_fingerprint_is_of_names_and_indices_not_of_the_place(tmp_path):
    for name in ("train-0", "train-1", "test-0"):
        write(tmp_path / f"a/{name}.tar", *samples(3, int))
    first = open_shards(str(tmp_path / "a")).fingerprint()
    shutil.copytree(tmp_path / "a", tmp_path / "b/c")
    assert open_shards(str(tmp_path / "b/c")).fingerprint() == first
    assert open_shards(f"{tmp_path}/a/{{train-{{0..1}},test-0}}.tar").fingerprint() == first
    write(tmp_path / "b/c/test-0.tar", *samples(3, lambda i: i // 2))
    assert open_shards(str(tmp_path / "b/c")).fingerprint() != first
    other = [(name, encoded(picture(9)) if name == "002.png" else data) for name, data in samples(3, int)]  # as large
    write(tmp_path / "b/c/test-0.tar", *other)
    assert open_shards(str(tmp_path / "b/c")).fingerprint() != first
    (tmp_path / "a/train-1.tar").rename(tmp_path / "a/train-7.tar")
    assert open_shards(str(tmp_path / "a")).fingerprint() != first
