"""Submits jobs with submitit: what `hydra/launcher=slurm` and the workers of a search share."""

import json
import logging
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any

from dinoswap.config.schema import ConfigError
from dinoswap.files.writing import write_atomically
from dinoswap.studies.ledger import read_json

PYTHON = (
    *(sys.executable, "-S", "-c"),
    "import os, signal, sys; signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR2]); "
    "os.execv(sys.executable, [sys.executable, *sys.argv[1:]])",
)
"""The command that starts Python in a job, with SIGUSR2 blocked. Imports take seconds, and a signal that came before
submitit handles it would end the job, which would not be queued again. `listen` unblocks the signal."""
LAUNCHER_SETTINGS = ("_target_", "submitit_folder", "max_num_timeout", "poll_seconds", "check_code")
"""Settings of hydra.launcher that are not settings of a job."""
PARAMETERS = {"requeue": True}
"""Parameters of sbatch, unless additional_parameters say otherwise. `requeue` also queues a job again after the failure
of a node, which is not the default of every site."""
BUSY = ("timed out", "Unable to contact", "temporarily unable", "temporarily unavailable", "Zero Bytes", "refused")
"""Words in the error of an sbatch that the controller did not answer, and may answer the next time."""
WAITS = (2.0, 5.0, 15.0, 40.0)
"""Seconds between repeated calls of sbatch that the controller did not answer."""
QUESTION_SECONDS = 60.0
EARLY_SECONDS = 60.0
"""Seconds by which SLURM may send a signal too soon."""

_log = logging.getLogger(__name__)


def executor(settings: Mapping[str, Any], cluster: str = "slurm") -> Any:
    """Returns submitit's executor with the settings of hydra.launcher, where None is the site's default. Raises
    RuntimeError without a SLURM, and ConfigError for a time limit that is over before a job is told of it."""
    import submitit
    from hydra_plugins.hydra_submitit_launcher.config import BaseQueueConf

    slurm_only = {}
    if cluster == "slurm":
        require_time(settings)
        settings = {**settings, "additional_parameters": PARAMETERS | (settings.get("additional_parameters") or {})}
        slurm_only = {"slurm_max_num_timeout": settings["max_num_timeout"], "slurm_python": shlex.join(PYTHON)}
    job_executor = submitit.AutoExecutor(settings["submitit_folder"], cluster=cluster, **slurm_only)
    common = {field.name for field in fields(BaseQueueConf)}
    parameters = {
        name: value for name, value in settings.items() if name not in LAUNCHER_SETTINGS and value is not None
    }
    job_executor.update_parameters(
        **{name if name in common else f"{cluster}_{name}": value for name, value in parameters.items()}
    )
    return job_executor


def require_time(settings: Mapping[str, Any]) -> None:
    """Raises ConfigError where a job would be told to stop before it has started."""
    minutes, delay = settings.get("timeout_min"), settings.get("signal_delay_s")
    if minutes is not None and delay is not None and minutes * 60 <= delay:
        raise ConfigError(
            f"hydra.launcher.timeout_min={minutes}: a job is told to stop hydra.launcher.signal_delay_s={delay} seconds"
            f" before that limit of {minutes * 60:g} seconds, so none is left; raise the one or lower the other"
        )


# --- a job, on its node -----------------------------------------------------------------------------------------------


