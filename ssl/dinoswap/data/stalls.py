"""Tells of data workers that are alive and hand over nothing, as one that reads from a file server without an answer.

Such a worker cannot be told from a slow one, nor ended while the kernel waits for the server, so the run goes on
waiting. What it waits for is logged: a line after `FIRST` seconds, and another whenever the wait has doubled.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

FIRST = 60.0
"""Seconds without a batch before the first line."""
INTERVAL = 5.0
"""Seconds between two looks at the clock."""
STATES = {"D": "waits for a disk or a file server", "T": "is stopped", "S": "sleeps", "R": "computes", "Z": "is dead"}
"""Meanings of the states of processes in Linux."""

_log = logging.getLogger(__name__)


class Stalls:
    """Watches the waits for batches. `workers` returns the process ids of the data workers."""

    def __init__(self, workers: Callable[[], Sequence[int]]) -> None:
        self._workers = workers
        self._since: float | None = None

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Is entered while the training process waits for a batch."""
        self._since = time.monotonic()
        try:
            yield
        finally:
            self._since = None

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Runs a thread inside that tells of long waits."""
        left = threading.Event()
        thread = threading.Thread(target=self._watch, args=(left,), daemon=True)
        thread.start()
        try:
            yield
        finally:
            left.set()

    def _watch(self, left: threading.Event) -> None:
        told_since, next_line = None, FIRST
        while not left.wait(INTERVAL):
            since = self._since
            if since is None:
                continue
            if since != told_since:
                told_since, next_line = since, FIRST
            waited = time.monotonic() - since
            if waited >= next_line:
                _log.warning("%s", self.sentence(waited))
                next_line = 2 * waited

    def sentence(self, waited: float) -> str:
        """Returns what is known of a wait of so many seconds."""
        workers = ", ".join(f"{pid} {state_of(pid)}" for pid in self._workers())
        return (
            f"data: no batch for {waited:.0f} s. The workers: {workers}. The run goes on as soon as there is one; "
            "where a file server does not answer, stop the run and start it again when it does"
        )


def state_of(pid: int) -> str:
    """Returns what a process is doing, as far as the system says."""
    try:
        letter = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except OSError:
        return "is not known"
    return STATES.get(letter, f"is in state {letter}")
