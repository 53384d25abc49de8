"""Reads files that hold a table of images: Parquet, and Arrow as the package `datasets` writes it (`save_to_disk`).

Both are read a block of rows at a time. A block of a Parquet file is a row group, or a slice of one that holds more
than 256 MB of the column; an Arrow file is mapped into memory and is one block, since its rows are read at random.
"""

import hashlib
import json
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from dinoswap.data.filesystem import Unreadable, damage_named

SUFFIXES = (".parquet", ".arrow")
BLOCK_BYTES = 256_000_000
_BATCH_ROWS = 64  # rows decoded at once: Arrow cannot hold 2 GB of a struct's bytes in one array
_END_OF_STREAM = b"\xff\xff\xff\xff\0\0\0\0"


class TableFile(ABC):
    """Represents a table in a file, of which only the metadata has been read. Raises Unreadable when the file is
    damaged."""

    path: Path
    schema: pa.Schema

    @abstractmethod
    def blocks(self, column: str) -> Sequence[int]:
        """Returns the number of rows of each consecutive block of `column`."""

    @abstractmethod
    def size(self, column: str) -> int:
        """Returns the number of bytes of memory that holding `column` takes."""

    @abstractmethod
    def read(self, column: str, block: int) -> Any:
        """Returns `column` of one block as a chunked array. Raises Unreadable for damaged pages."""

    @abstractmethod
    def column(self, name: str) -> Any:
        """Returns a whole column as a chunked array. Raises Unreadable for damaged pages."""

    @abstractmethod
    def lacks_bytes(self, column: str) -> bool:
        """Tells whether some rows of a column {bytes, path} are known to have no bytes."""

    @abstractmethod
    def description(self) -> str:
        """Returns a text that differs between tables, as far as this is known without reading them. The path is not in
        it."""


def open_table(path: Path) -> TableFile:
    """Opens a Parquet or Arrow file. Raises Unreadable, naming the file, when it is empty, cut short or no table."""
    if path.stat().st_size == 0:
        raise Unreadable(f"{path}: empty")
    with path.open("rb") as file:
        start = file.read(6)
    return ParquetTable(path) if start.startswith(b"PAR") or path.suffix.lower() == ".parquet" else ArrowTable(path)


def is_text(kind: Any) -> bool:
    """Tells whether an Arrow type is one of text."""
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def is_binary(kind: Any) -> bool:
    """Tells whether an Arrow type is one of byte strings."""
    return bool(
        pa.types.is_binary(kind)
        or pa.types.is_large_binary(kind)
        or pa.types.is_binary_view(kind)
        or pa.types.is_fixed_size_binary(kind)
    )


