"""Files that hold a table of images: Parquet, and Arrow as the package `datasets` writes it (`save_to_disk`).

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
    """A table in a file, of which only what describes it has been read. Raises Unreadable."""

    path: Path
    schema: pa.Schema

    @abstractmethod
    def blocks(self, column: str) -> Sequence[int]:
        """Rows of the consecutive blocks that `read` gives."""

    @abstractmethod
    def size(self, column: str) -> int:
        """Bytes of memory that holding `column` takes."""

    @abstractmethod
    def read(self, column: str, block: int) -> Any:
        """A chunked array: `column` of one block. Raises Unreadable for damaged pages."""

    @abstractmethod
    def column(self, name: str) -> Any:
        """A chunked array: a whole column. Raises Unreadable for damaged pages."""

    @abstractmethod
    def lacks_bytes(self, column: str) -> bool:
        """Whether some rows of a column {bytes, path} are known to have no bytes."""

    @abstractmethod
    def description(self) -> str:
        """What tells this table from others, as far as it is known without reading it, and without its path."""


def open_table(path: Path) -> TableFile:
    """Raises Unreadable, naming the file, when it is empty, cut or no table."""
    if path.stat().st_size == 0:
        raise Unreadable(f"{path}: empty")
    with path.open("rb") as file:
        start = file.read(6)
    return ParquetTable(path) if start.startswith(b"PAR") or path.suffix.lower() == ".parquet" else ArrowTable(path)


def is_text(kind: Any) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def is_binary(kind: Any) -> bool:
    return bool(
        pa.types.is_binary(kind)
        or pa.types.is_large_binary(kind)
        or pa.types.is_binary_view(kind)
        or pa.types.is_fixed_size_binary(kind)
    )


class ParquetTable(TableFile):
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
        leaves = [c for c in range(self.metadata.num_columns) if self._path(c) == [column, "bytes"]]
        known = [group.column(c).statistics for group in groups for c in leaves]
        return any(statistics is not None and statistics.null_count for statistics in known)

    def description(self) -> str:
        """The footer: the schema, and of each row group and column the sizes and the statistics."""
        groups = [self.metadata.row_group(g) for g in range(self.metadata.num_row_groups)]
        columns = [g.column(c) for g in groups for c in range(self.metadata.num_columns)]
        sizes = [(c.num_values, c.total_compressed_size, c.total_uncompressed_size) for c in columns]
        return repr((str(self.schema.remove_metadata()), sizes, [_statistics(c.statistics) for c in columns]))

    def _sliced(self, column: str) -> list[tuple[int, int, int]]:
        """Row group, first row in it and the row after the last, of each block."""
        if column not in self._slices:
            self._slices[column] = []
            for group, size in enumerate(self._group_sizes(column)):
                rows = self.metadata.row_group(group).num_rows
                step = max(1, rows // (1 + size // BLOCK_BYTES))
                self._slices[column] += [(group, at, min(at + step, rows)) for at in range(0, rows, step)]
        return self._slices[column]

    def _group_sizes(self, column: str) -> list[int]:
        groups = [self.metadata.row_group(g) for g in range(self.metadata.num_row_groups)]
        leaves = [c for c in range(self.metadata.num_columns) if self._path(c)[0] == column]
        return [sum(group.column(c).total_uncompressed_size for c in leaves) for group in groups]

    def _path(self, leaf: int) -> list[str]:
        return str(self.metadata.schema.column(leaf).path).split(".")


def _statistics(known: Any) -> object:
    if known is None:
        return None
    limits = (known.min_raw, known.max_raw) if known.has_min_max else ()
    return (limits, known.null_count)


class ArrowTable(TableFile):
    """An Arrow IPC stream, or file, mapped into memory."""

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
        """The schema, the rows of each record batch, the size of the file, and those of all texts and images in it."""
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
    """A stream may end anywhere for Arrow; only its last mark shows that it is whole."""
    with path.open("rb") as file:
        file.seek(-min(len(_END_OF_STREAM), path.stat().st_size), 2)
        if file.read() != _END_OF_STREAM:
            raise Unreadable(f"{path}: cut short: it does not end with the mark of an Arrow stream")


def without_caches(files: Sequence[Path], ignored: Counter[str]) -> list[Path]:
    """Of the Arrow files in a folder of `save_to_disk` only those that its state.json lists: the package keeps what it
    computes later (cache-*.arrow) beside them. Raises ValueError for a state.json that cannot be read."""
    kept = []
    listed = {folder: _listed(folder / "state.json") for folder in {f.parent for f in files if f.suffix == ".arrow"}}
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
    if not state.is_file():
        return None
    try:
        return {str(entry["filename"]) for entry in json.loads(state.read_bytes())["_data_files"]}
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        raise ValueError(f"{state}: no list of data files as datasets writes it: {error}") from error
