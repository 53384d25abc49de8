"""Reading files that others wrote, or that something has damaged: all that is read is bounded, and nothing waits.

A folder of runs may hold a pipe, a device or a link to /dev/zero in the place of a file, a file of any size, JSON
as deep as Python's stack. Each is an OSError or a ValueError with a reason, here and nowhere else, so that who reads
many folders passes over one.
"""

import errno
import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

RECORD_BYTES = 2**24
"""Of run.json and job.json, which have some kilobytes."""
CONFIG_BYTES = 2**20
"""Of config.yaml, which has some kilobytes, and is slow to read."""
LINE_BYTES = 2**20
"""Of a line of metrics.jsonl, which has some hundred bytes."""
LONGEST_NUMBER = 309
"""Digits; a float has no larger one."""


def open_regular(path: Path) -> BinaryIO:
    """To read from. OSError for what is no regular file; a pipe is not waited for."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    return os.fdopen(descriptor, "rb")


def read_small(path: Path, limit: int) -> bytes:
    """The content of a regular file. OSError when it has more than `limit` bytes."""
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
    """The lines of a regular file, without one that has no end yet. ValueError at one of more than LINE_BYTES."""
    with open_regular(path) as file:
        while line := file.readline(LINE_BYTES):
            if line.endswith(b"\n"):
                yield line[:-1]
            elif len(line) == LINE_BYTES:
                raise ValueError(f"a line has more than {LINE_BYTES:,} bytes; what comes after is not read")


def read_tail(path: Path, count: int) -> bytes:
    """The last `count` bytes of a regular file to which somebody may be writing."""
    with open_regular(path) as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - count))
        return file.read(count)


def parse_json(content: bytes) -> Any:
    """ValueError for what is not JSON, too deep, or has a number that no float can hold."""
    try:
        return json.loads(content, parse_int=_whole)
    except RecursionError:
        raise ValueError("nested too deep") from None


def parse_object(content: bytes) -> dict[str, Any]:
    """The same, and ValueError for what is not an object."""
    value = parse_json(content)
    if not isinstance(value, dict):
        raise ValueError(f"not an object but {shortened(value)}")
    return value


def shortened(value: Any) -> str:
    """As it is shown in a message."""
    try:
        text = repr(value)
    except RecursionError:
        text = type(value).__name__
    return text if len(text) <= 80 else f"{text[:77]}..."


def clean(text: str) -> str:
    """Without halves of characters, which are in names of files that are not UTF-8, and which no file can hold."""
    return text.encode(errors="replace").decode()


def one_line(text: str) -> str:
    """As one line of a terminal: what is not printable is escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text)


def _whole(text: str) -> int:
    if len(text) > LONGEST_NUMBER:
        raise ValueError(f"a number of {len(text)} digits")
    return int(text)
