"""Running what is missing, through Hydra's launchers: what `hydra/launcher=local` and `slurm` share, and their driver.

A launcher's answer is read from the run folders. A job that leaves no result there (killed, lost with its node) is one
line in the driver's report, and an exit status; the others are collected all the same.
"""

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra import initialize_config_dir
from hydra._internal.callbacks import Callbacks
from hydra.core.config_loader import ConfigLoader
from hydra.core.global_hydra import GlobalHydra
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus
from hydra.errors import HydraException
from hydra.types import HydraContext, RunMode
from omegaconf import DictConfig, open_dict
from omegaconf.errors import OmegaConfBaseException

from dinoswap.config.configuration import VERSION_BASE, config_dir, plain
from dinoswap.config.schema import ConfigError
from dinoswap.run.run_folder import folder_of, planned_id
from dinoswap.studies.ledger import BUSY, Entry, RunStatus, run_statuses
from dinoswap.studies.overrides import quoted

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Job:
    """One run that a launcher is asked to start. `name` is what its messages call the run."""

    number: int
    overrides: list[str]
    folder: Path
    metric: str
    name: str


def jobs_of(
    config: DictConfig,
    loader: ConfigLoader,
    overrides: Sequence[Sequence[str]],
    first: int,
    names: Mapping[tuple[str, ...], str],
    ranks: int = 1,
) -> list[Job]:
    """Returns the jobs of a launcher's batch, numbered from `first`, each of `ranks` processes, with absolute folders.

    What only a compute node knows of a run is not needed for its folder: see `run_folder.planned_id`. `names` holds the
    names of runs by their overrides; others are named by their folder.
    """
    jobs = []
    for number, lines in enumerate(overrides, start=first):
        composed = loader.load_sweep_config(config, list(lines))
        with open_dict(composed):
            composed.hydra.job.num = number
        run = plain(composed, strict=False)
        folder = folder_of(run, planned_id(run, ranks), composed.hydra)
        name = names.get(tuple(lines), "/".join(folder.parts[-3:]))
        jobs.append(Job(number, list(lines), folder, str(composed.objective_metric), name))
    return jobs


def startable(jobs: Sequence[Job]) -> list[Job]:
    """Returns the jobs that are neither done nor under way elsewhere, and logs why the others are not started."""
    chosen = []
    for job, status in zip(jobs, run_statuses([job.folder for job in jobs]), strict=True):
        if status.state in BUSY:
            _log.info("%s is not started: %s", job.name, status.words)
        else:
            chosen.append(job)
    return chosen


def log_outcome(job: Job, patience: float = 0.0) -> None:
    """Logs how a job ended. On a shared file system its last record may be seen up to `patience` seconds late."""
    deadline = time.monotonic() + patience
    (status,) = run_statuses([job.folder])
    while status.state in ("missing", "killed") and time.monotonic() < deadline:
        time.sleep(0.5)
        (status,) = run_statuses([job.folder])
    value = status.record.get("metrics", {}).get(job.metric)
    shown = f", {job.metric} {value:.4g}" if status.state == "completed" and value is not None else ""
    _log.info("%s: %s%s", job.name, status.words, shown)


def report(jobs: Sequence[Job]) -> list[JobReturn]:
    """Returns what Hydra expects of each job: its objective metric, or an exception that says why there is none."""
    statuses = run_statuses([job.folder for job in jobs])
    return [job_return(job, status) for job, status in zip(jobs, statuses, strict=True)]


def job_return(job: Job, status: RunStatus) -> JobReturn:
    """Returns what Hydra's launchers return of a job: the run's metric or, where the run is neither complete nor
    under way, an error that says so."""
    returned = JobReturn(overrides=job.overrides, status=JobStatus.COMPLETED)
    if status.state in BUSY:  # what somebody else has is no failure
        returned.return_value = status.record.get("metrics", {}).get(job.metric)
    else:
        returned.status = JobStatus.FAILED
        returned.return_value = RuntimeError(f"{job.name}: {status.words}; see {job.folder}")
    return returned


def train(cfg: DictConfig) -> float | None:
    """Runs one job and returns its objective metric. A node imports it by name from the installed package."""
    from dinoswap.run.job import run_job

    return run_job(cfg)


def launch(entries: Sequence[Entry], hydra_overrides: Sequence[str] = ()) -> None:
    """Runs the entries through the launcher that `hydra_overrides` choose, by default the local one, and waits for
    them.

    How they ended is in their folders. Raises ConfigError for overrides that Hydra refuses, SystemExit when told to
    stop.
    """
    first = entries[0].config
    if not any(line.startswith("hydra/launcher=") for line in hydra_overrides):
        hydra_overrides = ["hydra/launcher=local", *hydra_overrides]
    overrides = [f"results_dir={quoted(first['results_dir'])}", "hydra.mode=MULTIRUN", *hydra_overrides]
    with initialize_config_dir(str(config_dir()), job_name=f"dinoswap-{first['study']}", version_base=VERSION_BASE):
        hydra = GlobalHydra.instance().hydra
        assert hydra is not None
        try:
            config = hydra.compose_config("train", overrides, run_mode=RunMode.MULTIRUN)
        except (HydraException, OmegaConfBaseException) as error:
            raise ConfigError(" ".join(str(error).split())) from error
        context = HydraContext(config_loader=hydra.config_loader, callbacks=Callbacks(config))
        launcher: Any = Plugins.instance().instantiate_launcher(context, train, config)
        launcher.names = {tuple(entry.overrides): entry.name for entry in entries}
        launcher.launch([entry.overrides for entry in entries], initial_job_idx=0)
