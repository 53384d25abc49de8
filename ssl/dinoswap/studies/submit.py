"""Handing jobs to submitit: what `hydra/launcher=slurm` and the workers of a search share."""

import shlex
import signal
import sys
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

PYTHON = (
    *(sys.executable, "-S", "-c"),
    "import os, signal, sys; signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR2]); "
    "os.execv(sys.executable, [sys.executable, *sys.argv[1:]])",
)
"""Starts another Python, which a signal cannot end before submitit handles it: what takes seconds to be imported first
would be a job that is preempted and not queued again. `listen` ends that."""
OF_THE_LAUNCHER = ("_target_", "submitit_folder", "max_num_timeout", "poll_seconds", "check_code")
"""Settings of hydra.launcher that are not those of a job."""


def executor(settings: Mapping[str, Any], cluster: str = "slurm") -> Any:
    """submitit's, by the settings of hydra.launcher; None is the site's default. RuntimeError without a SLURM."""
    import submitit
    from hydra_plugins.hydra_submitit_launcher.config import BaseQueueConf

    own = {}
    if cluster == "slurm":
        own = {"slurm_max_num_timeout": settings["max_num_timeout"], "slurm_python": shlex.join(PYTHON)}
    made = submitit.AutoExecutor(settings["submitit_folder"], cluster=cluster, **own)
    common = {field.name for field in fields(BaseQueueConf)}
    given = {name: value for name, value in settings.items() if name not in OF_THE_LAUNCHER and value is not None}
    made.update_parameters(**{n if n in common else f"{cluster}_{n}": value for n, value in given.items()})
    return made


def listen() -> None:
    """First in a job, once submitit handles signals: what came before is delivered now."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGUSR2])
