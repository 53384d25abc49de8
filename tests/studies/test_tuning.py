"""A search without the runs: its trials, however its workers fare. Runs are played by files that a formula writes."""

import dataclasses
import json
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import optuna
import pytest
from optuna.trial import FrozenTrial, TrialState
from scipy import stats

from dinoswap.config.command_line import compose_config
from dinoswap.config.schema import ConfigError
from dinoswap.distributed.preemption import SIGNALS
from dinoswap.files.lock import exclusive
from dinoswap.run.run_folder import planned_folder
from dinoswap.studies.tuning.definition import Objective, Tuning, read_tuning
from dinoswap.studies.tuning.report import report
from dinoswap.studies.tuning.space import Parameter
from dinoswap.studies.tuning.training import Training
from dinoswap.studies.tuning.trials import (
    Stopped,
    current,
    distribution,
    done,
    give_back,
    mostly_failed,
    next_trial,
    open_study,
    retry_failed,
    stop_when_failing,
    take_back,
    winners,
    worker_folder,
)
from dinoswap.studies.tuning.worker import Worker

pytestmark = pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")

COMPLETE, PRUNED, FAIL, RUNNING = TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL, TrialState.RUNNING
LR = "schedule.base_lr"

STUDY = """\
# How large a learning rate?
base: [recipe=smoke]
space:
  schedule.base_lr: {type: float, low: 1.0e-4, high: 1.0e-1, log: true}
objective: eval/knn_top1
direction: maximize
trials: 6
winners: 0
seeds: [1, 2, 3, 4]
"""


class Played(Training):
    """`accuracy` (learning rate, seed) at the end, `step` less than the last on the way; `endings` says which learning
    rates end otherwise. Writes what a run writes, at once."""

    accuracy: ClassVar[Callable[[float, int], float]]
    endings: ClassVar[dict[float, str]]
    started: ClassVar[list[str]]
    seconds: ClassVar[float]

    def __init__(self, tuning: Tuning, values: Any, seed: int | None, label: str) -> None:
        super().__init__(tuning, values, seed, label)
        self.lr, self.seed, self.terminated = float(values.get(LR, 0.004)), seed or 0, False

    def start(self) -> None:
        self.started.append(str(self.folder))
        self.folder.mkdir(parents=True, exist_ok=True)
        self._process = SimpleNamespace(exitcode=0)  # type: ignore[assignment]

    def terminate(self) -> None:
        self.terminated = True

    def follow(self, metric: str | None, stopping: Callable[[], bool]) -> Iterator[tuple[int, float]]:
        if self._process is None:
            return
        time.sleep(self.seconds)
        value = type(self).accuracy(self.lr, self.seed)
        for step in (2, 4, 6, 8):
            self.terminated |= stopping()
            if self.terminated:
                return self.end("preempted", 75, {})
            if metric == "eval/knn_top1":
                yield step, value - (10 - step)
        ending = self.endings.get(self.lr, "completed")
        codes = {"completed": 0, "failed": 1, "diverged": 1, "killed": -9, "preempted": 75}
        self.end(ending, codes[ending], {"eval/knn_top1": value, "eval/rankme": -(value**2)})

    def end(self, status: str, code: int, metrics: dict[str, float]) -> None:
        record = {"run_id": "x", "status": status, "metrics": metrics, "cost": {"core_or_gpu_hours": self.lr}}
        (self.folder / "run.json").write_text(json.dumps(record | {"error": None if code in (0, 75) else "it broke"}))
        self._process = SimpleNamespace(exitcode=code)  # type: ignore[assignment]


@pytest.fixture(autouse=True)
def played() -> type[Played]:
    """Best at a learning rate of 0.01."""
    Played.accuracy = staticmethod(lambda lr, seed: 60 - 10 * (math.log10(lr) + 2) ** 2)
    Played.endings, Played.started, Played.seconds = {}, [], 0.0
    return Played


_READ: dict[str, Tuning] = {}


