"""Handles signals that ask a run to end: they are noticed between two steps or two batches of an evaluation, when it
can end.

SIGTERM comes from a scheduler or `docker stop`, SIGUSR2 or SIGUSR1 from a scheduler some time before the limit, SIGHUP
from a terminal that is closed, SIGINT from Ctrl-C. The handler only stores the signal, since it may run in the middle
of an optimiser step. Only a computation that has no side effects is interrupted at once.
"""

import logging
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP, signal.SIGINT)

_log = logging.getLogger(__name__)


class StopAsked(Exception):
    """Raised where a run can end after a signal asked it to."""


class Preemption:
    """Catches signals within its context: `requested` is the name of the first one that came, else None.

    A second Ctrl-C raises KeyboardInterrupt: the user does not want to wait for the save. Leaving the context restores
    the previous handlers. A SIGHUP that is ignored, as under nohup, stays ignored. Signals reach Python's main thread
    only, so in another thread no handler is installed, which is logged.
    """

    def __init__(self) -> None:
        self._received: signal.Signals | None = None
        self._at_once = False
        self._previous: dict[signal.Signals, Any] = {}

    @property
    def requested(self) -> str | None:
        """Returns the name of the first signal that came, or None."""
        return None if self._received is None else self._received.name

    def __enter__(self) -> "Preemption":
        if threading.current_thread() is not threading.main_thread():
            _log.warning("not in the main thread: signals will end this run without a last checkpoint")
            return self
        ignored = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
        caught = [number for number in SIGNALS if not (number == signal.SIGHUP and ignored)]
        self._previous = {number: signal.signal(number, self._note) for number in caught}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Raises StopAsked within the context when the first signal comes, wherever the code is, or at the start when
        one has come before. It is meant for computations that take long and have no side effects: they write no files
        and take part in no collective."""
        self._at_once = True
        try:
            if self._received is not None:
                raise StopAsked
            yield
        finally:
            self._at_once = False

    def forward(self) -> None:
        """Passes the signal on to the handler that was installed before; it is called once all is saved.

        A cluster launcher requeues the job there, and may leave by SystemExit. After Ctrl-C it is Python's own handler,
        which raises KeyboardInterrupt and so ends a sweep too. Without such a handler, or a signal, nothing happens.
        """
        handler = self._previous.get(self._received) if self._received is not None else None
        if callable(handler):
            handler(self._received, None)

    def _note(self, number: int, frame: FrameType | None) -> None:
        """Stores the first signal. Raises StopAsked within `at_once`, and KeyboardInterrupt at a second Ctrl-C."""
        if self._received is None:
            self._received = signal.Signals(number)
            if self._at_once:
                raise StopAsked
        elif number == signal.SIGINT:
            raise KeyboardInterrupt
