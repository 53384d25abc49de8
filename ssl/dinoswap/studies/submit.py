"""Handing jobs to submitit: what `hydra/launcher=slurm` and the workers of a search share."""

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
"""Starts another Python, which a signal cannot end before submitit handles it: what takes seconds to be imported first
would be a job that is preempted and not queued again. `listen` ends that."""
OF_THE_LAUNCHER = ("_target_", "submitit_folder", "max_num_timeout", "poll_seconds", "check_code")
"""Settings of hydra.launcher that are not those of a job."""
PARAMETERS = {"requeue": True}
"""Of sbatch, unless additional_parameters say otherwise: also after the failure of a node, where that is no default."""
BUSY = ("timed out", "Unable to contact", "temporarily unable", "temporarily unavailable", "Zero Bytes", "refused")
"""Words of an sbatch to which the controller gave no answer: it may the next time."""
WAITS = (2.0, 5.0, 15.0, 40.0)
"""Seconds between such calls of sbatch."""
QUESTION_SECONDS = 60.0
EARLY_SECONDS = 60.0
"""By which SLURM may send a signal too soon."""

_log = logging.getLogger(__name__)


def executor(settings: Mapping[str, Any], cluster: str = "slurm") -> Any:
    """submitit's, by the settings of hydra.launcher; None is the site's default. RuntimeError without a SLURM,
    ConfigError for a time limit that is over before a job is told of it."""
    import submitit
    from hydra_plugins.hydra_submitit_launcher.config import BaseQueueConf

    own = {}
    if cluster == "slurm":
        require_time(settings)
        settings = {**settings, "additional_parameters": PARAMETERS | (settings.get("additional_parameters") or {})}
        own = {"slurm_max_num_timeout": settings["max_num_timeout"], "slurm_python": shlex.join(PYTHON)}
    made = submitit.AutoExecutor(settings["submitit_folder"], cluster=cluster, **own)
    common = {field.name for field in fields(BaseQueueConf)}
    given = {name: value for name, value in settings.items() if name not in OF_THE_LAUNCHER and value is not None}
    made.update_parameters(**{n if n in common else f"{cluster}_{n}": value for n, value in given.items()})
    return made


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
    """First in a job, once submitit handles signals: what came before is delivered now."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGUSR2])


def near_its_limit(settings: Mapping[str, Any]) -> bool:
    """Whether SLURM's signal is that of the time limit, which may come a minute early, and not of a preemption."""
    minutes = settings["timeout_min"]
    return minutes is not None and age() >= minutes * 60 - settings["signal_delay_s"] - EARLY_SECONDS


def age() -> float:
    """Seconds since this process was started, also before Python."""
    ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])  # field 22, `man 5 proc`
    return float(Path("/proc/uptime").read_text().split()[0]) - ticks / os.sysconf("SC_CLK_TCK")


def give_up(folder: Path, settings: Mapping[str, Any]) -> None:
    """End the job here and now, as failed. It is told to stop while it imports, so nothing is imported for this."""
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
    """submitit's handles of `task(*row)` in the order of `rows`, as they are accepted.

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
            handles = patiently(partial(given.map_array, task, *zip(*part, strict=True)))
        except RuntimeError as error:  # there is no SLURM, or sbatch refuses
            if "job array" not in str(error) or len(part) == 1:
                raise ConfigError(refusal(error)) from error
            half = (len(part) + 1) // 2  # its limit is not known
            parts[:0] = [part[:half], part[half:]]
        else:
            yield from handles


def patiently(submit: Callable[[], Any]) -> Any:
    """What `submit` returns, in one of several tries where the controller does not answer."""
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
    """MaxArraySize and MaxJobCount, where scontrol tells them. An array may have so many elements."""
    text = _answer("scontrol", "show", "config")
    return {name: int(value) for name, value in re.findall(r"^(MaxArraySize|MaxJobCount)\s*=\s*(\d+)", text, re.M)}


def refusal(error: Exception) -> str:
    """What sbatch said, and what helps."""
    said = _one_line(error)
    remedy = ""
    if "partition" in said:
        names = sorted(set(_answer("sinfo", "--noheader", "--format=%R").split()))
        remedy = f"; hydra.launcher.partition is one of {', '.join(names)}" if names else ""
    elif re.search(r"QOS|submit limit|policy", said):
        remedy = "; ask for less: fewer seeds or cells at a time, or another hydra.launcher.qos or account"
    elif any(word in said for word in BUSY):
        remedy = "; the controller does not answer: give the same command again later"
    return f"hydra/launcher=slurm: {said}{remedy}"


def _answer(*command: str) -> str:
    """What one of SLURM's commands prints; nothing where there is none, or it fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=QUESTION_SECONDS)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