@pytest.fixture
def tuning(tmp_path: Path) -> Tuning:
    """Of STUDY, with results in this test's folder. To compose configs takes the time, so they are not told apart."""
    if not _READ:
        path = tmp_path / "lr.yaml"
        path.write_text(STUDY)
        _READ["lr"] = read_tuning(path)
    return Quick(**{**vars(_READ["lr"]), "path": tmp_path / "lr.yaml"})


class Quick(Tuning):
    """Composes the base only, once for all tests."""

    def config(self, values: Any = None, seed: int | None = None) -> dict[str, Any]:
        config = {**_READ["lr"].config(), "results_dir": str(self.path.parent), "seed": seed or 0}
        return config | {
            "schedule": config["schedule"] | {k.removeprefix("schedule."): v for k, v in (values or {}).items()}
        }


def changed(tuning: Tuning, **fields: Any) -> Tuning:
    return dataclasses.replace(tuning, **fields)


def search(tuning: Tuning, slot: int = 0) -> optuna.Study:
    """What one worker makes of it."""
    Worker(tuning, slot, look=0.01, training=Played)()
    return open_study(tuning)


def states(study: optuna.Study) -> list[TrialState]:
    return [trial.state for trial in study.trials]


def asked(study: optuna.Study, tuning: Tuning, worker: str) -> FrozenTrial:
    """A trial that `worker` is at."""
    trial = next_trial(study, tuning, worker, before=())
    assert trial is not None
    return study.trials[trial.number]


# --- trials -----------------------------------------------------------------------------------------------------------


def test_a_search_is_so_many_runs_that_the_command_line_repeats(tuning: Tuning) -> None:
    study = search(tuning)
    assert states(study) == [COMPLETE] * 6
    assert done(study, tuning)
    for trial in study.trials:
        assert trial.value == Played.accuracy(trial.params[LR], 0)
        assert trial.user_attrs["overrides"] == ["study=lr", "recipe=smoke", f"{LR}={trial.params[LR]!r}"]
        assert trial.intermediate_values == {step: trial.value - (10 - step) for step in (2, 4, 6, 8)}
    first = study.trials[0].user_attrs
    config = compose_config([*first["overrides"], f"results_dir={tuning.path.parent}"])
    assert Path(first["folder"]) == tuning.path.parent / "runs" / planned_folder(config)
    assert len(set(Played.started)) == 6


def test_the_number_of_trials_is_a_total_and_a_search_goes_on_as_if_it_had_not_stopped(tuning: Tuning) -> None:
    search(changed(tuning, trials=12))
    whole = [trial.params for trial in open_study(tuning).trials]
    other = changed(tuning, path=tuning.path.parent / "again" / "lr.yaml", trials=5)
    for trials in (5, 5, 12):
        study = search(changed(other, trials=trials))
        assert len(study.trials) == trials
    assert [trial.params for trial in study.trials] == whole
    assert len(Played.started) == 24


def test_workers_that_run_at_once_share_one_journal(tuning: Tuning) -> None:
    tuning, failures = changed(tuning, trials=24, workers=3), []
    Played.seconds = 0.1

    def work(slot: int) -> None:
        try:
            Worker(tuning, slot, look=0.01, training=Played)()
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(slot,)) for slot in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    study = open_study(tuning)
    assert failures == []
    assert states(study) == [COMPLETE] * 24
    assert len({trial.params[LR] for trial in study.trials}) == 24 == len(set(Played.started)) == len(Played.started)
    assert len({trial.user_attrs["worker"] for trial in study.trials}) >= 2  # who asks most need not be fair


def test_a_data_base_in_place_of_the_journal(tuning: Tuning) -> None:
    url = f"sqlite:///{tuning.path.parent}/trials.db"
    for trials in (2, 4):
        tuning = changed(tuning, trials=trials)
        Worker(tuning, url=url, look=0.01, training=Played)()
        assert states(open_study(tuning, url)) == [COMPLETE] * trials
    assert not (tuning.folder / "journal.log").exists()
    for wrong in ("sqlite:////no/such/folder/trials.db", "postgres//typo", "oracle://host/there_is_no_driver"):
        with pytest.raises(ConfigError, match="--storage: "):
            open_study(tuning, wrong)


