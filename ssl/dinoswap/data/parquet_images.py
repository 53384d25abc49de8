"""Reads images by row from the image column of tables."""

import errno
import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dinoswap.data.block_cache import cached_block
from dinoswap.data.decoding import CorruptImage, Decoding, Pixels, decode
from dinoswap.data.file_tree import read_image
from dinoswap.data.filesystem import Unreadable, sampled
from dinoswap.data.images import Images
from dinoswap.data.labels import Named
from dinoswap.data.order import SHUFFLE_WINDOW
from dinoswap.data.table_files import ArrowTable, TableFile, is_text

_TRIED_PATHS = 8
_SHOWN = 200  # characters of what should be a path


class ParquetImages(Images):
    """Holds the rows of `tables`, one table after the other. `names` are those of their files, relative to the root of
    the data set. Only the metadata of the tables is read until an image is requested. Blocks of Parquet files beyond
    `memory_gb` are kept in the folder `cache`, unless that is None."""

    def __init__(
        self,
        tables: Sequence[TableFile],
        names: Sequence[str],
        column: str,
        labels: Named,
        memory_gb: float,
        decoding: Decoding,
        cache: Path | None = None,
    ) -> None:
        sizes = [table.blocks(column) for table in tables]
        self.tables, self.names, self.column, self.decoding, self.cache = tables, names, column, decoding, cache
        self._blocks = [(table, block) for table, rows in enumerate(sizes) for block in range(len(rows))]
        self._file_ends = np.cumsum([sum(rows) for rows in sizes])
        self._block_ends = np.cumsum([count for rows in sizes for count in rows])
        self.labels, self.classes = labels
        self._in_memory = sum(table.size(column) for table in tables) <= memory_gb * 1e9
        self.blocks = [len(self)] if self._in_memory else [count for rows in sizes for count in rows]
        self._kept: OrderedDict[int, Cells | str] = OrderedDict()

    def held(self) -> "ParquetImages":
        """Returns these images after reading them into memory, if they fit. Raises ValueError when the files that they
        name are absent."""
        if self._in_memory and not self._kept:
            for block in range(len(self._blocks)):
                self._read(block)
        if len(self) and any(self._has_paths(table) for table in self.tables):
            self._check_paths()
        return self

    def __len__(self) -> int:
        return int(self._file_ends[-1])

    def load(self, row: int) -> Pixels:
        cells, row_of_block = self._cell(row)
        return cells.load(row_of_block, self.name(row), self.decoding)

    def encoded(self, row: int) -> bytes | memoryview:
        cells, row_of_block = self._cell(row)
        return cells.data(row_of_block, self.name(row), self.decoding)

    def value(self, row: int) -> Any:
        """Returns what a row of a column that holds no images has, such as a list of numbers; None where it has
        nothing. Raises CorruptImage when the rows around it cannot be read."""
        cells, row_of_block = self._cell(row)
        return cells.images[row_of_block].as_py()

    def _cell(self, row: int) -> "tuple[Cells, int]":
        """Returns the block that holds a row, and the negative index of the row in it, counted from the end of the
        block. Raises CorruptImage when the block cannot be read."""
        block = int(self._block_ends.searchsorted(row, side="right"))
        cells = self._read(block)
        if isinstance(cells, str):
            raise CorruptImage(self.name(row), cells)
        return cells, int(row - self._block_ends[block])

    def name(self, row: int) -> str:
        """Returns "file#row of that file"."""
        file, row_of_file = self._place(row)
        return f"{self.tables[file].path}#{row_of_file}"

    def fingerprint(self) -> str:
        digest = hashlib.sha256(f"{len(self)} {self.column} {list(self.classes or ())}\n".encode())
        for name, table in zip(self.names, self.tables, strict=True):
            digest.update(f"{name} {table.description()}\n".encode(errors="surrogateescape"))
            digest.update(sampled(table.path))
            if self._has_paths(table):
                digest.update(repr(table.column(self.column).to_pylist()).encode(errors="surrogatepass"))
        digest.update(b"" if self.labels is None else self.labels.tobytes())
        return digest.hexdigest()

    def _has_paths(self, table: TableFile) -> bool:
        """Tells whether some images of a table are stored as paths of files."""
        return is_text(table.schema.field(self.column).type) or table.lacks_bytes(self.column)

    def _place(self, row: int) -> tuple[int, int]:
        """Returns the number of the file that holds a row, and the row of that file."""
        file = int(self._file_ends.searchsorted(row, side="right"))
        return file, row - (int(self._file_ends[file - 1]) if file else 0)

    def _read(self, block: int) -> "Cells | str":
        """Returns a block of rows, or the reason why it cannot be read. The blocks that were used last are kept in
        memory."""
        if block not in self._kept:
            file, index = self._blocks[block]
            table = self.tables[file]
            try:
                self._kept[block] = Cells.of(self._cells(table, index), table.path.parent)
            except Unreadable as error:
                self._kept[block] = f"the rows around it cannot be read: {error}"
        self._kept.move_to_end(block)
        if not self._in_memory and len(self._kept) > SHUFFLE_WINDOW:
            self._kept.popitem(last=False)
        return self._kept[block]

    def _cells(self, table: TableFile, block: int) -> Any:
        """Returns the column of a block of `table` as a chunked array. Raises Unreadable for damaged pages."""
        if self.cache is None or self._in_memory or isinstance(table, ArrowTable):
            return table.read(self.column, block)
        return cached_block(self.cache, table, self.column, block)

    def _check_paths(self) -> None:
        """Raises ValueError when none of a few rows can be loaded."""
        reasons = []
        for row in np.linspace(0, len(self) - 1, _TRIED_PATHS).astype(int).tolist():
            try:
                self.load(row)
                return
            except CorruptImage as error:
                reasons.append(str(error))
        raise ValueError(f"column {self.column} holds paths, but no image is where they say: {reasons[0]}")