class ParquetTable(TableFile):
    """Represents a Parquet file, of which only the footer has been read. Raises Unreadable when the file is damaged."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with damage_named(path):
            self.metadata = pq.read_metadata(path)
            self.schema = self.metadata.schema.to_arrow_schema()
        self._slices: dict[str, list[tuple[int, int, int]]] = {}

    def blocks(self, column: str) -> Sequence[int]:
        return [stop - start for _, start, stop in self._sliced(column)]

    def size(self, column: str) -> int:
        return sum(self._group_sizes(column))

    def read(self, column: str, block: int) -> Any:
        group, start, stop = self._sliced(column)[block]
        chunks, row = [], 0
        with damage_named(self.path):
            # Neither reader threads nor pre-buffering: workers are forked and have one thread each.
            reader = pq.ParquetFile(self.path, pre_buffer=False)
            rows = min(_BATCH_ROWS, stop - start)
            batches = reader.iter_batches(rows, row_groups=[group], columns=[column], use_threads=False)
            for batch in batches:
                if row + len(batch) > start:
                    chunks.append(batch.column(0)[max(start - row, 0) : stop - row])
                row += len(batch)
                if row >= stop:
                    break
        return pa.chunked_array(chunks, self.schema.field(column).type)

    def column(self, name: str) -> Any:
        with damage_named(self.path):
            return pq.ParquetFile(self.path, pre_buffer=False).read([name], use_threads=False).column(0)

    def lacks_bytes(self, column: str) -> bool:
        groups = [self.metadata.row_group(g) for g in range(self.metadata.num_row_groups)]
        leaves = [leaf for leaf in range(self.metadata.num_columns) if self._path(leaf) == [column, "bytes"]]
        statistics = [group.column(leaf).statistics for group in groups for leaf in leaves]
        return any(known is not None and known.null_count for known in statistics)

    def description(self) -> str:
        """Returns the footer as text: the schema, and for each row group and column the sizes and the statistics."""
        groups = [self.metadata.row_group(g) for g in range(self.metadata.num_row_groups)]
        columns = [group.column(leaf) for group in groups for leaf in range(self.metadata.num_columns)]
        sizes = [
            (column.num_values, column.total_compressed_size, column.total_uncompressed_size) for column in columns
        ]
        statistics = [_statistics(column.statistics) for column in columns]
        return repr((str(self.schema.remove_metadata()), sizes, statistics))

    def _sliced(self, column: str) -> list[tuple[int, int, int]]:
        """Returns for each block its row group, its first row in the group, and the row after its last one."""
        if column not in self._slices:
            self._slices[column] = []
            for group, size in enumerate(self._group_sizes(column)):
                rows = self.metadata.row_group(group).num_rows
                step = max(1, rows // (1 + size // BLOCK_BYTES))
                self._slices[column] += [(group, start, min(start + step, rows)) for start in range(0, rows, step)]
        return self._slices[column]

    def _group_sizes(self, column: str) -> list[int]:
        """Returns the uncompressed bytes of `column` in each row group."""
        groups = [self.metadata.row_group(g) for g in range(self.metadata.num_row_groups)]
        leaves = [leaf for leaf in range(self.metadata.num_columns) if self._path(leaf)[0] == column]
        return [sum(group.column(leaf).total_uncompressed_size for leaf in leaves) for group in groups]

    def _path(self, leaf: int) -> list[str]:
        """Returns the path of a leaf column in the schema, e.g. ["image", "bytes"]."""
        return str(self.metadata.schema.column(leaf).path).split(".")


def _statistics(statistics: Any) -> object:
    """Returns the limits and the number of nulls of a column in a row group, or None when the file does not have
    them."""
    if statistics is None:
        return None
    limits = (statistics.min_raw, statistics.max_raw) if statistics.has_min_max else ()
    return (limits, statistics.null_count)


class ArrowTable(TableFile):
    """Represents an Arrow IPC stream, or file, mapped into memory. Raises Unreadable when the file is damaged."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with damage_named(path):
            source = pa.memory_map(str(path))
            if source.read(6) == b"ARROW1":
                self.table = pa.ipc.open_file(source).read_all()
            else:
                _check_end(path)
                source.seek(0)
                self.table = pa.ipc.open_stream(source).read_all()
            self.table.validate(full=True)  # offsets that lead outside the file would end the process
            self.schema = self.table.schema

    def blocks(self, column: str) -> Sequence[int]:
        return [len(self.table)] if len(self.table) else []

    def size(self, column: str) -> int:
        return 0  # the pages of the file itself

    def read(self, column: str, block: int) -> Any:
        return self.table.column(column)

    def column(self, name: str) -> Any:
        return self.table.column(name)

    def lacks_bytes(self, column: str) -> bool:
        cells = self.table.column(column)
        return bool(pa.types.is_struct(cells.type) and pc.struct_field(cells, "bytes").null_count > 0)

    def description(self) -> str:
        """Returns the schema, the rows of each record batch, the size of the file, and a digest of the lengths of all
        texts and byte strings."""
        batches = [len(batch) for batch in self.table.to_batches()]
        lengths = hashlib.sha256()
        for column in self.table.flatten().columns:
            if (
                pa.types.is_binary(column.type)
                or pa.types.is_large_binary(column.type)
                or pa.types.is_string(column.type)
            ):
                lengths.update(pc.binary_length(column).fill_null(-1).to_numpy().tobytes())
        return repr((str(self.schema.remove_metadata()), batches, self.path.stat().st_size, lengths.hexdigest()))


def _check_end(path: Path) -> None:
    """Raises Unreadable unless a stream ends with its end mark: Arrow itself accepts a stream that is cut off
    anywhere."""
    with path.open("rb") as file:
        file.seek(-min(len(_END_OF_STREAM), path.stat().st_size), 2)
        if file.read() != _END_OF_STREAM:
            raise Unreadable(f"{path}: cut short: it does not end with the mark of an Arrow stream")


def without_caches(files: Sequence[Path], ignored: Counter[str]) -> list[Path]:
    """Returns the files without the caches of the package `datasets`, which are counted in `ignored`. Of the Arrow
    files in a folder of `save_to_disk` only those that its state.json lists are data; the package keeps what it
    computes later (cache-*.arrow) beside them. Raises ValueError for a state.json that cannot be read, or that lists a
    file that is missing."""
    kept = []
    folders = {file.parent for file in files if file.suffix == ".arrow"}
    listed = {folder: _listed(folder / "state.json") for folder in folders}
    for file in files:
        names = listed.get(file.parent)
        computed = file.name.startswith("cache-") if names is None else file.name not in names
        if file.suffix == ".arrow" and computed:
            ignored["cache-*.arrow"] += 1
        else:
            kept.append(file)
    needed = [folder / name for folder, names in listed.items() for name in names or ()]
    missing = next((file for file in needed if not file.exists()), None)
    if missing is not None:
        raise ValueError(f"{missing}: not there, but the state.json beside it lists it")
    return kept


def _listed(state: Path) -> set[str] | None:
    """Returns the names of the data files that a state.json lists, or None when there is no such file. Raises
    ValueError when it cannot be read."""
    if not state.is_file():
        return None
    try:
        return {str(entry["filename"]) for entry in json.loads(state.read_bytes())["_data_files"]}
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        raise ValueError(f"{state}: no list of data files as datasets writes it: {error}") from error