def test_a_setting_that_has_a_result_is_told_without_a_run(tuning: Tuning) -> None:
    choices = Parameter(type="categorical", choices=[0.01, 0.1])
    study = search(changed(tuning, parameters={LR: choices}))
    assert states(study) == [COMPLETE] * 6
    assert len(Played.started) == 2
    for trial in study.trials:
        assert trial.value == Played.accuracy(trial.params[LR], 0)
        assert trial.intermediate_values == {} or trial.user_attrs["folder"] in Played.started
    assert [trial.params[LR] for trial in winners(study, 5)] == [0.01, 0.1]


@pytest.mark.parametrize(("failing", "told"), [(2, ""), (3, "3 of 6 trials failed"), (5, "5 of 6 trials failed")])
def test_a_search_that_mostly_failed_says_so(failing: int, told: str, tuning: Tuning) -> None:
    """Half of the trials or more; those that failed and were replaced do not count."""
    study = open_study(tuning)
    for number in range(6):
        trial = study.ask({LR: distribution(tuning.parameters[LR])})
        trial.set_user_attr("error", "it broke")
        study.tell(trial, *((None, FAIL) if number < failing else (1.0,)))
    assert mostly_failed(study).startswith(told)
    assert bool(mostly_failed(study)) == bool(told)
    if told:
        assert mostly_failed(study).endswith("the last of them: it broke")
        retry_failed(study)
        assert mostly_failed(study) == ""


@pytest.mark.parametrize("number", SIGNALS)
def test_a_run_that_a_signal_ended_is_run_again(number: signal.Signals, tuning: Tuning) -> None:
    """Whichever of those that ask a run to end, also before the run listens."""
    run = Played(tuning, {LR: 0.01}, None, "trial-0000")
    run._process = SimpleNamespace(exitcode=-number)  # type: ignore[assignment]
    assert run.outcome().status == "preempted"


# --- workers that die -------------------------------------------------------------------------------------------------


def test_the_trial_of_a_dead_worker_is_closed_and_run_again_in_its_folder(tuning: Tuning) -> None:
    lost = asked(open_study(tuning), tuning, "dead")
    study = search(tuning)
    assert states(study) == [FAIL] + [COMPLETE] * 6
    retry = study.trials[1]
    assert (retry.params, retry.user_attrs["retry_of"], retry.user_attrs["deaths"]) == (lost.params, 0, 1)
    assert Path(retry.user_attrs["folder"]) == tuning.run_folder(lost.params)
    assert [trial.number for trial in current(study.trials)] == [1, 2, 3, 4, 5, 6]


def test_a_trial_that_kills_two_workers_is_not_run_a_third_time(tuning: Tuning) -> None:
    study = open_study(tuning)
    first, second = asked(study, tuning, "dead"), asked(study, tuning, "dead too")
    assert second.params == first.params
    study = search(tuning)
    assert states(study) == [FAIL, FAIL] + [COMPLETE] * 5  # and counts as one of the six
    assert second.params not in [trial.params for trial in study.trials[2:]]


def test_the_trial_of_a_worker_that_lives_is_left_alone(tuning: Tuning) -> None:
    study = open_study(tuning)
    with exclusive(worker_folder(tuning.folder, "alive")):
        asked(study, tuning, "alive")
        take_back(study, tuning.folder)
        assert states(study) == [RUNNING]
    take_back(study, tuning.folder)
    assert states(study) == [FAIL, TrialState.WAITING]


def test_killed_between_asking_and_signing(tuning: Tuning) -> None:
    study = open_study(tuning)
    unsigned = study.ask({LR: distribution(tuning.parameters[LR])})
    assert [trial.params for trial in search(tuning).trials[:2]] == [unsigned.params] * 2


