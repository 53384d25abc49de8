"""Images in Parquet files in the Hugging Face layout, or in Arrow files of `save_to_disk`: a column of images, a column
of labels.

The image column is a struct {bytes, path}, plain binary, or text; where there are no bytes, the image is the file at
the path, relative to the folder of the table. Both columns are found by the `huggingface` entry of the schema
metadata, which also holds the class names, else by their usual names. Files are assigned to train, validation and test
by name, as on the hub ("test-00000-of-00001.parquet"); the test part is the first of test and validation whose rows
all have labels (negative or null labels mean none, as on the hub).

Up to `memory_gb` the encoded images are held in memory, which forked workers share. Beyond that, blocks of rows (row
groups, or slices of those above 256 MB) are read when needed and the last few are kept: the order then shuffles within
windows of as many blocks, and every worker reads every block of the window, so that row groups of at most some 10 MB
are advisable. Arrow files are mapped and need neither.
"""

import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dinoswap.data.filesystem import Unreadable, below_root, by_part, find_files, open_readable
from dinoswap.data.images import CorruptImage, Images, ImageSource, Labels, Pixels, decode, first_labelled
from dinoswap.data.order import SHUFFLE_WINDOW
from dinoswap.data.parquet_columns import Columns, check_images, class_names, find_columns
from dinoswap.data.parquet_labels import check_alike, read_labels
from dinoswap.data.table_files import SUFFIXES, TableFile, is_text, open_table, without_caches

_TRIED_PATHS = 8


class ParquetData(ImageSource):
    """`path`: a Parquet or Arrow file, a folder of them, or a glob pattern. Raises ValueError when nothing fits."""

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
        self.remarks: list[str] = []
        found, self.ignored = find_files(path, SUFFIXES)
        files = without_caches(found, self.ignored)
        self.names = dict(zip(files, map(str, below_root(files)), strict=True))
        self.tables = open_readable(files, open_table, self.remarks)
        parts = {part: [file for file in members if file in self.tables] for part, members in by_part(files).items()}
        self.parts = {part: members for part, members in parts.items() if members}
        if "train" not in self.parts:
            raise ValueError(f"data.path={path}: files for {sorted(self.parts)} but none to train on: rename them")
        tables = [self.tables[file] for file in self.parts["train"]]
        self.columns = find_columns(tables, image_column, label_column, self.remarks)
        self._opened: dict[str, ParquetImages] = {}
        if len(self._open("train")) == 0:
            raise ValueError(f"data.path={path}: no rows in {[str(f) for f in self.parts['train']]}")

    def train(self) -> Images:
        return self._open("train").held()

    def test(self) -> Images | None:
        test = self._test()
        return None if test is None else test.held()

    def fingerprint(self) -> str:
        """Of the files' names relative to the folder that holds them all, their footers, and the labels."""
        test = self._test()
        parts = [self._open("train").fingerprint(), "" if test is None else test.fingerprint()]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()

    def _test(self) -> "ParquetImages | None":
        found = first_labelled(self._open(part) for part in ("test", "validation") if part in self.parts)
        return found if isinstance(found, ParquetImages) else None

    def _open(self, part: str) -> "ParquetImages":
        """Opened once, so that remarks are made once."""
        if part not in self._opened:
            tables = [self.tables[file] for file in self.parts[part]]
            classes = self.columns.classes if part == "train" else self._checked_classes(tables)
            names = [self.names[file] for file in self.parts[part]]
            self._opened[part] = ParquetImages(tables, names, self.columns, classes, self.memory_gb, self.remarks)
        return self._opened[part]

    def _checked_classes(self, tables: Sequence[TableFile]) -> Sequence[str] | None:
        """The class names for `tables` of another part. Raises ValueError where they do not fit the training files."""
        check_images(tables, self.columns.image)
        if self.columns.label is None:
            return None
        together = [self.tables[self.parts["train"][0]], *tables]
        check_alike(together, self.columns.label)
        if self.columns.classes is not None:
            class_names(together, self.columns.label, [])
        return self._open("train").classes


