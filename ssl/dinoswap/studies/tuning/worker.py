"""A worker of a search: asks for a trial, runs it, reports how it ended, and asks for the next, until all are done.
Then the base and the winners are run with fresh seeds, each run by the worker that comes to it first.

Any number of workers, on any nodes that share the results folder, work on a search without knowing of each other, and
none waits for another while there is a trial to be had.
"""

import multiprocessing
import os
import socket
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import TrialState

from dinoswap.config.schema import ConfigError
from dinoswap.distributed.preemption import Preemption
from dinoswap.files.lock import exclusive, holder
from dinoswap.studies.overrides import Scalar
from dinoswap.studies.submit import listen
from dinoswap.studies.tuning.definition import Tuning
from dinoswap.studies.tuning.training import Outcome, Training
from dinoswap.studies.tuning.trials import (
    RETRIES,
    ended_numbers,
    give_back,
    next_trial,
    open_study,
    winners,
    worker_folder,
)

BASE = "base"
"""The arm that winners are compared with."""


@dataclass
class Worker:
    """A worker of a search, which works when it is called.

    `before` are the numbers of the trials that had ended when its command was started, None for now; `variables` are
    set in the environment of its runs, and `look` is the seconds between two looks for work while other workers have
    all of it. submitit calls `checkpoint` when it queues the job again.
    """

    tuning: Tuning
    slot: int = 0
    url: str | None = None
    before: frozenset[int] | None = None
    variables: dict[str, str] = field(default_factory=dict)
    look: float = 5.0
    training: type[Training] = Training

    def __call__(self) -> None:
        """Works until the search is done or the worker is stopped. Raises trials.Stopped when trials fail one after the
        other, and OSError where the file system keeps no locks, by which others see that it lives."""
        listen()
        if int(os.environ.get("SLURM_PROCID", "0")):
            return  # one task of a job is enough: a run is one process
        os.environ.update(self.variables)
        name = f"{socket.gethostname()}-{os.getpid()}-{self.slot}"
        folder = worker_folder(self.tuning.folder, name)
        with Preemption() as preemption, exclusive(folder):
            if holder(folder) is None:
                raise OSError(f"{folder}: this file system keeps no locks; put results_dir on one that does")

            def stopping() -> bool:
                return preemption.requested is not None or _abandoned()

            study = open_study(self.tuning, self.url)
            before = ended_numbers(study) if self.before is None else self.before
            self.search(study, name, before, stopping)
            self.confirm(study, stopping)
            preemption.forward()

    def checkpoint(self) -> Any:
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)

    def search(self, study: optuna.Study, name: str, before: frozenset[int], stopping: Callable[[], bool]) -> None:
        """Runs trials until none is left and no other worker has one, which it might leave behind."""
        while not stopping():
            trial = next_trial(study, self.tuning, name, before)
            if trial is not None:
                self.run_trial(study, trial, stopping)
            elif any(not trial.state.is_finished() for trial in study.get_trials(deepcopy=False)):
                time.sleep(self.look)
            else:
                return

    def run_trial(self, study: optuna.Study, trial: optuna.Trial, stopping: Callable[[], bool]) -> None:
        """Runs a trial and reports its outcome. A run that has a result already is neither run again nor pruned."""
        trial.set_user_attr("overrides", self.tuning.overrides(trial.params))
        try:
            run = self.training(self.tuning, trial.params, None, f"trial-{trial.number:04d}")
        except ConfigError as error:
            tell(study, trial, self.tuning, Outcome("failed", {}, str(error)), pruned=False)
            return
        trial.set_user_attr("folder", str(run.folder))
        pruned, ended, alone = False, run.ended, len(self.tuning.objectives) == 1
        if not ended:
            run.start()
        for step, value in run.follow(self.tuning.objectives[0].name, stopping):
            if not alone or pruned:
                continue
            trial.report(value, step)
            if not ended and trial.should_prune():
                pruned = True
                run.terminate()
        tell(study, trial, self.tuning, run.outcome(), pruned=pruned)

    def confirm(self, study: optuna.Study, stopping: Callable[[], bool]) -> None:
        """Runs the arms and seeds that have no result. Workers begin at different places in the list, so that they
        rarely want the same run."""
        runs = [
            self.training(self.tuning, values, seed, f"{arm}-seed-{seed}".replace(" ", "-"))
            for arm, values in arms(study, self.tuning).items()
            for seed in self.tuning.seeds
        ]
        first = self.slot * len(runs) // max(self.tuning.workers, self.slot + 1)
        runs = runs[first:] + runs[:first]
        failures: Counter[Path] = Counter()
        while not stopping():
            remaining = [run for run in runs if not run.ended and failures[run.folder] <= RETRIES]
            run = next((run for run in remaining if not run.busy), None)
            if not remaining:
                return
            if run is None:
                time.sleep(self.look)
                continue
            run.start()
            for _ in run.follow(None, stopping):
                pass
            status = run.outcome().status
            failures[run.folder] += status in ("failed", "killed")
            print(f"{run.output.stem}: {status}", flush=True)


def tell(study: optuna.Study, trial: optuna.Trial, tuning: Tuning, outcome: Outcome, *, pruned: bool) -> None:
    """Tells Optuna how a trial ended. One that diverged is closed as pruned: the sampler then avoids its values, as it
    would not after a failure."""
    names = [objective.name for objective in tuning.objectives]
    missing, error = [name for name in names if name not in outcome.values], outcome.error
    status = "pruned" if pruned and outcome.status == "preempted" else outcome.status
    if status == "completed" and missing:
        status, error = "failed", f"completed without a finite {', '.join(missing)}"
    trial.set_user_attr("status", status)
    if error is not None:
        trial.set_user_attr("error", error.partition("\n")[0])
    if status == "completed":
        study.tell(trial.number, [outcome.values[name] for name in names], skip_if_finished=True)
    elif status in ("preempted", "killed"):
        give_back(study, trial.number, died=status == "killed")
    else:
        state = TrialState.FAIL if status == "failed" else TrialState.PRUNED
        study.tell(trial.number, state=state, skip_if_finished=True)


def arms(study: optuna.Study, tuning: Tuning) -> dict[str, dict[str, Scalar]]:
    """Returns the arms that are run with fresh seeds, name -> values. The first is the base; without winners there are
    none."""
    best = {f"trial {trial.number}": dict(trial.params) for trial in winners(study, tuning.winners)}
    return {BASE: {}, **best} if best else {}


def _abandoned() -> bool:
    """Returns whether the command that started this worker is gone; False in a cluster job, which has none."""
    parent = multiprocessing.parent_process()
    return parent is not None and not parent.is_alive()