def test_killed_between_enqueueing_the_retry_and_closing(tuning: Tuning) -> None:
    study = open_study(tuning)
    lost = asked(study, tuning, "dead")
    study.enqueue_trial(lost.params, user_attrs={"retry_of": lost.number, "deaths": 1})
    assert states(search(tuning)) == [FAIL] + [COMPLETE] * 6


def test_preemption_is_no_death(tuning: Tuning) -> None:
    study = open_study(tuning)
    for _ in range(4):
        give_back(study, asked(study, tuning, "preempted").number, died=False)
    study = search(tuning)
    assert states(study) == [FAIL] * 4 + [COMPLETE] * 6
    assert len({json.dumps(trial.params) for trial in study.trials[:5]}) == 1


def test_a_worker_that_is_told_to_stop_gives_its_trial_back(tuning: Tuning) -> None:
    worker = Worker(tuning, look=0.01, training=Played)
    study = open_study(tuning)
    worker.search(study, "told", frozenset(), stopping=iter([False, False, True, True]).__next__)
    assert states(study) == [FAIL, TrialState.WAITING]
    assert states(search(tuning)) == [FAIL] + [COMPLETE] * 6


# --- how runs end -----------------------------------------------------------------------------------------------------


def enqueued(tuning: Tuning, *rates: float) -> optuna.Study:
    """A search that begins with these learning rates."""
    study = open_study(tuning)
    for rate in rates:
        study.enqueue_trial({LR: rate})
    return study


def test_the_median_prunes_what_is_below_it(tuning: Tuning) -> None:
    rates = (0.01, 0.02, 0.1, 0.015)
    tuning = changed(tuning, trials=4, pruner={"type": "median", "n_startup_trials": 2, "n_warmup_steps": 3})
    enqueued(tuning, *rates)
    study = search(tuning)
    assert states(study) == [COMPLETE, COMPLETE, PRUNED, COMPLETE]
    assert list(study.trials[2].intermediate_values) == [2, 4]  # the first step after the warm-up
    pruned = Path(study.trials[2].user_attrs["folder"]) / "run.json"
    assert json.loads(pruned.read_text())["status"] == "preempted"
    assert "3 completed, 1 pruned" in report(study, tuning)


def test_runs_that_diverge_are_kept_and_shunned(tuning: Tuning, played: type[Played]) -> None:
    played.endings = {0.1: "diverged"}
    enqueued(tuning, 0.1, 0.01)
    study = search(tuning)
    assert states(study) == [PRUNED] + [COMPLETE] * 5
    assert winners(study, 9)[0].params == {LR: 0.01}
    assert "- trial 0 diverged: it broke" in report(study, tuning)


def test_a_run_that_is_killed_is_tried_once_more_and_one_that_fails_is_not(
    tuning: Tuning, played: type[Played]
) -> None:
    played.endings = {0.1: "killed", 0.05: "failed"}
    enqueued(tuning, 0.1, 0.05)
    study = search(tuning)
    by_rate = {rate: [t.state for t in study.trials if t.params[LR] == rate] for rate in (0.1, 0.05)}
    assert by_rate == {0.1: [FAIL, FAIL], 0.05: [FAIL]}
    assert states(study).count(COMPLETE) == 4
    assert "4 completed, 2 failed" in report(study, tuning)
    played.endings = {}
    retry_failed(study)
    assert states(search(tuning)).count(COMPLETE) == 6
    assert "6 of 6 trials: 6 completed" in report(study, tuning)


def test_three_failures_in_a_row_stop_the_search(tuning: Tuning, played: type[Played]) -> None:
    played.endings = dict.fromkeys((0.1, 0.05, 0.02), "failed")
    study = enqueued(tuning, 0.01, 0.1, 0.05, 0.02)
    with pytest.raises(Stopped, match="3 trials in a row failed, the last of them: it broke"):
        search(tuning)
    assert states(study) == [COMPLETE] + [FAIL] * 3
    assert not done(study, tuning)
    assert states(search(tuning))[4:] == [COMPLETE] * 2  # started again, it goes on


