"""The workers of a search: processes on this machine, or a job array of a cluster, by the settings of Hydra's launcher.

`hydra/launcher=local` (the default) and `slurm` mean what they mean to dinoswap-train, so that a site's settings stand
in one place; `workers` of the study is the number of processes, or of jobs.
"""

import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from multiprocessing import connection
from multiprocessing.context import SpawnProcess
from typing import Any, cast

from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from dinoswap.config.configuration import VERSION_BASE, config_dir
from dinoswap.distributed.preemption import Preemption
from dinoswap.files.writing import write_atomically
from dinoswap.run.provenance import SUBMITTED_CODE, code_version
from dinoswap.studies.ledger import queued_jobs
from dinoswap.studies.submit import executor
from dinoswap.studies.tuning.definition import Tuning
from dinoswap.studies.tuning.trials import Stopped, ended_numbers, open_study
from dinoswap.studies.tuning.worker import Worker

RESTARTS = 3
"""How often a worker on this machine that is killed is started again."""
LOOK = 1.0
"""Seconds between two calls of `tell`."""

_processes = multiprocessing.get_context("spawn")


class Interrupted(Exception):
    """Raised when a signal interrupts the search, which the same command continues."""


def work(tuning: Tuning, url: str | None, hydra_overrides: Sequence[str], tell: Callable[[], None]) -> None:
    """Runs the workers of a search until none is left, and calls `tell` about every LOOK seconds meanwhile.

    Raises Interrupted when a signal stops this command.
    """
    settings = launcher_settings(tuning, hydra_overrides)
    (_on_cluster if "submitit_folder" in settings else _here)(tuning, url, settings, tell)


def launcher_settings(tuning: Tuning, hydra_overrides: Sequence[str]) -> dict[str, Any]:
    """Returns the resolved section hydra.launcher, by default that of the local launcher."""
    chosen = any(line.startswith("hydra/launcher=") for line in hydra_overrides)
    overrides = [*tuning.overrides(), *([] if chosen else ["hydra/launcher=local"]), *hydra_overrides]
    with initialize_config_dir(str(config_dir()), job_name=f"tune-{tuning.name}", version_base=VERSION_BASE):
        config = compose("train", overrides, return_hydra_config=True)
        return cast(dict[str, Any], OmegaConf.to_container(config.hydra.launcher, resolve=True))


def code(settings: Mapping[str, Any]) -> dict[str, str]:
    """Returns the environment variable that makes a run refuse to start when the code has changed since this command
    was started; it is empty unless the settings have `check_code`."""
    return {SUBMITTED_CODE: code_version(config_dir()) if settings.get("check_code") else ""}


# --- this machine -----------------------------------------------------------------------------------------------------


def _here(tuning: Tuning, url: str | None, settings: Mapping[str, Any], tell: Callable[[], None]) -> None:
    """Runs the workers as processes of this machine, and starts those that are killed again, RESTARTS times each."""
    before = ended_numbers(open_study(tuning, url))
    shares = [share(slot, tuning.workers, settings) for slot in range(tuning.workers)]
    workers = [Worker(tuning, slot, url, before, variables) for slot, variables in enumerate(shares)]
    with Preemption() as preemption:
        crew, restarts = [_started(worker) for worker in workers], [0] * len(workers)
        while alive := [process for process in crew if process.is_alive()]:
            connection.wait([process.sentinel for process in alive], timeout=LOOK)
            if preemption.requested:
                _end(alive)
                raise Interrupted(preemption.requested)
            tell()
            for slot, process in enumerate(crew):
                killed = not process.is_alive() and (process.exitcode or 0) < 0
                if killed and restarts[slot] < RESTARTS:
                    restarts[slot] += 1
                    crew[slot] = _started(workers[slot])


def share(slot: int, workers: int, settings: Mapping[str, Any]) -> dict[str, str]:
    """Returns the environment of one worker: its part of the cores, its GPU if there is a list of them, and the
    code."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = str(settings.get("threads") or max(1, cores // workers))
    gpus = settings.get("gpus")
    gpu = {"CUDA_VISIBLE_DEVICES": str(gpus[slot % len(gpus)])} if gpus else {}
    return {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads, **gpu, **code(settings)}


def _started(worker: Worker) -> SpawnProcess:
    """Returns the process of a worker, which is started."""
    process = _processes.Process(target=_work, args=(worker,))
    process.start()
    return process


def _work(worker: Worker) -> None:
    """Runs a worker in its process, as a session of its own: the command stops it, not Ctrl-C in the terminal."""
    os.setsid()
    try:
        worker()
    except Stopped as stopped:
        sys.exit(f"dinoswap-tune: {stopped}")


def _end(processes: Sequence[SpawnProcess]) -> None:
    """Terminates the processes, and waits until they have ended."""
    for process in processes:
        process.terminate()
    for process in processes:
        process.join()


# --- a cluster --------------------------------------------------------------------------------------------------------


def _on_cluster(tuning: Tuning, url: str | None, settings: Mapping[str, Any], tell: Callable[[], None]) -> None:
    """Submits as many workers as are not queued or running yet, and waits for all. They go on when this command is
    interrupted."""
    slurm, path = "partition" in settings, tuning.folder / "jobs.txt"
    queued = queued_jobs(path.read_text(errors="replace").split()) if slurm and path.is_file() else set()
    jobs = _submitted(tuning, url, settings, "slurm" if slurm else "local", range(len(queued), tuning.workers))
    queued |= {str(job.job_id) for job in jobs}
    write_atomically(path, "".join(f"{job}\n" for job in sorted(queued)))
    print(f"jobs {', '.join(sorted(queued))}: Ctrl-C leaves them there, the same command finds them again", flush=True)
    try:
        while queued:
            time.sleep(settings.get("poll_seconds", LOOK))
            tell()
            queued = queued_jobs(queued) if slurm else {str(job.job_id) for job in jobs if not job.done()}
    except KeyboardInterrupt:
        raise Interrupted("SIGINT; the jobs are left alone") from None


def _submitted(tuning: Tuning, url: str | None, settings: Mapping[str, Any], cluster: str, slots: range) -> list[Any]:
    """Submits a job for each slot, and returns submitit's handles."""
    if not slots:
        return []
    job_executor = executor(settings, cluster)
    with job_executor.batch():
        return [job_executor.submit(Worker(tuning, slot, url, variables=code(settings))) for slot in slots]
