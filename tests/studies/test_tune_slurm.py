"""A search by the jobs of a SLURM array, of which one is killed and one queued again; the cluster is test_slurm's."""

import os
import re
import signal
from pathlib import Path

import optuna
import pytest
import test_slurm
from optuna.trial import FrozenTrial, TrialState
from test_slurm import LAUNCHER, WAIT, Command, call

from dinoswap.run import metrics
from dinoswap.studies.tuning.trials import storage
from train_processes import last_step, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

cluster = test_slurm.cluster

STUDY = """\
# Which learning rate?
base:
  - recipe=smoke
  - trainer.max_steps=300
  - trainer.eval_every=100
  - trainer.checkpoint_every=0
  - trainer.tensorboard=false
  - evaluation.in_loop_images=20
  - evaluation.images=20
space:
  schedule.base_lr: {type: float, low: 1.0e-4, high: 1.0e-2, log: true}
objective: eval/knn_top1
direction: maximize
trials: 4
workers: 2
winners: 0
seeds: [1]
"""


def test_a_search_survives_its_jobs(cluster: None, tmp_path: Path) -> None:
    path, folder = tmp_path / "mine.yaml", tmp_path / "runs/mine/tune"
    path.write_text(STUDY)
    arguments = (path, f"results_dir={tmp_path}", *LAUNCHER, "hydra.launcher.check_code=false")
    first = Command("studies.tune", *arguments)
    wait_until(lambda: "Ctrl-C leaves them there" in first.output, "it does not submit", WAIT)
    assert first.interrupt() == 75, first.output
    second = Command("studies.tune", *arguments)
    wait_until(lambda: "Ctrl-C leaves them there" in second.output, "it does not find the jobs", WAIT)
    jobs = re.findall(r"\d+_\d", first.output.splitlines()[0])
    assert len(jobs) == 2
    assert re.findall(r"\d+_\d", second.output.splitlines()[0]) == jobs

    wait_until((folder / "journal.log").exists, "no trial", WAIT)
    study = optuna.load_study(study_name="mine", storage=storage(folder))
    wait_until(lambda: len(under_way(study)) == 2, "no two runs are under way", WAIT)
    killed, queued_again = under_way(study)
    os.kill(worker(killed), signal.SIGKILL)
    os.kill(worker(queued_again), signal.SIGUSR2)  # what SLURM sends before a time limit, and when it preempts
    assert second.wait() == 0, second.output

    trials = study.trials
    errors = [trial.user_attrs.get("error") for trial in trials]
    assert [trial.state for trial in trials].count(TrialState.COMPLETE) == 4, errors
    assert [trial.state for trial in trials].count(TrialState.FAIL) == 2
    retries = {trial.user_attrs["retry_of"]: trial for trial in trials if "retry_of" in trial.user_attrs}
    assert {number: retry.user_attrs["deaths"] for number, retry in retries.items()} == {
        killed.number: 1,
        queued_again.number: 0,
    }
    for before in (killed, queued_again):
        retry = retries[before.number]
        record = metrics.load_record(Path(retry.user_attrs["folder"]) / "run.json")
        assert (retry.params, retry.user_attrs["folder"]) == (before.params, before.user_attrs["folder"])
        assert (record["status"], record["restarts"], record["steps"]) == ("completed", 1, 300)
        rows = metrics.read(Path(retry.user_attrs["folder"]) / "metrics.jsonl")
        assert [row["step"] for row in rows if "loss" in row] == list(range(1, 301))
    assert sum("Restarts=1" in call("scontrol", "show", "job", job) for job in jobs) == 1


def under_way(study: optuna.Study) -> list[FrozenTrial]:
    running = study.get_trials(states=[TrialState.RUNNING])
    return [trial for trial in running if last_step(Path(trial.user_attrs.get("folder", "none yet"))) >= 20]


def worker(trial: FrozenTrial) -> int:
    """Its process."""
    return int(trial.user_attrs["worker"].split("-")[-2])