def test_which_trials_are_the_last_does_not_depend_on_clocks(tuning: Tuning, played: type[Played]) -> None:
    """The worker of the first one has a clock an hour ahead, or those of the others were set back."""
    played.endings = dict.fromkeys((0.1, 0.05, 0.02), "failed")
    study = enqueued(tuning, 0.01, 0.1, 0.05, 0.02)
    with pytest.raises(Stopped):
        search(tuning)
    trials = study.get_trials()
    assert trials[0].datetime_complete is not None
    trials[0].datetime_complete += timedelta(hours=1)
    with pytest.raises(Stopped, match="3 trials in a row failed"):
        stop_when_failing(trials, ())
    stop_when_failing(trials, {3})  # what had ended when the command was started does not count


def test_a_run_without_the_metric_fails(tuning: Tuning, played: type[Played]) -> None:
    tuning = changed(tuning, trials=1, objectives=[Objective(name="eval/linear_top1", direction="maximize")])
    study = search(tuning)
    assert states(study) == [FAIL]
    assert "completed without a finite eval/linear_top1" in report(study, tuning)


# --- several objectives -----------------------------------------------------------------------------------------------


def test_several_objectives_give_a_front(tuning: Tuning) -> None:
    """Accuracy is best at 0.01, and the played cost is the learning rate: the front is all that is not above 0.01, and
    not below in accuracy what costs less."""
    objectives = [
        Objective(name="eval/knn_top1", direction="maximize"),
        Objective(name="cost.core_or_gpu_hours", direction="minimize"),
    ]
    tuning = changed(tuning, trials=15, objectives=objectives)
    study = search(tuning)
    points = {trial.number: trial.values for trial in study.trials}
    front = [
        number
        for number, (accuracy, cost) in points.items()
        if not any(a >= accuracy and c <= cost and (a, c) != (accuracy, cost) for a, c in points.values())
    ]
    assert 2 <= len(front) < 15
    shown = winners(study, 99)
    assert sorted(trial.number for trial in shown) == sorted(front)
    assert [trial.values[0] for trial in shown] == sorted((points[n][0] for n in front), reverse=True)
    assert all(trial.intermediate_values == {} for trial in study.trials)
    text = report(study, tuning)
    rows = [line.split(" | ")[0] for line in text.splitlines() if line.startswith("| ")]
    assert rows[2:] == [f"| {trial.number}" for trial in shown]


# --- winners ----------------------------------------------------------------------------------------------------------


def test_winners_are_run_with_fresh_seeds_against_the_base(tuning: Tuning, played: type[Played]) -> None:
    noise = [0.0, 0.3, -0.2, 0.1, 0.4]
    played.accuracy = staticmethod(lambda lr, seed: 50 + 100 * lr + noise[seed] * (1 + lr))
    tuning = changed(tuning, winners=2)
    study = search(tuning)
    best = sorted(study.trials, key=lambda trial: -trial.value)[:2]
    fresh = [tuning.run_folder(values, seed) for values in ({}, *(t.params for t in best)) for seed in (1, 2, 3, 4)]
    assert sorted(played.started[6:]) == sorted(map(str, fresh))
    text = report(study, tuning)
    for trial in best:
        sides = [[played.accuracy(lr, seed) for seed in (1, 2, 3, 4)] for lr in (trial.params[LR], 0.004)]
        interval = stats.ttest_rel(*sides).confidence_interval(0.95)
        (line,) = [line for line in text.splitlines() if line.startswith(f"- trial {trial.number}, eval/knn_top1: ")]
        assert f"[{interval.low:+.3g}, {interval.high:+.3g}]" in line
    again = len(played.started)
    search(tuning)
    assert len(played.started) == again


def test_a_fresh_run_that_fails_is_told(tuning: Tuning, played: type[Played]) -> None:
    played.endings = {0.004: "failed"}  # the base
    tuning = changed(tuning, winners=1)
    text = report(search(tuning), tuning)
    assert "- base, seed 3: failed: it broke" in text
    assert len([folder for folder in played.started if folder == str(tuning.run_folder({}, 3))]) == 2