class Cells(NamedTuple):
    """Holds consecutive rows of an image column: encoded images, paths of files relative to `folder`, or both."""

    images: Any  # chunked array of binary; None: paths only
    paths: Any  # chunked array of strings; None: encoded images only
    folder: Path  # that paths are relative to

    @classmethod
    def of(cls, column: Any, folder: Path) -> "Cells":
        """Returns the cells of a column whose table lies in `folder`."""
        if is_text(column.type):
            return cls(None, column, folder)
        if not pa.types.is_struct(column.type):
            return cls(column, None, folder)
        images = pc.struct_field(column, "bytes")
        has_paths = images.null_count > 0 and column.type.get_field_index("path") >= 0
        return cls(images, pc.struct_field(column, "path") if has_paths else None, folder)

    def data(self, row: int, name: str, decoding: Decoding) -> bytes | memoryview:
        """Returns the encoded image of a row. Raises CorruptImage when there is none, or its file cannot be read."""
        if self.images is not None and (cell := self.images[row]).is_valid:
            return memoryview(cell.as_buffer())
        path = None if self.paths is None else self.paths[row].as_py()
        if not path:
            raise CorruptImage(name, "no bytes in this row")
        file = self.folder / path
        if not _is_regular(file):
            raise CorruptImage(name, f"{str(file)[:_SHOWN]}: no such file")
        try:
            return read_image(file, decoding)
        except CorruptImage as error:
            raise CorruptImage(name, f"{file}: {error.reason}") from error

    def load(self, row: int, name: str, decoding: Decoding) -> Pixels:
        """Returns the pixels of a row, uint8 [H, W, 3]. Raises CorruptImage, which names the file if the image is in
        one."""
        data = self.data(row, name, decoding)
        try:
            return decode(data, name, decoding)
        except CorruptImage as error:
            if isinstance(data, memoryview):
                raise
            raise CorruptImage(name, f"{self.folder / self.paths[row].as_py()}: {error.reason}") from error


def _is_regular(file: Path) -> bool:
    """Tells whether a path is a regular file. A pipe is not, since reading it would never end, nor is text that cannot
    be a path. Raises OSError for a disk that fails."""
    try:
        return file.is_file()
    except OSError as error:
        if error.errno in (errno.ENAMETOOLONG, errno.EACCES, errno.EPERM):
            return False
        raise
