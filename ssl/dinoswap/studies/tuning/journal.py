"""Optuna's journal, a line of JSON for each change of a search, to which all its workers append.

Optuna refuses a journal in which a line was written by half, on a full disk or when the power failed, as soon as
another line follows it; and a process that is killed while it writes leaves a lock that the others wait 30 seconds for.
Here the system releases the lock however its holder ends, and acquiring it repairs the journal: what is not an entry is
cut out, and the damaged journal is kept as a copy. No reader has acted on such a line, so nothing is lost by it.
"""

import contextlib
import logging
import math
from pathlib import Path

from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock

from dinoswap.files.lock import exclusive
from dinoswap.files.reading import open_regular, parse_object, read_tail
from dinoswap.files.writing import write_atomically

TAIL_BYTES = 65536
"""Bytes from the end that hold the last line, unless it is very long: then the whole journal is read."""
START = b'{"op_code":'
"""How every entry begins."""

_log = logging.getLogger(__name__)


def open_journal(path: Path) -> JournalFileBackend:
    """Returns the journal at `path`, created if need be, without lines that were only written in part. Raises OSError
    for what is no regular file."""
    path.touch()
    lock = Lock(path)
    with lock.held():
        repair(path)
    return JournalFileBackend(str(path), lock_obj=lock)


class Lock(JournalFileOpenLock):
    """The lock of the process that writes to the journal. Acquiring it repairs the journal: the last holder may have
    been killed while it wrote."""

    def __init__(self, path: Path) -> None:
        super().__init__(str(path))
        self.path = path
        self._held = contextlib.ExitStack()

    def held(self) -> contextlib.AbstractContextManager[None]:
        return exclusive(self.path.with_name("journal"), patience=math.inf)

    def acquire(self) -> bool:
        self._held.enter_context(self.held())
        tail = read_tail(self.path, TAIL_BYTES)
        if tail and not (tail.endswith(b"\n") and is_entry(tail[:-1].rpartition(b"\n")[2])):
            repair(self.path)
        return True

    def release(self) -> None:
        self._held.close()


def repair(path: Path) -> None:
    """Removes what is not an entry from the journal, and keeps the journal as it was beside it. The caller holds the
    lock."""
    with open_regular(path) as file:
        before = file.read()
    after = b"".join(entry + b"\n" for line in before.split(b"\n") if (entry := entry_of(line)))
    if after == before:
        return
    copy = path.with_name(f"{path.name}.damaged-{len(list(path.parent.glob(f'{path.name}.damaged-*'))) + 1}")
    write_atomically(copy, before)
    write_atomically(path, after)
    cut = len(before) - len(after)
    _log.warning("%s: a line was not written whole: %d bytes are cut off; as it was, it is kept as %s", path, cut, copy)


def entry_of(line: bytes) -> bytes:
    """Returns the entry that a line holds, maybe after half of another one; empty where there is none."""
    if is_entry(line):
        return line
    last = line[max(0, line.rfind(START)) :]
    return last if is_entry(last) else b""


def is_entry(line: bytes) -> bool:
    """Tells whether a line is a complete entry of the journal."""
    if not line.startswith(START):
        return False
    try:
        parse_object(line)
    except ValueError:
        return False
    return True
