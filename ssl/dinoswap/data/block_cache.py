"""Keeps blocks of Parquet files on a disk of the node, as Arrow files that all its processes map into memory.

Each block is read from the data set once, by the process that needs it first, and by no later run either. What is
mapped lies in the page cache, once for the whole node.
"""

import hashlib
from pathlib import Path
from typing import Any

import pyarrow as pa

from dinoswap.data.table_files import ArrowTable, TableFile
from dinoswap.files.lock import exclusive
from dinoswap.files.writing import write_atomically

PATIENCE = 600.0
"""Seconds to wait for another process that reads the same block."""
_VERSION = 1


def cached_block(folder: Path, table: TableFile, column: str, block: int) -> Any:
    """Returns `column` of one block as a chunked array, mapped from a file in `folder`, which is written where there is
    none of this state of the table. Raises Unreadable for damaged pages, OSError for a disk that is full, and Held for
    a block that another process is at for more than PATIENCE seconds."""
    place = folder / _name(table, column) / str(block)
    path = place / "block.arrow"
    if not path.exists():
        with exclusive(place, PATIENCE):
            if not path.exists():  # it may have been waited for
                _write(path, column, table.read(column, block), folder)
    return ArrowTable(path).column(column)


def _name(table: TableFile, column: str) -> str:
    """Returns a name that another file, another state of it or other blocks do not have."""
    status = table.path.stat()
    state = (_VERSION, str(table.path.resolve()), status.st_size, status.st_mtime_ns, column, *table.blocks(column))
    return hashlib.blake2b(repr(state).encode(), digest_size=16).hexdigest()


def _write(path: Path, column: str, cells: Any, folder: Path) -> None:
    sink, content = pa.BufferOutputStream(), pa.table({column: cells})
    with pa.ipc.new_file(sink, content.schema) as file:
        file.write_table(content)
    try:
        write_atomically(path, sink.getvalue().to_pybytes())
    except OSError as error:
        reason = f"{error.strerror}: data.cache={folder} needs as much room as the encoded images"
        raise OSError(error.errno, reason, str(path)) from error
