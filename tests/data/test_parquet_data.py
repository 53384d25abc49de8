import errno
import json
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from data_fakes import encoded, one_pipeline, picture

from dinoswap.data import block_cache
from dinoswap.data.images import CorruptImage
from dinoswap.data.order import Order
from dinoswap.data.steps import StepDataset, loader
from dinoswap.data.table_files import ParquetTable
from options import open_source

open_parquet = partial(open_source, "parquet")


def write(path, rows, labels=None, *, image="image", label="label", struct=True, features=None, group=4):
    """A Parquet file of `picture(row)` for each row; None: a row without bytes."""
    data = [None if row is None else encoded(picture(row)) for row in rows]
    columns = {image: [{"bytes": d, "path": None} for d in data] if struct else data}
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())]) if struct else pa.binary()
    arrays = {image: pa.array(columns[image], kind)}
    if labels is not None:
        arrays[label] = pa.array(labels)
    table = pa.table(arrays)
    if features:
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, row_group_size=group)
    return path


def assert_rows(images, rows):
    assert len(images) == len(rows)
    for i, row in enumerate(rows):
        np.testing.assert_array_equal(images.load(i), picture(row))


def test_hub_layout_with_several_files(tmp_path):
    names = {"image": {"_type": "Image"}, "label": {"_type": "ClassLabel", "names": ["cat", "dog"]}}
    write(tmp_path / "data/train-00001-of-00002.parquet", range(10, 15), [1] * 5, features=names)
    write(tmp_path / "data/train-00000-of-00002.parquet", range(10), [0, 1] * 5, features=names)
    write(tmp_path / "data/test-00000-of-00001.parquet", [20, 21], [1, 0], features=names)
    source = open_parquet(str(tmp_path))
    train, test = source.split("train"), source.split("test")
    assert_rows(train, range(15))
    assert train.labels.tolist() == [0, 1] * 5 + [1] * 5 and train.label(14) == 1
    assert list(train.classes) == ["cat", "dog"] and train.blocks == [15]
    assert train.name(11).endswith("train-00001-of-00002.parquet#1")
    assert_rows(test, [20, 21])
    assert test.labels.tolist() == [1, 0]


@pytest.mark.parametrize("struct", [True, False])
def test_columns_by_name_and_plain_binary(tmp_path, struct):
    path = write(tmp_path / "x.parquet", [1, 2], [3, 4], image="img", label="fine_label", struct=struct)
    train = open_parquet(str(path)).split("train")
    assert_rows(train, [1, 2])
    assert train.labels.tolist() == [3, 4] and train.classes is None


def test_named_columns_and_text_labels(tmp_path):
    write(tmp_path / "train.parquet", [1, 2, 3], ["b", "a", "b"], image="scan", label="tissue")
    write(tmp_path / "val.parquet", [4], ["b"], image="scan", label="tissue")
    source = open_parquet(str(tmp_path), image_column="scan", label_column="tissue")
    assert source.split("train").labels.tolist() == [1, 0, 1]
    assert list(source.split("train").classes) == ["a", "b"]
    assert source.split("test").labels.tolist() == [1]
    write(tmp_path / "val.parquet", [4], ["c"], image="scan", label="tissue")
    with pytest.raises(ValueError, match=r"\['c'\] do not occur in the training"):
        open_parquet(str(tmp_path), image_column="scan", label_column="tissue").split("test")


def test_unlabelled_trains_and_has_no_test_part(tmp_path):
    write(tmp_path / "train.parquet", [1, 2])
    write(tmp_path / "test.parquet", [3])
    source = open_parquet(str(tmp_path))
    assert source.split("train").labels is None and source.split("train").label(0) is None
    assert source.split("test") is None


@pytest.mark.parametrize("hidden", [[-1, -1], [None, 1]])
def test_hidden_test_labels_fall_through_to_validation(tmp_path, hidden):
    write(tmp_path / "train-0.parquet", [1, 2], [0, 1])
    write(tmp_path / "test-0.parquet", [3, 4], hidden)
    write(tmp_path / "validation-0.parquet", [5], [1])
    assert_rows(open_parquet(str(tmp_path)).split("test"), [5])


def test_parts_by_folder_name_and_pattern(tmp_path):
    for part, row in (("train", 1), ("test", 2), ("extra", 3)):
        write(tmp_path / "test" / part / "0000.parquet", [row], [0])  # the first "test" is common to all
    source = open_parquet(str(tmp_path))
    assert_rows(source.split("train"), [3, 1])
    assert_rows(source.split("test"), [2])
    pattern = open_parquet(f"{tmp_path}/test/{{train,test}}/*.parquet")
    assert_rows(pattern.split("train"), [1])
    assert_rows(open_parquet(str(tmp_path / "test/test/0000.parquet")).split("train"), [2])


