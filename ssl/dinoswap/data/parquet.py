"""Images in Parquet files in the Hugging Face layout: a column of encoded images, a column of labels.

The image column is a struct {bytes, path} or plain binary. Both columns are found by the `huggingface` entry of
the schema metadata, which also holds the class names, else by their usual names. Files are assigned to train,
validation and test by name, as on the hub ("test-00000-of-00001.parquet"); the test part is the first of test and
validation whose rows all have labels (negative or null labels mean none, as on the hub).

Up to `memory_gb` the encoded images are held in memory, which forked workers share. Beyond that, row groups are
read when needed and the last few are kept: the order then shuffles within windows of as many row groups, and every
worker reads every row group of the window, so that row groups of at most some 10 MB are advisable.
"""

from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from dinoswap.data.filesystem import by_part, find_files
from dinoswap.data.images import CorruptImage, Images, ImageSource, Labels, Pixels, decode, first_labelled
from dinoswap.data.order import SHUFFLE_WINDOW
from dinoswap.data.parquet_columns import Columns, find_columns


class ParquetData(ImageSource):
    """`path`: a Parquet file, a folder of them, or a glob pattern. Raises ValueError when nothing fits."""

    def __init__(
        self,
        path: str,
        image_column: str | None = None,
        label_column: str | None = None,
        memory_gb: float = 2.0,
    ) -> None:
        if memory_gb < 0:
            raise ValueError(f"data.memory_gb={memory_gb}: gigabytes of encoded images to hold, at least 0")
        self.memory_gb = memory_gb
        self.parts = by_part(find_files(path, ".parquet"))
        if "train" not in self.parts:
            raise ValueError(f"data.path={path}: files for {sorted(self.parts)} but none to train on: rename them")
        self.columns = find_columns(self.parts["train"], image_column, label_column)
        self._train = self._open("train")
        if len(self._train) == 0:
            raise ValueError(f"data.path={path}: no rows in {[str(f) for f in self.parts['train']]}")

    def train(self) -> Images:
        return self._train

    def test(self) -> Images | None:
        return first_labelled(self._open(part) for part in ("test", "validation") if part in self.parts)

    def _open(self, part: str) -> "ParquetImages":
        return ParquetImages(self.parts[part], self.columns, self.memory_gb)


class ParquetImages(Images):
    """The rows of `files`, one after the other."""

    def __init__(self, files: Sequence[Path], columns: Columns, memory_gb: float) -> None:
        metadata = [pq.read_metadata(file) for file in files]
        sizes = [[m.row_group(g).num_rows for g in range(m.num_row_groups)] for m in metadata]
        self.files = files
        self.columns = columns
        self.labels = _labels(files, columns)
        self.classes = columns.classes
        self._groups = [(file, g) for file, rows in enumerate(sizes) for g in range(len(rows))]
        self._file_ends = np.cumsum([sum(rows) for rows in sizes])
        self._group_ends = np.cumsum([n for rows in sizes for n in rows])
        in_memory = sum(_image_bytes(m, columns.image) for m in metadata) <= memory_gb * 1e9
        self.blocks = [len(self)] if in_memory else [n for rows in sizes for n in rows]
        self._kept: OrderedDict[int, Any] = OrderedDict()
        self._capacity = len(self._groups) if in_memory else SHUFFLE_WINDOW
        if in_memory:
            for group in range(len(self._groups)):
                self._read(group)

    def __len__(self) -> int:
        return int(self._file_ends[-1])

    def load(self, row: int) -> Pixels:
        group = int(self._group_ends.searchsorted(row, side="right"))
        cell = self._read(group)[int(row - self._group_ends[group])]  # counted from the end of the group
        if not cell.is_valid:
            raise CorruptImage(self.name(row), "no bytes in this row")
        return decode(cell.as_buffer(), self.name(row))

    def name(self, row: int) -> str:
        """ "file#row of that file"."""
        file = int(self._file_ends.searchsorted(row, side="right"))
        before = self._file_ends[file - 1] if file else 0
        return f"{self.files[file]}#{row - before}"

    def _read(self, group: int) -> Any:
        """The encoded images of a row group; the most recently used ones are kept."""
        if group not in self._kept:
            file, index = self._groups[group]
            name = self.columns.image
            # Neither reader threads nor pre-buffering: workers are forked and have one thread each.
            reader = pq.ParquetFile(self.files[file], pre_buffer=False)
            cells = reader.read_row_group(index, columns=[name], use_threads=False).column(name)
            self._kept[group] = pc.struct_field(cells, "bytes") if pa.types.is_struct(cells.type) else cells
        self._kept.move_to_end(group)
        if len(self._kept) > self._capacity:
            self._kept.popitem(last=False)
        return self._kept[group]


def _image_bytes(metadata: Any, column: str) -> int:
    groups = [metadata.row_group(g) for g in range(metadata.num_row_groups)]
    chunks = [group.column(c) for group in groups for c in range(metadata.num_columns)]
    return sum(c.total_uncompressed_size for c in chunks if c.path_in_schema.split(".")[0] == column)


def _labels(files: Sequence[Path], columns: Columns) -> Labels | None:
    """int64 [rows], or None unless every row has a label. Raises ValueError for a class without a number."""
    if columns.label is None:
        return None
    tables = [pq.ParquetFile(file).read([columns.label], use_threads=False) for file in files]
    values = pa.chunked_array([chunk for t in tables for chunk in t.column(0).chunks], tables[0].schema.field(0).type)
    if not pa.types.is_integer(values.type):
        strings = values.cast(pa.string())
        values = pc.index_in(strings, value_set=pa.array(columns.classes, pa.string()))
        unknown = pc.unique(strings.filter(pc.and_(pc.is_null(values), pc.is_valid(strings)))).to_pylist()
        if unknown:
            raise ValueError(f"{files[0].parent}: classes {unknown[:5]} do not occur in the training files")
    labels: Labels = values.cast(pa.int64()).fill_null(-1).to_numpy()
    return labels if len(labels) and (labels >= 0).all() else None
