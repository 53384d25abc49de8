"""A process in which checks run one after the other: one that hangs or crashes does not cost what others find."""

import contextlib
import multiprocessing
import os
import signal
from collections.abc import Callable
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from types import TracebackType
from typing import Any

from gpu_checks.numbers import Numbers

START = "spawn"  # a process that is forked could not use a GPU that this one has used


class Worker:
    """A context manager, which ends the process and all that it has started. `work` is a function of a module."""

    def __init__(self, work: Callable[..., Numbers]) -> None:
        self.work = work
        self.process: BaseProcess | None = None
        self.pipe: Connection | None = None

    def __call__(self, seconds: float, *arguments: Any) -> Numbers:
        """What `work` returns of these arguments, or in `failed` why it did not. The next call has a new process after
        whatever failed, which may have left the GPU's context or memory in a state of its own."""
        if self.pipe is None:
            self._begin()
        assert self.pipe is not None
        self.pipe.send(arguments)
        try:
            result: Numbers = self.pipe.recv() if self.pipe.poll(seconds) else {"failed": f"not done in {seconds:g} s"}
        except EOFError:
            result = {"failed": f"its process ended, exit status {self._end()}"}
        if result.get("failed"):
            self._end()
        return result

    def _begin(self) -> None:
        context = multiprocessing.get_context(START)
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(self.work, theirs))
        self.process.start()
        theirs.close()

    def _end(self) -> int | None:
        """The exit status."""
        process, self.process, pipe, self.pipe = self.process, None, self.pipe, None
        if process is None or pipe is None or process.pid is None:
            return None
        pipe.close()
        process.join(timeout=1)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # and what it has started
        process.kill()
        process.join()
        return process.exitcode

    def __enter__(self) -> "Worker":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()


def _serve(work: Callable[..., Numbers], pipe: Connection) -> None:
    os.setpgid(0, 0)  # a group of its own, which ends as a whole
    while True:
        try:
            arguments = pipe.recv()
        except EOFError:
            return
        pipe.send(work(*arguments))