def test_on_demand_equals_in_memory(tmp_path):
    for i in range(3):
        write(tmp_path / f"part-{i}.parquet", range(100 * i, 100 * i + 17), list(range(17)), group=2)
    memory, demand = (open_parquet(str(tmp_path), memory_gb=gb).split("train") for gb in (2.0, 0.0))
    assert memory.blocks == [51] and demand.blocks == ([2] * 8 + [1]) * 3
    for row in np.random.default_rng(0).permutation(51).tolist():
        np.testing.assert_array_equal(demand.load(row), memory.load(row))
        assert demand.name(row) == memory.name(row)
        assert len(demand._kept) <= 8
    assert memory.labels.tolist() == demand.labels.tolist()


@pytest.mark.parametrize("memory_gb", [2.0, 0.0])
def test_forked_workers_read_the_same(tmp_path, memory_gb):
    write(tmp_path / "a.parquet", range(40))
    images = open_parquet(str(tmp_path), memory_gb=memory_gb).split("train")
    steps = StepDataset(images, Order(images.blocks, 0), *one_pipeline(8), 0, 8)
    plain, forked = (list(loader(steps, 0, 6, workers, False)) for workers in (0, 1))
    for a, b in zip(plain, forked, strict=True):
        assert a.indices.equal(b.indices) and a.global_crops.equal(b.global_crops)


@pytest.fixture
def blocks_read(monkeypatch):
    """(file, block) of each block that is read from a Parquet file."""
    read, blocks = ParquetTable.read, []

    def noted(table, column, block):
        blocks.append((table.path.name, block))
        return read(table, column, block)

    monkeypatch.setattr(ParquetTable, "read", noted)
    return blocks


def test_workers_share_the_blocks_of_a_node(tmp_path, blocks_read):
    for i in range(2):
        write(tmp_path / f"data/part-{i}.parquet", range(100 * i, 100 * i + 20), group=2)
    cache = tmp_path / "cache"
    workers = [open_parquet(str(tmp_path / "data"), memory_gb=0.0, cache=str(cache)).split("train") for _ in range(4)]
    begin, allocated = threading.Barrier(4), pa.total_allocated_bytes()

    def rows_of(images):
        begin.wait()
        return [images.load(row) for row in range(40)]

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(rows_of, workers))
    for images in found:
        np.testing.assert_array_equal(images, [picture(100 * (row // 20) + row % 20) for row in range(40)])
    assert sorted(blocks_read) == [(f"part-{i}.parquet", block) for i in range(2) for block in range(10)]
    assert {path.name for path in cache.rglob("*") if path.is_file()} == {"block.arrow"}
    assert pa.total_allocated_bytes() <= allocated  # what is kept is mapped


def test_a_block_of_another_state_of_its_file_is_read_again(tmp_path, blocks_read):
    for rows in (range(8), range(50, 58)):
        path = write(tmp_path / "a.parquet", rows, group=4)
        for _ in range(2):
            train = open_parquet(str(path), memory_gb=0.0, cache=str(tmp_path / "cache")).split("train")
            assert_rows(train, rows)
    assert blocks_read == [("a.parquet", 0), ("a.parquet", 1)] * 2


def test_a_full_disk_is_told_with_the_key(tmp_path, monkeypatch):
    def full(path, content):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    monkeypatch.setattr(block_cache, "write_atomically", full)
    path = write(tmp_path / "a.parquet", range(8))
    train = open_parquet(str(path), memory_gb=0.0, cache=str(tmp_path / "cache")).split("train")
    with pytest.raises(OSError, match=r"No space left on device: data\.cache=.* as much room as the encoded images"):
        train.load(0)


def test_rows_without_bytes_are_corrupt(tmp_path):
    path = write(tmp_path / "a.parquet", [1, None])
    images = open_parquet(str(path)).split("train")
    with pytest.raises(CorruptImage, match=r"a.parquet#1: no bytes"):
        images.load(1)


def test_refusals(tmp_path):
    with pytest.raises(ValueError, match=r"data.path=.*nowhere: nothing found.*\.parquet"):
        open_parquet(str(tmp_path / "nowhere"))
    with pytest.raises(ValueError, match=r"nothing found.*\.parquet"):
        open_parquet(str(tmp_path))
    path = str(write(tmp_path / "a.parquet", [1], [0]))
    with pytest.raises(ValueError, match=r"data.image_column=pic: the columns are \['image', 'label'\]"):
        open_parquet(path, image_column="pic")
    with pytest.raises(ValueError, match=r"data.memory_gb=-1"):
        open_parquet(path, memory_gb=-1)
    with pytest.raises(ValueError, match="no rows"):
        open_parquet(str(write(tmp_path / "empty.parquet", [], [])))
    pq.write_table(pa.table({"x": [1]}), tmp_path / "b.parquet")
    with pytest.raises(ValueError, match="no column of images"):
        open_parquet(str(tmp_path / "b.parquet"))
    pq.write_table(pa.table({"left": [b"1"], "right": [b"2"]}), tmp_path / "c.parquet")
    with pytest.raises(ValueError, match=r"\['left', 'right'\] could all be the image: set data.image_column"):
        open_parquet(str(tmp_path / "c.parquet"))
    write(tmp_path / "only/test-0.parquet", [1])
    write(tmp_path / "only/test-1.parquet", [1])
    with pytest.raises(ValueError, match="none to train on"):
        open_parquet(str(tmp_path / "only"))
