"""Commands as processes of their own, and runs to be killed: all is imported once, in a server that forks them."""

import importlib
import itertools
import json
import multiprocessing
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

from dinoswap.config.configuration import plain
from dinoswap.run import metrics
from dinoswap.run.run_folder import planned_folder
from ranks import free_port
from small_models import composed

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["dinoswap.run.job", "torch._dynamo"])  # the latter by the first optimiser, in seconds


def folder_of(overrides: list[str], results: Path, ranks: int = 1) -> Path:
    """The run's folder."""
    return results / "runs" / planned_folder(plain(composed(overrides)), ranks)


class TrainProcess:
    """`dinoswap-train <overrides> results_dir=<results>`. It leads a session, to which its workers belong."""

    def __init__(
        self,
        overrides: list[str],
        results: Path,
        kill_at_sync: int | None = None,
        rank: Mapping[str, str] | None = None,
    ) -> None:
        """`kill_at_sync` n: it kills itself when it asks the disk to sync a file or folder of the checkpoints that it
        writes for the nth time (from 0): the three files, the unfinished folder, and, after the rename, the folder of
        checkpoints. `rank` holds what torchrun would put into its environment."""
        self.folder = folder_of(overrides, results, int(rank["WORLD_SIZE"]) if rank else 1)
        self.output_path = results / f"output{rank['RANK'] if rank else ''}.txt"
        results.mkdir(parents=True, exist_ok=True)
        self.output_path.touch()
        self._before = self.output_path.stat().st_size
        arguments = ([*overrides, f"results_dir={results}"], str(self.output_path), kill_at_sync, dict(rank or {}))
        self.process: ForkServerProcess = _context.Process(target=_train, args=arguments)
        self.process.start()
        assert self.process.pid is not None
        self.pid = self.process.pid

    @property
    def output(self) -> str:
        """What this process has printed."""
        return self.output_path.read_bytes()[self._before :].decode()

    def wait(self) -> int:
        """Its exit status, minus the signal's number where one ended it. No process of its session is left."""
        self.process.join(timeout=280)
        assert self.process.exitcode is not None, f"it hangs:\n{self.output}"
        wait_until(lambda: not session(self.pid), f"processes are left: {session(self.pid)}")
        return self.process.exitcode

    def wait_for_step(self, step: int) -> None:
        """Until metrics.jsonl holds `step`."""
        wait_until(lambda: last_step(self.folder) >= step or not self.process.is_alive(), f"it stays below step {step}")

    def signal(self, number: signal.Signals) -> int:
        """Send it, alone of its session; its exit status."""
        os.kill(self.pid, number)
        return self.wait()


class RankProcesses:
    """One run as several processes, told what torchrun would tell them."""

    def __init__(
        self, overrides: list[str], results: Path, *, world_size: int = 2, kill_at_sync: tuple[int, int] | None = None
    ) -> None:
        """`kill_at_sync`: a rank and its n, see `TrainProcess`; ranks other than the first sync one file of tensors for
        each checkpoint."""
        shared = {"WORLD_SIZE": str(world_size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
        self.ranks = [
            TrainProcess(
                overrides,
                results,
                kill_at_sync=dict([kill_at_sync] if kill_at_sync else []).get(rank),
                rank={**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            )
            for rank in range(world_size)
        ]
        self.folder = self.ranks[0].folder

    def wait(self) -> list[int]:
        return [rank.wait() for rank in self.ranks]

    @property
    def output(self) -> str:
        return "\n".join(rank.output for rank in self.ranks)


def _train(arguments: list[str], output: str, kill_at_sync: int | None, rank: dict[str, str]) -> None:
    os.setsid()
    os.environ.update(rank)
    _print_to(output)
    if kill_at_sync is not None:
        _die_at_sync(kill_at_sync)
    sys.argv = ["dinoswap-train", *arguments]
    from dinoswap.train import main

    main()


def command(module: str, arguments: Sequence[str], environment: Mapping[str, str], cwd: Path) -> tuple[int, str]:
    """`python -m dinoswap.<module> <arguments>` in this environment, whose PYTHONPATH is searched: its exit status, and
    what it printed."""
    with tempfile.NamedTemporaryFile() as output:
        asked = (module, list(arguments), dict(environment), str(cwd), output.name)
        process = _context.Process(target=_typed, args=asked)
        process.start()
        process.join(timeout=280)
        process.kill()  # where it hangs
        printed = Path(output.name).read_text()
        process.join()
    assert process.exitcode != -signal.SIGKILL, f"it hangs:\n{printed}"
    return process.exitcode, printed


def _typed(module: str, arguments: list[str], environment: dict[str, str], cwd: str, output: str) -> None:
    os.environ.update(environment)
    sys.path[:0] = environment.get("PYTHONPATH", "").split(os.pathsep)
    os.chdir(cwd)
    _print_to(output)
    sys.argv = [module, *arguments]
    sys.exit(importlib.import_module(f"dinoswap.{module}").main())


def _print_to(output: str) -> None:
    descriptor = os.open(output, os.O_WRONLY | os.O_APPEND)
    for standard in (1, 2):
        os.dup2(descriptor, standard)


def _die_at_sync(number: int) -> None:
    sync, counter, begun = os.fsync, itertools.count(), False

    def fsync(descriptor: int) -> None:
        nonlocal begun
        place = Path(f"/proc/self/fd/{descriptor}").readlink()
        begun = begun or place.suffix == ".safetensors"
        if begun and "/checkpoints" in str(place) and next(counter) == number:
            os.kill(os.getpid(), signal.SIGKILL)
        sync(descriptor)

    os.fsync = fsync


def session(leader: int) -> list[int]:
    """Living processes of the session that `leader` leads."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, _, its_session = stat.read_text().rsplit(")", 1)[1].split()[:4]
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(its_session) == leader and state != "Z":
            found.append(int(stat.parent.name))
    return found


def wait_until(condition: Callable[[], bool], message: str, seconds: float = 200) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, message
        time.sleep(0.01)


def tensor_files(checkpoint: Path) -> dict[str, bytes]:
    """Content of each file, by name."""
    found = {path.name: path.read_bytes() for path in checkpoint.glob("*.safetensors")}
    assert found, f"{checkpoint} has no tensors"
    return found


def last_step(folder: Path) -> int:
    """The last step in a run's metrics.jsonl; -1 when there is none."""
    path = folder / "metrics.jsonl"
    return max((row["step"] for row in metrics.read(path)), default=-1) if path.exists() else -1


def lines(folder: Path) -> list[dict[str, Any]]:
    """Of metrics.jsonl, without what depends on the clock."""
    return [
        {name: value for name, value in json.loads(line).items() if name != "images_per_second"}
        for line in (folder / "metrics.jsonl").read_text().splitlines()
    ]
