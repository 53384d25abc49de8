"""Reads files that others wrote, or that something has damaged: everything that is read is bounded, and nothing blocks.

A folder of runs may hold a pipe, a device or a link to /dev/zero in place of a file, a file of any size, or JSON that
is nested as deep as Python's stack. Each of these raises an OSError or a ValueError with a reason here, so that a
reader of many folders can skip one.
"""

import errno
import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

RECORD_BYTES = 2**24
"""The largest size of run.json and job.json, which have some kilobytes."""
CONFIG_BYTES = 2**20
"""The largest size of config.yaml, which has some kilobytes, and is slow to read."""
LINE_BYTES = 2**20
"""The largest size of a line of metrics.jsonl, which has some hundred bytes."""
LONGEST_NUMBER = 309
"""The largest number of digits of a whole number; the largest float has as many."""


def open_regular(path: Path) -> BinaryIO:
    """Opens a regular file for reading. Raises OSError for anything else; it does not wait for the writer of a pipe."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    return os.fdopen(descriptor, "rb")


def read_small(path: Path, limit: int) -> bytes:
    """Returns the content of a regular file. Raises OSError when it has more than `limit` bytes or cannot be read."""
    try:
        with open_regular(path) as file:
            size = os.fstat(file.fileno()).st_size
            if size > limit:
                raise OSError(errno.EFBIG, f"has {size:,} bytes, more than {limit:,}")
            return file.read(size)
    except OSError as error:
        error.filename = str(path)  # of an open file the system says no name
        raise


def read_lines(path: Path) -> Iterator[bytes]:
    """Yields the lines of a regular file without their line ends; a last line that has no line end is left out. Raises
    ValueError at a line of more than LINE_BYTES, and OSError when the file cannot be read."""
    with open_regular(path) as file:
        while line := file.readline(LINE_BYTES):
            if line.endswith(b"\n"):
                yield line[:-1]
            elif len(line) == LINE_BYTES:
                raise ValueError(f"a line has more than {LINE_BYTES:,} bytes; what comes after is not read")


def read_tail(path: Path, count: int) -> bytes:
    """Returns the last `count` bytes of a regular file that another process may be writing. Raises OSError when it
    cannot be read."""
    with open_regular(path) as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - count))
        return file.read(count)


def read_on(path: Path, start: int, limit: int) -> tuple[int, bytes]:
    """Returns what a regular file has gained since `start` bytes of it were read, and where that begins: later than at
    `start` when it is more than `limit` bytes, at 0 when the file has become shorter. Raises OSError when it cannot be
    read."""
    with open_regular(path) as file:
        size = file.seek(0, os.SEEK_END)
        begin = max(start if start <= size else 0, size - limit)
        file.seek(begin)
        return begin, file.read(size - begin)


def parse_json(content: bytes) -> Any:
    """Returns the value of a JSON text. Raises ValueError for a text that is not JSON, is nested too deep, or has a
    number that no float can hold."""
    try:
        return json.loads(content, parse_int=_whole)
    except RecursionError:
        raise ValueError("nested too deep") from None


def parse_object(content: bytes) -> dict[str, Any]:
    """Returns the value of a JSON text that is an object. Raises ValueError for any other value, and for what
    `parse_json` refuses."""
    value = parse_json(content)
    if not isinstance(value, dict):
        raise ValueError(f"not an object but {shortened(value)}")
    return value


def shortened(value: Any) -> str:
    """Returns the value as it is shown in a message, in at most 80 characters."""
    try:
        text = repr(value)
    except RecursionError:
        text = type(value).__name__
    return text if len(text) <= 80 else f"{text[:77]}..."


def clean(text: str) -> str:
    """Returns the text without surrogates, which stand in names of files that are not UTF-8, and cannot be written to a
    file."""
    return text.encode(errors="replace").decode()


def one_line(text: str) -> str:
    """Returns the text as one line of a terminal: characters that are not printable are escaped."""
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape", "surrogatepass").decode()
        for character in text
    )


def _whole(text: str) -> int:
    """Returns the whole number in a JSON text. Raises ValueError for one of more than LONGEST_NUMBER digits."""
    if len(text) > LONGEST_NUMBER:
        raise ValueError(f"a number of {len(text)} digits")
    return int(text)
