"""A run of a search: `dinoswap-train <overrides>` in a process of its own, known by what its folder says.

Evaluations are read from metrics.jsonl as they appear, and how it ended from run.json and the exit status. So a run is
the same whoever starts it, what kills it spares the worker, and one that continues yields its earlier evaluations
again.
"""

import math
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import connection
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any, Literal, cast

from dinoswap.config.exit_codes import EXIT_RESUMABLE
from dinoswap.distributed.preemption import SIGNALS
from dinoswap.files.lock import exclusive, holder
from dinoswap.files.reading import read_tail
from dinoswap.run.points import read_points
from dinoswap.studies.ledger import record_of
from dinoswap.studies.overrides import Scalar
from dinoswap.studies.tuning.definition import Tuning

Status = Literal["completed", "diverged", "failed", "preempted", "killed"]

_processes = multiprocessing.get_context("forkserver")
_PRELOADED = ["dinoswap.run.job", "torch._dynamo"]  # takes seconds to import: once for all runs of a worker
_PREEMPTED = (
    EXIT_RESUMABLE,
    *(-number for number in SIGNALS),
)  # exit statuses; the signals came before there was a handler
OUTPUT_BYTES = 65536
"""Bytes from the end of a run's output in which its last line is looked for."""
_SLOWEST_LOOK = 5.0  # seconds between two looks at the folder


@dataclass(frozen=True)
class Outcome:
    """How a run ended. `values` are its metrics and costs by the names that objectives have, `error` is its message if
    it ended badly."""

    status: Status
    values: dict[str, float]
    error: str | None = None


class Training:
    """The run of a search with these values and this seed, where None is the seed of the base.

    It is started by `start`, after which its output goes to `label`.txt. Raises ConfigError for values that no run can
    have.
    """

    def __init__(self, tuning: Tuning, values: Mapping[str, Scalar], seed: int | None, label: str) -> None:
        self.overrides = tuning.overrides(values, seed)
        self.folder = tuning.run_folder(values, seed)
        self.last_step = int(tuning.config(values)["trainer"]["max_steps"])
        self.output = tuning.folder / "output" / f"{label}.txt"
        self._claim = tuning.folder / "claims" / "-".join(self.folder.parts[-2:])  # <run_id>-seed<k>
        self._process: ForkServerProcess | None = None

    @property
    def ended(self) -> bool:
        """Whether the run has ended with a result, completed or diverged."""
        return record_of(self.folder)[0].get("status") in ("completed", "diverged")

    @property
    def busy(self) -> bool:
        """Whether some process, also one of another worker, trains this run or is about to. A second one would wait for
        it."""
        return (holder(self._claim) or holder(self.folder)) is not None

    def start(self) -> None:
        _processes.set_forkserver_preload(_PRELOADED)
        self.output.parent.mkdir(parents=True, exist_ok=True)
        self._process = _processes.Process(target=_train, args=(self.overrides, self.folder, self.output, self._claim))
        self._process.start()

    def terminate(self) -> None:
        """Stops the run as a scheduler does: it saves its state, from which the same command continues."""
        if self._process is not None:
            self._process.terminate()

    def follow(self, metric: str | None, stopping: Callable[[], bool]) -> Iterator[tuple[int, float]]:
        """Yields (step, value) of each evaluation before the last step, until the run ends. The run is terminated when
        `stopping()` is true."""
        began, yielded, terminated = time.monotonic(), 0, False
        while True:
            alive = self._process is not None and self._process.is_alive()  # before reading: nothing is missed
            for step, value in evaluations(self.folder, metric) if metric else ():
                if yielded < step < self.last_step:
                    yielded = step
                    yield step, value
            if self._process is None or not alive:
                return
            if not terminated and stopping():
                terminated = True
                self.terminate()
            self._process.join(min(_SLOWEST_LOOK, 0.05 + (time.monotonic() - began) / 200))

    def outcome(self) -> Outcome:
        """Returns how the run ended, once `follow` is exhausted."""
        record, _ = record_of(self.folder)
        code = None if self._process is None else self._process.exitcode
        status, error = str(record.get("status")), record.get("error")
        if code in _PREEMPTED:
            status = "preempted"
        elif code is not None and code < 0:
            status, error = "killed", f"killed by {signal.Signals(-code).name}"
        elif code or status not in ("completed", "diverged"):
            status = "diverged" if status == "diverged" else "failed"
            error = error or last_line(self.output)
        return Outcome(cast(Status, status), measured(record), error)


def _train(overrides: list[str], folder: Path, output: Path, claim: Path) -> None:
    """Trains a run in its process, as a session of its own: the worker stops it, not Ctrl-C in the terminal."""
    os.setsid()
    descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for standard in (1, 2):
        os.dup2(descriptor, standard)
    threading.Thread(target=_end_with_the_worker, daemon=True).start()
    from dinoswap import train

    sys.argv = ["dinoswap-train", *overrides]
    with exclusive(claim, patience=math.inf):
        while holder(folder) is not None:  # somebody who does not belong to the search; or whom it has given up
            time.sleep(1)
        train.main()


def _end_with_the_worker() -> None:
    """Waits until the worker has ended, and then stops the run with SIGTERM, so that its state is saved for the worker
    that takes the trial over."""
    worker = multiprocessing.parent_process()
    assert worker is not None
    connection.wait([worker.sentinel])
    os.kill(os.getpid(), signal.SIGTERM)


def evaluations(folder: Path, metric: str) -> Iterator[tuple[int, float]]:
    """Yields (step, value) of a metric from metrics.jsonl, which may still be written to."""
    with suppress(OSError, ValueError):  # not begun; or lines that cannot be read, after all that can
        for step, _, value in read_points(folder / "metrics.jsonl", {metric}):
            if not math.isnan(value):
                yield step, value


def last_line(path: Path) -> str:
    """Returns the last line of a process's output that is not empty, or a sentence that there is none."""
    try:
        content = read_tail(path, OUTPUT_BYTES)
    except OSError:
        return "it ended without a word"
    lines = [line for line in content.decode(errors="replace").splitlines() if line.strip()]
    return lines[-1] if lines else "it ended without a word"


def measured(record: Mapping[str, Any]) -> dict[str, float]:
    """Returns the finite numbers of a run.json by the names that objectives have."""
    values = dict(record.get("metrics", {})) | record.get("throughput", {})
    values |= {f"cost.{name}": value for name, value in record.get("cost", {}).items()}
    return {name: value for name, value in values.items() if value is not None}