class ParquetImages(Images):
    """The rows of `tables`, one after the other. `names`: of their files, relative to the root of the data set.

    Without `held` only what describes the tables, and the labels, are read.
    """

    def __init__(
        self,
        tables: Sequence[TableFile],
        names: Sequence[str],
        columns: Columns,
        classes: Sequence[str] | None,
        memory_gb: float,
        remarks: list[str],
    ) -> None:
        sizes = [table.blocks(columns.image) for table in tables]
        self.tables, self.names, self.column = tables, names, columns.image
        self._blocks = [(table, block) for table, rows in enumerate(sizes) for block in range(len(rows))]
        self._file_ends = np.cumsum([sum(rows) for rows in sizes])
        self._block_ends = np.cumsum([n for rows in sizes for n in rows])
        self.labels: Labels | None = None
        self.classes = classes
        if columns.label is not None:
            self.labels, self.classes = read_labels(tables, columns.label, classes, names, remarks)
        self._in_memory = sum(table.size(columns.image) for table in tables) <= memory_gb * 1e9
        self.blocks = [len(self)] if self._in_memory else [n for rows in sizes for n in rows]
        self._kept: OrderedDict[int, Cells | str] = OrderedDict()

    def held(self) -> "ParquetImages":
        """These images, read into memory where they fit. Raises ValueError when the files that they name are absent."""
        if self._in_memory and not self._kept:
            for block in range(len(self._blocks)):
                self._read(block)
        if len(self) and any(self._has_paths(table) for table in self.tables):
            self._check_paths()
        return self

    def __len__(self) -> int:
        return int(self._file_ends[-1])

    def load(self, row: int) -> Pixels:
        block = int(self._block_ends.searchsorted(row, side="right"))
        cells = self._read(block)
        if isinstance(cells, str):
            raise CorruptImage(self.name(row), cells)
        return cells.load(int(row - self._block_ends[block]), self.name(row))  # counted from the end of the block

    def name(self, row: int) -> str:
        """ "file#row of that file"."""
        file, row_of_file = self._place(row)
        return f"{self.tables[file].path}#{row_of_file}"

    def fingerprint(self) -> str:
        digest = hashlib.sha256(f"{len(self)} {self.column} {list(self.classes or ())}\n".encode())
        for name, table in zip(self.names, self.tables, strict=True):
            digest.update(f"{name} {table.description()}\n".encode(errors="surrogateescape"))
            if self._has_paths(table):
                digest.update(repr(table.column(self.column).to_pylist()).encode(errors="surrogatepass"))
        digest.update(b"" if self.labels is None else self.labels.tobytes())
        return digest.hexdigest()

    def _has_paths(self, table: TableFile) -> bool:
        return is_text(table.schema.field(self.column).type) or table.lacks_bytes(self.column)

    def _place(self, row: int) -> tuple[int, int]:
        """File, and row of that file."""
        file = int(self._file_ends.searchsorted(row, side="right"))
        return file, row - (int(self._file_ends[file - 1]) if file else 0)

    def _read(self, block: int) -> "Cells | str":
        """A block of rows, or why it cannot be read; the most recently used ones are kept."""
        if block not in self._kept:
            file, index = self._blocks[block]
            table = self.tables[file]
            try:
                self._kept[block] = Cells.of(table.read(self.column, index), table.path.parent)
            except Unreadable as error:
                self._kept[block] = f"the rows around it cannot be read: {error}"
        self._kept.move_to_end(block)
        if not self._in_memory and len(self._kept) > SHUFFLE_WINDOW:
            self._kept.popitem(last=False)
        return self._kept[block]

    def _check_paths(self) -> None:
        """Raises ValueError when none of a few rows names a file that is there."""
        reasons = []
        for row in np.linspace(0, len(self) - 1, _TRIED_PATHS).astype(int).tolist():
            try:
                self.load(row)
                return
            except CorruptImage as error:
                reasons.append(str(error))
        raise ValueError(f"column {self.column} holds paths, but no image is where they say: {reasons[0]}")


class Cells(NamedTuple):
    """Rows of an image column."""

    encoded: Any  # chunked array of binary; None: paths only
    paths: Any  # chunked array of strings; None: encoded images only
    folder: Path  # that paths are relative to

    @classmethod
    def of(cls, column: Any, folder: Path) -> "Cells":
        if is_text(column.type):
            return cls(None, column, folder)
        if not pa.types.is_struct(column.type):
            return cls(column, None, folder)
        encoded = pc.struct_field(column, "bytes")
        has_paths = encoded.null_count > 0 and column.type.get_field_index("path") >= 0
        return cls(encoded, pc.struct_field(column, "path") if has_paths else None, folder)

    def load(self, row: int, name: str) -> Pixels:
        """Raises CorruptImage."""
        if self.encoded is not None and (cell := self.encoded[row]).is_valid:
            return decode(cell.as_buffer(), name)
        path = None if self.paths is None else self.paths[row].as_py()
        if not path:
            raise CorruptImage(name, "no bytes in this row")
        file = self.folder / path
        try:
            if not file.is_file():
                raise CorruptImage(name, f"no file {file}")
            return decode(file.read_bytes(), name)
        except (FileNotFoundError, PermissionError, ValueError) as error:  # ValueError: a NUL in the path
            raise CorruptImage(name, f"{file}: {error}") from error
