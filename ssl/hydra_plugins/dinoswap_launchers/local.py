"""hydra/launcher=local: jobs as processes of their own, several at a time, that share the cores of this machine.

Each is the very `dinoswap-train` command that would run it alone, so whatever happens to it (kill -9, out of memory, a
crash in C++) happens to no other. A signal to the launcher is handed to all of them, and none is started any more.
"""

import logging
import os
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING, Any

from hydra.core.utils import JobReturn, configure_log
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from dinoswap.config.exit_codes import EXIT_RESUMABLE

if TYPE_CHECKING:
    from dinoswap.studies.launch import Job

POLL_SECONDS = 0.1
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
NOT_PASSED_ON = ("hydra.mode", "hydra/launcher", "hydra.launcher", "hydra/sweeper", "hydra.sweeper", "hydra.sweep.")

_log = logging.getLogger(__name__)


class Running:  # no dataclass: Hydra scans plugins before they are in sys.modules, where a dataclass looks itself up
    def __init__(self, job: "Job", process: "subprocess.Popen[bytes]", slot: int) -> None:
        self.job, self.process, self.slot = job, process, slot
        self.signals_sent = 0  # how many of the signals have been handed on


class LocalLauncher(Launcher):
    """The local launcher, with the settings of configs/hydra/launcher/local.yaml. Raises ValueError for processes below
    1."""

    def __init__(self, processes: int, threads: int | None, gpus: list[int] | None, check_code: bool) -> None:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        if processes < 1:
            raise ValueError(f"hydra.launcher.processes={processes}: must be at least 1")
        self.processes = processes
        self.threads = threads or max(1, cores // processes)
        self.gpus = gpus
        self.check_code = check_code
        self.names: dict[tuple[str, ...], str] = {}

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.context, self.config = hydra_context, config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        from dinoswap.config.configuration import config_dir
        from dinoswap.run.provenance import SUBMITTED_CODE, code_version
        from dinoswap.studies.launch import jobs_of, report

        configure_log(self.config.hydra.hydra_logging, self.config.hydra.verbose)
        jobs = jobs_of(self.config, self.context.config_loader, job_overrides, initial_job_idx, self.names)
        self.environment = {SUBMITTED_CODE: code_version(config_dir()) if self.check_code else ""}
        _log.info("%d jobs, %d at a time with %d threads each", len(jobs), self.processes, self.threads)
        with noted_signals() as signals:
            self._run(jobs, signals)
        if signals:
            _log.info("stopped by %s; the same command goes on", signals[0].name)
            sys.exit(EXIT_RESUMABLE)
        return report(jobs)

    def _run(self, jobs: Sequence["Job"], signals: list[signal.Signals]) -> None:
        """Runs the jobs, `processes` at a time, and starts no further one once a signal has come."""
        from dinoswap.studies.launch import log_outcome, startable

        waiting, running = deque(jobs), list[Running]()
        slots = deque(range(self.processes))
        while running or (waiting and not signals):
            while waiting and slots and not signals:
                job = waiting.popleft()
                if startable([job]) and (process := self._started(job, slots[0])) is not None:
                    running.append(Running(job, process, slots.popleft()))
            time.sleep(POLL_SECONDS)
            for active in list(running):
                if active.process.poll() is not None:
                    running.remove(active)
                    slots.append(active.slot)
                    log_outcome(active.job)
                for number in signals[active.signals_sent :]:
                    active.process.send_signal(signal.SIGTERM if number in (signal.SIGHUP, signal.SIGUSR1) else number)
                active.signals_sent = len(signals)

    def _started(self, job: "Job", slot: int) -> "subprocess.Popen[bytes] | None":
        """Returns the process of a job, or None, with an error in the log, where its folder or process cannot be made:
        the other jobs go on."""
        try:
            return self._start(job, slot)
        except OSError as error:
            _log.error("%s cannot be started: %s", job.name, error)
            return None

    def _start(self, job: "Job", slot: int) -> subprocess.Popen[bytes]:
        """Starts the process of a job, whose output goes to output.txt in the run folder. Raises OSError where the
        folder or the process cannot be made."""
        from dinoswap.run.run_folder import PLACE

        threads = {name: str(self.threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
        gpu = {"CUDA_VISIBLE_DEVICES": str(self.gpus[slot % len(self.gpus)])} if self.gpus else {}
        job.folder.mkdir(parents=True, exist_ok=True)
        _log.info("%s starts", job.name)
        with (job.folder / "output.txt").open("ab") as output:
            return subprocess.Popen(
                self._command(job),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, **threads, **gpu, **self.environment, PLACE: str(job.folder)},
                start_new_session=True,  # else Ctrl-C in the terminal would reach it twice
            )

    def _command(self, job: "Job") -> list[str]:
        """Returns the command line of a job's process."""
        from dinoswap.studies.overrides import quoted

        hydra = self.config.hydra
        added = [source.path for source in hydra.runtime.config_sources if source.provider == "command-line"]
        folders = [f"--config-dir={path}" for path in added]
        passed_on = [line for line in hydra.overrides.hydra if not line.startswith(NOT_PASSED_ON)]
        command = [sys.executable, "-m", "dinoswap.train", *folders, f"--config-name={hydra.job.config_name}"]
        if any(line.startswith("hydra.sweep.") for line in hydra.overrides.hydra):  # the user's own folders
            passed_on.append(f"hydra.run.dir={quoted(job.folder)}")
        return [*command, *job.overrides, *passed_on]


@contextmanager
def noted_signals() -> Iterator[list[signal.Signals]]:
    """Collects the signals that arrive within, in the list that it yields, so that they end nothing by themselves."""
    received: list[signal.Signals] = []

    def note(number: int, frame: FrameType | None) -> None:
        received.append(signal.Signals(number))

    ignored = [signal.SIGHUP] if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN else []  # as under nohup
    before: dict[signal.Signals, Any] = {kind: signal.signal(kind, note) for kind in SIGNALS if kind not in ignored}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
