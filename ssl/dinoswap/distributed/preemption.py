"""Signals that ask a run to end: noticed between two steps or two batches of an evaluation, when it can be left.

SIGTERM comes from a scheduler or `docker stop`, SIGUSR2 or SIGUSR1 from a scheduler some time before the limit, SIGHUP
from a terminal that is closed, SIGINT from Ctrl-C. Nothing happens inside the handler but a note of the name: it may
run in the middle of an optimiser step. Only where a computation leaves nothing behind it is broken off at once.
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
    """A signal asked the run to end; raised where it can be left."""


class Preemption:
    """Within the context, `requested` is the name of the first signal that came, else None.

    A second Ctrl-C raises KeyboardInterrupt: the user does not want to wait for the save. Leaving the context
    restores the handlers that were there. A SIGHUP that is ignored, as under nohup, stays ignored. Signals reach
    Python's main thread only, so in another one nothing is installed, which is logged.
    """

    def __init__(self) -> None:
        self._received: signal.Signals | None = None
        self._at_once = False
        self._previous: dict[signal.Signals, Any] = {}

    @property
    def requested(self) -> str | None:
        return None if self._received is None else self._received.name

    def __enter__(self) -> "Preemption":
        if threading.current_thread() is not threading.main_thread():
            _log.warning("not in the main thread: signals will end this run without a last checkpoint")
            return self
        noted = [n for n in SIGNALS if n != signal.SIGHUP or signal.getsignal(n) is not signal.SIG_IGN]
        self._previous = {number: signal.signal(number, self._note) for number in noted}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Inside, the first signal raises StopAsked wherever the code is, and one that came before does at the start:
        for computations that take long and leave nothing behind, neither files nor a collective without this rank."""
        self._at_once = True
        try:
            if self._received is not None:
                raise StopAsked
            yield
        finally:
            self._at_once = False

    def forward(self) -> None:
        """Hand the signal to the handler that was installed before ours; to be called once all is saved.

        A cluster launcher requeues the job there, and may leave by SystemExit; after Ctrl-C it is Python's own,
        which raises KeyboardInterrupt and so ends a sweep too. Without such a handler, or a signal, nothing happens.
        """
        handler = self._previous.get(self._received) if self._received is not None else None
        if callable(handler):
            handler(self._received, None)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self._received is None:
            self._received = signal.Signals(number)
            if self._at_once:
                raise StopAsked
        elif number == signal.SIGINT:
            raise KeyboardInterrupt