def listen() -> None:
    """Unblocks SLURM's signal, first thing in a job, once submitit handles it: one that came before is delivered
    now."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGUSR2])


def near_its_limit(settings: Mapping[str, Any]) -> bool:
    """Returns whether SLURM's signal is that of the time limit, which may come a minute early, and not of a
    preemption."""
    minutes = settings["timeout_min"]
    return minutes is not None and age() >= minutes * 60 - settings["signal_delay_s"] - EARLY_SECONDS


def age() -> float:
    """Returns the seconds since this process was started, including those before Python ran."""
    ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])  # field 22, `man 5 proc`
    return float(Path("/proc/uptime").read_text().split()[0]) - ticks / os.sysconf("SC_CLK_TCK")


def give_up(folder: Path, settings: Mapping[str, Any]) -> None:
    """Records the run as failed and ends the job's process at once, with status 1. The job is told to stop while it
    imports, so nothing is imported for this."""
    minutes, delay = settings["timeout_min"], settings["signal_delay_s"]
    reason = (
        f"the limit of {minutes:g} min, less {delay:g} s, is shorter than a start and a step take: no step "
        "was done in two turns; raise hydra.launcher.timeout_min"
    )
    path = folder / "run.json"
    seed = int("".join(filter(str.isdigit, folder.name)) or 0)
    begun = {"run_id": folder.parent.name, "study": folder.parents[1].name, "seed": seed, "restarts": 0, "steps": 0}
    record = {**begun, **read_json(path), "status": "failed", "error": reason}
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(path, json.dumps(record, indent=2) + "\n")
    print(reason, flush=True)
    os._exit(1)


# --- sbatch -----------------------------------------------------------------------------------------------------------


def submitted(given: Any, task: Callable[..., Any], rows: Sequence[Sequence[Any]], parallel: int) -> Iterator[Any]:
    """Yields submitit's handles of `task(*row)` in the order of `rows`, as the jobs are accepted.

    It is one job array, or as many as the site's MaxArraySize asks for, which then share `parallel`, the number of jobs
    at a time. Raises ConfigError, with a remedy, when SLURM refuses; what came before has been submitted.
    """
    limits = limits_of_site()
    if len(rows) > limits.get("MaxJobCount", len(rows)):
        raise ConfigError(
            f"hydra/launcher=slurm: {len(rows)} jobs, and this SLURM holds {limits['MaxJobCount']} at most "
            "(MaxJobCount); submit them in parts, by fewer seeds or cells at a time"
        )
    size = min(limits.get("MaxArraySize", len(rows)), len(rows))
    parts = [rows[first : first + size] for first in range(0, len(rows), size)]
    if len(parts) > 1:
        given.update_parameters(slurm_array_parallelism=max(1, parallel // len(parts)))
        _log.info("%d jobs as %d arrays: this SLURM's MaxArraySize is %d", len(rows), len(parts), size)
    while parts:
        part = parts.pop(0)
        try:
            handles = with_retries(partial(given.map_array, task, *zip(*part, strict=True)))
        except RuntimeError as error:  # there is no SLURM, or sbatch refuses
            if "job array" not in str(error) or len(part) == 1:
                raise ConfigError(refusal(error)) from error
            half = (len(part) + 1) // 2  # its limit is not known
            parts[:0] = [part[:half], part[half:]]
        else:
            yield from handles


def with_retries(submit: Callable[[], Any]) -> Any:
    """Returns what `submit` returns, and calls it again after each of WAITS while the controller does not answer.
    Raises its RuntimeError for other failures, and after the last call."""
    for seconds in WAITS:
        try:
            return submit()
        except RuntimeError as error:
            if not any(word in str(error) for word in BUSY):
                raise
            _log.warning("%s; trying again in %g seconds", _one_line(error), seconds)
            time.sleep(seconds)
    return submit()


def limits_of_site() -> dict[str, int]:
    """Returns this SLURM's MaxArraySize (elements of one job array) and MaxJobCount, where scontrol shows them."""
    text = _answer("scontrol", "show", "config")
    return {name: int(value) for name, value in re.findall(r"^(MaxArraySize|MaxJobCount)\s*=\s*(\d+)", text, re.M)}


def refusal(error: Exception) -> str:
    """Returns a message with what sbatch reported and what helps."""
    reported = _one_line(error)
    remedy = ""
    if "partition" in reported:
        names = sorted(set(_answer("sinfo", "--noheader", "--format=%R").split()))
        remedy = f"; hydra.launcher.partition is one of {', '.join(names)}" if names else ""
    elif re.search(r"QOS|submit limit|policy", reported):
        remedy = "; ask for less: fewer seeds or cells at a time, or another hydra.launcher.qos or account"
    elif any(word in reported for word in BUSY):
        remedy = "; the controller does not answer: give the same command again later"
    return f"hydra/launcher=slurm: {reported}{remedy}"


def _answer(*command: str) -> str:
    """Returns what one of SLURM's commands prints, or an empty text where it is missing or fails to start."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=QUESTION_SECONDS)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout


def _one_line(error: Exception) -> str:
    """Returns an error's message on one line."""
    return " ".join(str(error).split())
