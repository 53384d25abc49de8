"""Parquet and Arrow files as other programs write, split and damage them."""

import decimal
import json
import shutil
import subprocess
import sys
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from data_fakes import encoded, picture

from dinoswap.data import table_files
from dinoswap.data.images import CorruptImage
from dinoswap.data.table_files import open_table
from options import open_source

open_parquet = partial(open_source, "parquet")

HUB = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def table(rows, labels=None, features=None):
    columns = {"image": pa.array([{"bytes": encoded(picture(row)), "path": None} for row in rows], HUB)}
    if labels is not None:
        columns["label"] = labels if isinstance(labels, pa.Array) else pa.array(labels)
    made = pa.table(columns)
    text = features if isinstance(features, str) else json.dumps({"info": {"features": features}})
    return made if features is None else made.replace_schema_metadata({"huggingface": text})


def write(path, *args, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table(*args, **options), path, row_group_size=4)
    return path


def found(images):
    return [int(images.load(row)[0, 0, 0]) for row in range(len(images))]


# --- labels -----------------------------------------------------------------------------------------------------------

HUGE = 10**12


@pytest.mark.parametrize(
    ("kind", "values", "labels", "classes"),
    [
        *[(kind, [0, 1, 1], [0, 1, 1], None) for kind in (pa.int8(), pa.int64(), pa.uint8(), pa.uint64())],
        *[(kind, [0.0, 2.0, 1.0], [0, 2, 1], None) for kind in (pa.float32(), pa.float64())],
        (pa.bool_(), [False, True, True], [0, 1, 1], None),
        (pa.decimal128(5, 2), [decimal.Decimal("1.00"), decimal.Decimal(0), decimal.Decimal(2)], [1, 0, 2], None),
        *[
            (kind, ["b", "a", "b"], [1, 0, 1], ["a", "b"])
            for kind in (pa.string(), pa.large_string(), pa.string_view())
        ],
        *[(kind, [b"b", b"a", b"b"], [1, 0, 1], ["a", "b"]) for kind in (pa.binary(), pa.large_binary(), pa.binary(1))],
        (pa.dictionary(pa.int8(), pa.string()), ["b", "a", "b"], [1, 0, 1], ["a", "b"]),
        (pa.dictionary(pa.int8(), pa.int64()), [7, 5, 7], [7, 5, 7], None),
        (pa.int64(), [HUGE, 3, HUGE], [0, 1, 0], [str(HUGE), "3"]),
        (pa.int64(), [0, -1, -1], None, None),
        (pa.float64(), [0.0, float("nan"), 1.0], None, None),
        (pa.string(), ["a", None, "b"], None, None),
    ],
    ids=str,
)
@pytest.mark.parametrize("given", [None, "label"])
def test_labels_of_every_type(tmp_path, kind, values, labels, classes, given):
    write(tmp_path / "train-0.parquet", range(3), pa.array(values, kind))
    source = open_parquet(str(tmp_path), label_column=given)
    images = source.train()
    assert (images.labels if labels is None else images.labels.tolist()) == labels
    assert (images.classes and list(images.classes)) == classes
    missing = next((row for row, v in enumerate(values) if v is None or v in (-1,) or v != v), None)
    told = f"images lack one, the first being train-0.parquet#{missing}"
    assert [told in remark for remark in source.remarks] == [True] * (labels is None)


@pytest.mark.parametrize(
    ("kind", "values", "reason"),
    [
        (pa.list_(pa.int64()), [[1], [2]], "list<.*labels cannot be made of"),
        (pa.float64(), [0.5, 1.0], "truncated"),
        (pa.uint64(), [2**63, 1], "not in range"),
        (pa.binary(), [b"\xff", b"a"], "UTF8"),
        (pa.date32(), [1, 2], "date32.*labels cannot be made of"),
    ],
    ids=str,
)
def test_what_is_no_label_is_refused_with_the_remedy(tmp_path, kind, values, reason):
    path = write(tmp_path / "0.parquet", range(2), pa.array(values, kind))
    with pytest.raises(ValueError, match=rf"0\.parquet: column label .*{reason}.*data\.label_column=''"):
        open_parquet(str(path))
    assert open_parquet(str(path), label_column="").train().labels is None


