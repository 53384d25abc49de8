"""The SLURM of one node that tests/slurm/slurm_up.sh starts, and commands of this package that submit to it.

All tests that need it are in test_slurm.py, which one process runs: what preempts one job, or takes the node away, does
so to every job.
"""

import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import pytest

from dinoswap.files.lock import holder
from train_processes import last_step, wait_until

CONF = Path(os.environ.get("DINOSWAP_SLURM", "/tmp/dinoswap-slurm")) / "slurm.conf"
START = "tests/slurm/slurm_up.sh, as root on Debian or Ubuntu, starts the cluster that these tests need"
PARALLEL, MINUTES = 3, 15
WAIT = 300
"""Seconds, for what takes a few of them on an idle machine."""
NAME = f"fates-{os.getpid()}"
LAUNCHER = (
    "hydra/launcher=slurm",
    f"hydra.launcher.name={NAME}",
    "hydra.launcher.cpus_per_task=1",
    f"hydra.launcher.timeout_min={MINUTES}",
    "hydra.launcher.signal_delay_s=20",
    "hydra.launcher.poll_seconds=1",
    f"hydra.launcher.array_parallelism={PARALLEL}",
)


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLURM_CONF", str(CONF))
        ready = CONF.exists() and shutil.which("sinfo") and "debug" in call("sinfo", "--noheader")
        if not ready and os.environ.get("CI"):
            pytest.fail(START)
        if not ready:
            pytest.skip(START)
        yield
        for command in Command.started:  # of a test that failed
            command.kill()
        call("scancel", f"--name={NAME}")


def call(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, timeout=60).stdout


class Command:
    """A command of this package, in the background."""

    started: ClassVar[list["Command"]] = []

    def __init__(self, module: str, *arguments: str | Path) -> None:
        command = [sys.executable, "-m", f"dinoswap.{module}", *map(str, arguments)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
        )
        self.output = ""
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self.started.append(self)

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self.output += line

    def kill(self) -> None:
        self._process.kill()

    def interrupt(self) -> int:
        self._process.send_signal(signal.SIGINT)
        return self.wait()

    def wait(self) -> int:
        status = self._process.wait(timeout=WAIT)
        self._reader.join()
        return status


def reach(folder: Path, step: int) -> int:
    """Wait for a step, and for a process that trains: it."""
    found: list[re.Match[str]] = []

    def trains() -> bool:
        who = re.match(r"process (\d+) ", str(holder(folder))) if last_step(folder) >= step else None
        found.extend([who] if who else [])
        return who is not None

    wait_until(trains, f"{folder} does not reach step {step}", WAIT)
    return int(found[0][1])
