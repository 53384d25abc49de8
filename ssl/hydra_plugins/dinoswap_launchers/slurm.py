"""hydra/launcher=slurm: hydra-submitit-launcher, with runs that are found again whatever becomes of a job.

What is done, or under way, is not submitted again. A job that is killed or lost is reported and ends no other's report;
what became of a job is read from its run folder, and whether it is still there from squeue, which needs no accounting.
The code that a job starts with is what it was submitted with, also when it was queued again, or it says so and ends.
"""

import logging
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn, JobStatus, configure_log
from hydra.plugins.launcher import Launcher

from dinoswap.config.exit_codes import EXIT_INTERRUPTED

if TYPE_CHECKING:
    from dinoswap.studies.launch import Job

SUBMISSION_SECONDS = 600.0  # of somebody else, who submits into the same folder
IDLE_TURNS = 2  # to the time limit, without a step: the first start on a node reads more from the disk than the second
SETTLING_SECONDS = 5.0  # until the last record of a job is visible on a shared file system

_log = logging.getLogger(__name__)


class NotInstalled(Launcher):
    """Stands in for hydra-submitit-launcher, an extra of this package, and raises ImportError with the remedy."""

    def __init__(self, **settings: Any) -> None:
        raise ImportError("hydra/launcher=slurm needs submitit: pip install 'dinoswap[slurm]'")

    def setup(self, **settings: Any) -> None:
        raise NotImplementedError


try:
    from hydra_plugins.hydra_submitit_launcher.submitit_launcher import SlurmLauncher as Submitit
except ImportError:
    Submitit = NotInstalled


class SlurmLauncher(Submitit):  # type: ignore[misc]
    """The SLURM launcher, with the settings of configs/hydra/launcher/slurm.yaml. It is pickled and sent to the node,
    where `__call__` is the job."""

    def __init__(self, *, poll_seconds: float, check_code: bool, **settings: Any) -> None:
        super().__init__(**settings)
        self.poll_seconds, self.check_code = poll_seconds, check_code
        self.code = ""
        self.names: dict[tuple[str, ...], str] = {}
        self.folders: dict[int, Path] = {}  # where the driver looks for a run, by the job's number
        self.done, self.idle_turns = 0, 0

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        from dinoswap.config.configuration import config_dir
        from dinoswap.config.schema import ConfigError
        from dinoswap.files.lock import exclusive
        from dinoswap.run.provenance import code_version
        from dinoswap.studies.launch import jobs_of, report, startable

        configure_log(self.config.hydra.hydra_logging, self.config.hydra.verbose)
        ranks = self.params["nodes"] * self.params["tasks_per_node"]
        jobs = jobs_of(self.config, self.hydra_context.config_loader, job_overrides, initial_job_idx, self.names, ranks)
        self.code = code_version(config_dir()) if self.check_code else ""
        try:
            # So that no other command submits the same jobs meanwhile
            with exclusive(Path(self.config.hydra.sweep.dir), SUBMISSION_SECONDS):
                self._submit(startable(jobs))
        except OSError as error:  # a full disk, a folder that cannot be made
            raise ConfigError(f"hydra/launcher=slurm: not all jobs were submitted: {error}") from error
        try:
            self._wait(jobs)
        except KeyboardInterrupt:
            _log.info("the jobs go on; `dinoswap-ablate status`, or the same command again, tells where they stand")
            sys.exit(EXIT_INTERRUPTED)
        return report(jobs)

    def _submit(self, jobs: Sequence["Job"]) -> None:
        """Submits the jobs as one array and records in each run folder which job will run it. Raises ConfigError where
        there is no SLURM."""
        from dinoswap.config.schema import ConfigError
        from dinoswap.studies.ledger import claim
        from dinoswap.studies.submit import executor, refusal, submitted

        if not jobs:
            return
        self.folders = {job.number: job.folder for job in jobs}
        state = Singleton.get_state()
        rows = [(job.overrides, "hydra.sweep.dir", job.number, f"job_id_for_{job.number}", state) for job in jobs]
        try:
            job_executor = executor(self.params)
        except RuntimeError as error:  # there is no SLURM
            raise ConfigError(refusal(error)) from error
        handles = submitted(job_executor, self, rows, self.params["array_parallelism"])
        for handle, job in zip(handles, jobs, strict=True):
            claim(job.folder, str(handle.job_id), handle.paths.stdout)
            _log.info("%s is SLURM job %s", job.name, handle.job_id)

    def _wait(self, jobs: Sequence["Job"]) -> None:
        """Waits for the jobs that are queued or run, also those that were submitted before, and logs how each ended."""
        from dinoswap.studies.launch import log_outcome
        from dinoswap.studies.ledger import claimed, queued_jobs, run_statuses

        under_way = [status.state in ("queued", "running") for status in run_statuses([job.folder for job in jobs])]
        waiting = {claimed(job.folder): job for job, waits in zip(jobs, under_way, strict=True) if waits}
        waiting.pop("", None)  # running by other means
        while waiting:
            time.sleep(self.poll_seconds)
            queued = queued_jobs(waiting)
            for job_id in [job_id for job_id in waiting if job_id not in queued]:
                log_outcome(waiting.pop(job_id), SETTLING_SECONDS)

    def __call__(self, *arguments: Any) -> JobReturn:
        """Runs a job on its node, where the config is composed anew and resolved. Raises what the run raised, so that
        SLURM too calls the job failed."""
        from dinoswap.distributed.environment import launched_ranks
        from dinoswap.run.provenance import SUBMITTED_CODE
        from dinoswap.run.run_folder import PLACE, followed
        from dinoswap.studies.ledger import read_json
        from dinoswap.studies.submit import listen

        place = self.folders[arguments[2]]
        self.done = read_json(followed(place) / "run.json").get("steps", 0)
        listen()
        os.environ |= {SUBMITTED_CODE: self.code, PLACE: str(place)}
        launched_ranks()  # what SLURM says in the words of torchrun
        returned: JobReturn = super().__call__(*arguments)
        if returned.status != JobStatus.COMPLETED:
            raise returned._return_value
        return returned

    def checkpoint(self, *arguments: Any) -> Any:
        """Returns what submitit queues again, when SLURM has told the job to stop and its state is saved. A job that
        twice reached its time limit without a step is ended as failed: it would use up all `max_num_timeout` turns."""
        from dinoswap.run.run_folder import followed
        from dinoswap.studies.ledger import read_json
        from dinoswap.studies.submit import give_up, near_its_limit

        folder = followed(self.folders[arguments[2]])
        idle = read_json(folder / "run.json").get("steps", 0) <= self.done
        self.idle_turns = self.idle_turns + 1 if idle and near_its_limit(self.params) else 0
        if self.idle_turns == IDLE_TURNS:
            give_up(folder, self.params)
        return super().checkpoint(*arguments)