def test_files_that_differ_are_unified_or_the_odd_one_is_named(tmp_path):
    write(tmp_path / "train-0.parquet", range(2), pa.array([0, 1], pa.int8()))
    write(tmp_path / "train-1.parquet", range(2), pa.array([True, False]))
    write(tmp_path / "train-2.parquet", range(2), pa.array([2.0, 3.0]))
    assert open_parquet(str(tmp_path)).train().labels.tolist() == [0, 1, 1, 0, 2, 3]
    write(tmp_path / "train-1.parquet", range(2), pa.array(["a", "b"]))
    with pytest.raises(ValueError, match=r"train-1\.parquet: column label is string, but .*train-0\.parquet has int8"):
        open_parquet(str(tmp_path))
    write(tmp_path / "train-1.parquet", range(2))
    source = open_parquet(str(tmp_path))
    assert source.train().labels is None and "train-1.parquet has no column label" in source.remarks[0]
    pq.write_table(table(range(2), [0, 1]).rename_columns(["img", "label"]), tmp_path / "train-1.parquet")
    with pytest.raises(ValueError, match=r"train-1\.parquet: no column image, .*it has \['img', 'label'\]"):
        open_parquet(str(tmp_path))


def test_columns_are_found_by_name_in_capital_letters_too(tmp_path):
    pq.write_table(table(range(2), [0, 1]).rename_columns(["Image", "Label"]), tmp_path / "0.parquet")
    assert open_parquet(str(tmp_path)).train().labels.tolist() == [0, 1]


def test_a_test_part_whose_labels_are_of_another_kind_is_refused(tmp_path):
    write(tmp_path / "train-0.parquet", range(2), [0, 1])
    write(tmp_path / "test-0.parquet", range(2), ["a", "b"])
    with pytest.raises(ValueError, match=r"test-0\.parquet: column label is string, but .*train-0\.parquet has int64"):
        open_parquet(str(tmp_path)).test()


def test_class_names_come_from_any_file_and_must_agree(tmp_path):
    names = {"label": {"_type": "ClassLabel", "names": ["cat", "dog"]}}
    write(tmp_path / "train-0.parquet", range(2), [0, 1])
    write(tmp_path / "train-1.parquet", range(2), [1, 0], features=names)
    assert list(open_parquet(str(tmp_path)).train().classes) == ["cat", "dog"]
    write(tmp_path / "train-1.parquet", range(2), [2, 0], features=names)
    with pytest.raises(ValueError, match="label 2, but the classes are 2"):
        open_parquet(str(tmp_path))
    names["label"]["names"] = ["dog", "cat"]
    write(tmp_path / "train-0.parquet", range(2), [0, 1], features=names)
    with pytest.raises(ValueError, match=r"train-1\.parquet: its classes .* are not those of .*train-0\.parquet"):
        open_parquet(str(tmp_path))


@pytest.mark.parametrize("text", ["{", '{"info": null}', "[]", "null", '{"info": {"features": 3}}', "[" * 100_000])
def test_metadata_that_describes_nothing_is_told_and_ignored(tmp_path, text):
    path = write(tmp_path / "0.parquet", range(2), [0, 1], features=text)
    source = open_parquet(str(path))
    assert source.train().labels.tolist() == [0, 1]
    assert source.remarks == [f"{path}: its huggingface metadata is no description of columns and is ignored"]


# --- damaged files ----------------------------------------------------------------------------------------------------


def test_a_file_damaged_anywhere_is_named(tmp_path):
    write(tmp_path / "train-0.parquet", range(2), [0, 1])
    path = tmp_path / "train-1.parquet"
    pq.write_table(table(range(10), [0, 1] * 5), path, compression="zstd")
    whole, rng = path.read_bytes(), np.random.default_rng(0)
    told = 0
    for at in [*rng.integers(0, len(whole), 60).tolist(), *range(4, 24), *range(len(whole) - 40, len(whole))]:
        path.write_bytes(whole[:at] + bytes([whole[at] ^ (1 + int(rng.integers(255)))]) + whole[at + 1 :])
        try:
            source = open_parquet(str(tmp_path))
            for row in range(len(source.train())):
                source.train().load(row)
            told += any("train-1.parquet" in remark for remark in source.remarks)
        except (ValueError, CorruptImage) as error:
            told += 1
            assert "train-1.parquet" in str(error) and "\n" not in str(error)
    assert told > 40


def test_damaged_pages_of_images_are_corrupt_rows(tmp_path):
    path = write(tmp_path / "0.parquet", range(12), [0] * 12)  # three row groups
    pages = pq.read_metadata(path).row_group(1).column(0)
    content = bytearray(path.read_bytes())
    content[pages.dictionary_page_offset or pages.data_page_offset] = 0xFF
    path.write_bytes(content)
    for memory_gb in (0.0, 2.0):
        images = open_parquet(str(path), memory_gb=memory_gb).train()
        assert [int(images.load(row)[0, 0, 0]) for row in (0, 3, 8, 11)] == [0, 3, 8, 11]
        with pytest.raises(CorruptImage, match=r"0\.parquet#5: the rows around it cannot be read: .*0\.parquet: "):
            images.load(5)


def test_unreadable_files_among_good_ones_are_left_out_by_name(tmp_path):
    whole = write(tmp_path / "train-0.parquet", range(3)).read_bytes()
    (tmp_path / "train-1.parquet").write_bytes(whole[:-30])
    (tmp_path / "train-2.parquet").touch()
    (tmp_path / "._train-0.parquet").write_bytes(b"\0\5\26\7")
    (tmp_path / "train-3.parquet").mkdir()
    (tmp_path / "readme.md").write_text("x")
    write(tmp_path / "test-0.parquet", range(9))
    source = open_parquet(str(tmp_path))
    assert found(source.train()) == [0, 1, 2] and source.ignored == {"hidden file": 1, ".md": 1, "empty folder": 1}
    assert len(source.remarks) == 1
    for words in ("2 of 3 files", "train-1.parquet: ", "train-2.parquet: empty"):
        assert words in source.remarks[0]
    (tmp_path / "train-0.parquet").unlink()
    with pytest.raises(
        ValueError, match=r"none of 2 files can be read: .*train-1\.parquet: "
    ):  # test-0 is not trained on
        open_parquet(str(tmp_path))


# --- blocks -----------------------------------------------------------------------------------------------------------


def test_large_row_groups_are_read_in_slices(tmp_path, monkeypatch):
    """By a naive reader: the whole column at once."""
    path = tmp_path / "0.parquet"
    pq.write_table(table(range(50), list(range(50))), path, row_group_size=30)
    size = sum(pq.read_metadata(path).row_group(0).column(c).total_uncompressed_size for c in (0, 1))
    monkeypatch.setattr(table_files, "BLOCK_BYTES", size // 4)
    monkeypatch.setattr(table_files, "_BATCH_ROWS", 4)
    images = open_parquet(str(path), memory_gb=0.0).train()
    assert images.blocks == [6] * 5 + [6, 6, 6, 2]  # 30 rows in five slices, 20 in four
    naive = pq.read_table(path).column("image").to_pylist()
    opened = open_table(path)
    slices = [opened.read("image", block) for block in range(len(images.blocks))]
    assert [len(cells) for cells in slices] == images.blocks
    assert [cell for cells in slices for cell in cells.to_pylist()] == naive
    for row in np.random.default_rng(0).permutation(50).tolist():
        assert images.load(row)[0, 0, 0] == row
        assert len(images._kept) <= 8


# --- paths and Arrow files --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["text", "struct", "mixed"])
def test_images_by_path_lie_relative_to_the_table(tmp_path, kind):
    for row in range(4):
        (tmp_path / "set/images").mkdir(parents=True, exist_ok=True)
        (tmp_path / f"set/images/{row}.png").write_bytes(encoded(picture(row)))
    paths = [
        "images/0.png",
        str(tmp_path / "set/images/1.png"),
        "images/gone.png",
        "images/3.png",
        None,
        "images",
        "x" * 9999,
    ]
    cells = [{"bytes": None, "path": path} for path in paths]
    if kind == "mixed":
        cells[0] = {"bytes": encoded(picture(0)), "path": "elsewhere/0.png"}
    column = pa.array(paths) if kind == "text" else pa.array(cells, HUB)
    pq.write_table(pa.table({"image": column, "label": [0, 1, 0, 1, 0, 1, 0]}), tmp_path / "set/0.parquet")
    images = open_parquet(str(tmp_path / "set/0.parquet")).train()
    assert [images.load(row)[0, 0, 0] for row in (0, 1, 3)] == [0, 1, 3]
    for row, reason in (
        (2, "gone.png: no such file"),
        (4, "no bytes in this row"),
        (5, "images: no such file"),
        (6, "xxx: no"),
    ):
        with pytest.raises(CorruptImage, match=rf"0\.parquet#{row}: .*{reason}"):
            images.load(row)
    first = open_parquet(str(tmp_path / "set/0.parquet")).fingerprint()
    if kind != "mixed":
        shutil.rmtree(tmp_path / "set/images")
        with pytest.raises(ValueError, match="column image holds paths, but no image is where they say"):
            open_parquet(str(tmp_path / "set/0.parquet")).train()
        assert open_parquet(str(tmp_path / "set/0.parquet")).fingerprint() == first


def save_to_disk(folder, *shards, stream=True):
    """As `Dataset.save_to_disk` of the package datasets does."""
    folder.mkdir(parents=True)
    names = [f"data-{i:05d}-of-{len(shards):05d}.arrow" for i in range(len(shards))]
    for name, shard in zip(names, shards, strict=True):
        new = pa.ipc.new_stream if stream else pa.ipc.new_file
        with pa.OSFile(str(folder / name), "wb") as sink, new(sink, shard.schema) as writer:
            writer.write_table(shard, max_chunksize=3)
    (folder / "state.json").write_text(
        json.dumps({"_data_files": [{"filename": name} for name in names], "_split": None})
    )
    (folder / "dataset_info.json").write_text("{}")
    return folder


@pytest.mark.parametrize("stream", [True, False])
def test_folders_of_save_to_disk(tmp_path, stream):
    names = {"image": {"_type": "Image"}, "label": {"_type": "ClassLabel", "names": ["cat", "dog"]}}
    (tmp_path / "set").mkdir()
    (tmp_path / "set/dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    shards = [table(range(5), [0, 1] * 2 + [0], names), table(range(5, 9), [1] * 4, names)]
    save_to_disk(tmp_path / "set/train", *shards, stream=stream)
    save_to_disk(tmp_path / "set/test", table([20, 21], [1, 0], names), stream=stream)
    save_to_disk(tmp_path / "other", table([30]))
    shutil.copy(tmp_path / "other/data-00000-of-00001.arrow", tmp_path / "set/train/cache-0123.arrow")
    source = open_parquet(str(tmp_path / "set"), memory_gb=0.0)
    assert found(source.train()) == list(range(9)) and source.train().blocks == [9]
    assert source.train().labels.tolist() == [0, 1, 0, 1, 0, 1, 1, 1, 1] and list(source.train().classes) == [
        "cat",
        "dog",
    ]
    assert found(source.test()) == [20, 21] and source.ignored == {"cache-*.arrow": 1}
    assert source.train().name(6).endswith("train/data-00001-of-00002.arrow#1")
    first = source.fingerprint()
    shutil.move(tmp_path / "set", tmp_path / "moved")
    assert open_parquet(str(tmp_path / "moved")).fingerprint() == first
    (tmp_path / "moved/train/data-00001-of-00002.arrow").unlink()
    with pytest.raises(ValueError, match=r"data-00001-of-00002\.arrow: not there, but the state\.json"):
        open_parquet(str(tmp_path / "moved"))
    (tmp_path / "moved/train/state.json").write_text("[]")
    with pytest.raises(ValueError, match=r"train/state\.json: no list of data files"):
        open_parquet(str(tmp_path / "moved"))


def test_an_arrow_file_cut_anywhere_is_refused(tmp_path):
    folder = save_to_disk(tmp_path / "set", table(range(12), [0] * 12))
    path = folder / "data-00000-of-00001.arrow"
    whole = path.read_bytes()
    for cut in np.random.default_rng(0).integers(0, len(whole), 100).tolist():
        path.write_bytes(whole[:cut])
        with pytest.raises(ValueError, match=r"data-00000-of-00001\.arrow: "):
            open_parquet(str(folder))


# --- the fingerprint --------------------------------------------------------------------------------------------------


def test_the_fingerprint_is_of_footers_labels_and_names_not_of_the_place(tmp_path):
    write(tmp_path / "a/train-0.parquet", range(6), [0, 1] * 3)
    write(tmp_path / "a/test-0.parquet", range(4), [0, 1] * 2)

    def of(folder):
        return open_parquet(str(tmp_path / folder)).fingerprint()

    first = of("a")
    shutil.copytree(tmp_path / "a", tmp_path / "b/c")
    assert of("b/c") == first
    others = {first}
    for part, rows, labels in (
        ("train", range(6), [1, 0] * 3),  # the same images, labelled otherwise
        ("train", [0, 1, 2, 3, 4, 9], [0, 1] * 3),  # another image
        ("train", range(7), [0, 1] * 3 + [0]),  # one more
        ("test", [0, 1, 2, 9], [0, 1] * 2),
    ):
        shutil.rmtree(tmp_path / "b/c")
        shutil.copytree(tmp_path / "a", tmp_path / "b/c")
        write(tmp_path / f"b/c/{part}-0.parquet", rows, labels)
        others.add(of("b/c"))
    (tmp_path / "a/train-0.parquet").rename(tmp_path / "a/train-1.parquet")
    others.add(of("a"))
    assert len(others) == 6


def test_fingerprints_read_no_images_and_import_no_torch(tmp_path, monkeypatch):
    write(tmp_path / "train-0.parquet", range(6), [0, 1] * 3)
    write(tmp_path / "test-0.parquet", range(4), [0, 1] * 2)
    with monkeypatch.context() as patch:
        patch.setattr(table_files.ParquetTable, "read", lambda *_: pytest.fail("read a column of images"))
        open_parquet(str(tmp_path)).fingerprint()
    code = (
        "import sys; from dinoswap.data.parquet import ParquetData; import dinoswap.data.webdataset;"
        f"ParquetData(path={str(tmp_path)!r}, image_column=None, label_column=None, memory_gb=2.0).fingerprint();"
        "sys.exit('torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
