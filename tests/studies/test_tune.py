"""`dinoswap-tune`: what it refuses, and searches of real runs, some of which are pruned, interrupted and killed."""

import dataclasses
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState

from dinoswap.config.configuration import config_dir, flatten
from dinoswap.config.identity import is_volatile
from dinoswap.config.schema import ConfigError
from dinoswap.run import checkpoint, metrics
from dinoswap.run.provenance import SUBMITTED_CODE, code_version
from dinoswap.studies.ledger import read_json
from dinoswap.studies.overrides import as_text
from dinoswap.studies.study_file import REPLACEABLE
from dinoswap.studies.tune import Teller, main
from dinoswap.studies.tuning import crew, trials
from dinoswap.studies.tuning.crew import share
from dinoswap.studies.tuning.definition import PRUNERS, as_begun, read_tuning
from dinoswap.studies.tuning.space import Parameter
from dinoswap.studies.tuning.trials import changes, distribution, open_study, storage
from dinoswap.studies.tuning.worker import Worker
from train_processes import TrainProcess, last_step

STEPS = 200
LR = "schedule.base_lr"

pytestmark = pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")

STUDY = """\
# Which learning rate,
# and with which mask?
#
# A remark.
base: [recipe=smoke, tracker=none, evaluation.in_loop_images=20, evaluation.images=20]
space:
  schedule.base_lr: {type: float, low: 1.0e-4, high: 1, log: true}
  masking: {type: categorical, choices: [block, bernoulli]}
objective: eval/knn_top1
direction: maximize
trials: 3
seeds: [1, 2]
"""


def write(folder: Path, text: str = STUDY) -> Path:
    path = folder / "mine.yaml"
    path.write_text(text)
    return path


# --- the file ---------------------------------------------------------------------------------------------------------


def test_what_a_file_says_is_what_is_read(tmp_path: Path) -> None:
    tuning = read_tuning(write(tmp_path), ["trials=9", "trainer.max_steps=20", f"results_dir={tmp_path}"])
    assert tuning.question == "Which learning rate, and with which mask?"
    assert (tuning.name, tuning.trials, tuning.workers, tuning.winners, tuning.seeds) == ("mine", 9, 1, 1, [1, 2])
    assert tuning.parameters["masking"].choices == ["block", "bernoulli"]
    assert tuning.folder == tmp_path / "runs/mine/tune"
    overrides = tuning.overrides({"schedule.base_lr": 1e-05, "masking": "bernoulli"}, seed=2)
    assert overrides[0] == "study=mine"
    assert overrides[-3:] == ["schedule.base_lr=1e-05", "masking=bernoulli", "seed=2"]
    config = tuning.config({"schedule.base_lr": 1e-05, "masking": "bernoulli"}, seed=2)
    assert (config["schedule"]["base_lr"], config["seed"], config["trainer"]["max_steps"]) == (1e-05, 2, 20)
    assert config["masking"]["_target_"].startswith("dinoswap.masking.bernoulli")


@pytest.mark.parametrize("study", ["tune_cifar10", "tune_da3", "tune_demo", "tune_lr"])
def test_the_studies_of_the_repository_are_sound(study: str, tmp_path: Path) -> None:
    path = config_dir().parent / "ablations" / f"{study}.yaml"
    tuning = read_tuning(path, [f"results_dir={tmp_path}"])
    open_study(tuning)
    decisive = {key for key in flatten(tuning.config()) if not is_volatile(key)}
    assert tuning.parameters.keys() <= decisive


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("trials: 3", "trails: 3", "trails=3: there is no such key. Did you mean 'trials'?"),
        ("trials: 3\n", "", "trials: has to be given"),
        ("trials: 3", "trials: 0", "trials=0: must be at least 1"),
        ("trials: 3", "trials: many", "trials=many: must be a whole number, not text"),
        ("direction: maximize", "direction: up", "direction=up: must be maximize or minimize"),
        ("direction: maximize", "direction: [maximize, minimize]", "must have one entry for each objective, eval/knn_"),
        ("eval/knn_top1", "eval/knn_top2", "objective=eval/knn_top2: nothing of this name is measured. Did you mean"),
        ("objective: eval/knn_top1", "objective: [eval/rankme, eval/rankme]", "must be one metric, or several diff"),
        ("trials: 3", "trials: 3\nsmallest_effect: 0", "smallest_effect=0.0: must be above 0"),
        ("trials: 3", "trials: 3\nbudget: {hours: 2}", "budget: a search ends after so many `trials`"),
        ("trials: 3", "trials: 3\nfactors: {}", "`factors` make this an ablation; run `dinoswap-ablate run mine`"),
        ("trials: 3", "trials: 3\npruner: medain", "pruner.type=medain: must be one of none, median, percentile, succ"),
        ("type: categorical", "type: categorcal", "space.masking.type=categorcal: must be one of float, in"),
        ("type: float", "type: flaot", "space.schedule.base_lr.type=flaot: must be one of float, int, categorical"),
        ("low: 1.0e-4", "low: 2", "space.schedule.base_lr.low=2: must be below high=1"),
        ("low: 1.0e-4", "low: 0", "space.schedule.base_lr.low=0: must be above 0 on a logarithmic scale"),
        ("low: 1.0e-4, ", "", "space.schedule.base_lr: has no low; give low and high"),
        ("log: true", "logs: true", "space.schedule.base_lr.logs=True: there is no such key. Did you mean 'log'?"),
        ("log: true", "step: 2", "space.schedule.base_lr.step=2: must lie between 0 and high - low"),
        ("type: float", "type: int", "space.schedule.base_lr.low=0.0001: must be a whole number for type: int"),
        ("choices: [block, bernoulli]", "choices: [block]", "choices=['block']: must be at least two values, all diff"),
        ("choices: [block, bernoulli]", "choices: [[0.1], 2]", "choices=[0.1]: must be one value; write a list as tex"),
        ("choices: [block, bernoulli]", "low: 1", "space.masking.low=1.0: is for numbers; type: categorical has choi"),
        ("  masking:", "  seed:", "space.seed: is not searched over; list the seeds under `seeds`"),
        ("  masking:", "  hydra.callbacks.x:", "space.hydra.callbacks.x: hydra.callbacks.x=null cannot be varied"),
        ("  masking:", "  +masking@hydra.job:", "space.+masking@hydra.job: +masking@hydra.job=null cannot be varied"),
        ("base: [", "base: [hydra.job.env_set.A=1, ", "base: hydra.job.env_set.A=1 is not for a study file"),
        ("  masking:", "  data.workers:", "space.data.workers: does not change what a run learns"),
    ],
)  # fmt: skip
def test_mistakes_are_named(old: str, new: str, message: str, tmp_path: Path) -> None:
    assert old in STUDY
    refuses(tmp_path, STUDY.replace(old, new), message)


def refuses(folder: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError) as refused:
        open_study(read_tuning(write(folder, text), [f"results_dir={folder}"]))
    assert str(refused.value).startswith(f"{folder}/mine.yaml: ")
    assert message in str(refused.value)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("seeds: [1, 2]", "seeds: 3", "seeds=[0, 1, 2]: the search has seed 0; give others, as in [3, 4, 5]"),
        ("seeds: [1, 2]", "seeds: [1]", "seeds=[1]: an interval takes at least two; or set winners: 0"),
        ("seeds: [1, 2]", "seeds: {looks: [3, 6]}", "seeds.looks: winners are compared once, with all seeds"),
        ("base: [", "base: [trainer.eval_every=0, ", "pruner=median: nothing is measured while a run trains"),
        ("knn_top1\ndirection: maximize", "knn_top1\ndirection: [maximize]", "pruner.warm_up=5: there is no such key"),
        ("eval/knn_top1\ndirection: maximize", "[eval/rankme, eval/knn_top1]\ndirection: [maximize, maximize]",
         "pruner=median: with several objectives no trial is pruned; remove it"),
        ("block, bernoulli", "block, bernouli", "the group 'masking' has no option 'bernouli'"),
        ("  schedule.base_lr", "  schedule.base_rl", "schedule.base_rl=0.0001: there is no key or group"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_named(old: str, new: str, message: str, tmp_path: Path) -> None:
    text = STUDY.replace(old, new)
    assert text != STUDY
    refuses(tmp_path, f"{text}pruner: {{type: median, warm_up: 5}}\n", message)


def test_names_are_those_of_optuna() -> None:
    assert all(issubclass(getattr(optuna.pruners, name), optuna.pruners.BasePruner) for name in PRUNERS.values())
    assert {"objective", "direction", "trials", "workers", "pruner"} <= set(REPLACEABLE)


def test_parameters_are_what_optuna_draws_from() -> None:
    drawn = [
        (Parameter(type="float", low=0.1, high=2, log=True), FloatDistribution(0.1, 2, log=True)),
        (Parameter(type="float", low=0, high=1, step=0.25), FloatDistribution(0, 1, step=0.25)),
        (Parameter(type="int", low=1, high=9, step=2), IntDistribution(1, 9, step=2)),
        (Parameter(type="int", low=8, high=512, log=True), IntDistribution(8, 512, log=True)),
        (Parameter(type="categorical", choices=["a", 2, None]), CategoricalDistribution(["a", 2, None])),
    ]
    assert [distribution(parameter) for parameter, _ in drawn] == [expected for _, expected in drawn]


def test_a_key_has_to_accept_the_ends_of_its_range() -> None:
    assert Parameter(type="float", low=0.5, high=1.0).examples == [0.5, 1.0]
    assert Parameter(type="int", low=8, high=20, step=8).examples == [8, 16]
    assert Parameter(type="float", low=0.0, high=0.3, step=0.1).examples == pytest.approx([0.0, 0.3])


def test_values_as_on_the_command_line() -> None:
    values = (1e-05, 0.1, 256, None, True, "block", "[0.1, 0.5]")
    assert [as_text(value) for value in values] == ["1e-05", "0.1", "256", "null", "true", "block", "[0.1, 0.5]"]


def test_a_search_goes_on_with_what_it_was_begun_with(tmp_path: Path) -> None:
    tuning = read_tuning(write(tmp_path), [f"results_dir={tmp_path}"])
    open_study(tuning)
    lr = Parameter(type="float", low=1e-4, high=2, log=True)
    same: dict[str, Any] = {"trials": 30, "workers": 4, "seeds": [7, 8], "base": [*tuning.base, "data.workers=2"]}
    open_study(dataclasses.replace(tuning, **same))
    others: dict[str, dict[str, Any]] = {
        "space.schedule.base_lr: {'type': 'float', 'low': 0.0001": {"parameters": tuning.parameters | {LR: lr}},
        "base.trainer.max_steps: 10 -> 9": {"base": [*tuning.base, "trainer.max_steps=9"]},
    }
    for message, fields in others.items():
        with pytest.raises(ConfigError) as refused:
            open_study(dataclasses.replace(tuning, **fields))
        assert f"is not what {tuning.folder} was begun with: {message}" in str(refused.value)


def test_a_search_of_an_earlier_version_goes_on(tmp_path: Path) -> None:
    """Its definition has every key of the config, and the name of the data in place of what the images are."""
    tuning = read_tuning(write(tmp_path), [f"results_dir={tmp_path}"])
    now = tuning.definition()
    every = {key: value for key, value in flatten(tuning.config()).items() if not is_volatile(key)}
    before = {**now, "base": {**every, "data.path.name": "tiles"}}
    assert as_begun(before, now) == now
    before["base"] = {**every, "trainer.max_steps": 9}
    assert changes(as_begun(before, now), now) == "base.trainer.max_steps: 9 -> 10"


def test_a_search_does_not_go_on_with_other_images(tmp_path: Path) -> None:
    """Where they can be seen: a driver without them asks its workers, who can."""
    tuning = read_tuning(write(tmp_path), [f"results_dir={tmp_path}"])
    now = tuning.definition()
    other = {**now, "base": now["base"] | {"data.images": "0123"}}
    assert "base.data.images: 0123 -> " in changes(as_begun(other, now), now)
    unseen = {key: value for key, value in now["base"].items() if key != "data.images"}
    without = {**now, "base": unseen | {"data.path as written": "${oc.env:NODE_TMP}/images"}}
    assert as_begun(without, now) == now
    assert as_begun(now, without) == without


def test_workers_share_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(8)))
    assert share(0, 3, {})["OMP_NUM_THREADS"] == "2"
    assert share(0, 3, {"threads": 4})["OMP_NUM_THREADS"] == "4"
    assert [share(slot, 3, {"gpus": [4, 7]})["CUDA_VISIBLE_DEVICES"] for slot in range(3)] == ["4", "7", "4"]
    assert share(0, 9, {"check_code": True})[SUBMITTED_CODE] == code_version(config_dir())


# --- the command ------------------------------------------------------------------------------------------------------


def test_help_fits_a_screen_and_needs_neither_torch_nor_optuna() -> None:
    code = "import sys; from dinoswap.studies.tune import parser; print(parser().format_help()); "
    code += "assert not {'torch', 'optuna', 'pandas'} & set(sys.modules)"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    lines = shown.rstrip().splitlines()
    assert len(lines) <= 40
    assert max(map(len, lines)) <= 110
    assert "optuna-dashboard results/runs/STUDY/tune/journal.log" in shown


def test_a_refusal_is_one_line_and_exit_status_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(write(tmp_path)), "trials=0"]) == 2
    shown = capsys.readouterr()
    assert (shown.out, shown.err) == ("", f"dinoswap-tune: {tmp_path}/mine.yaml: trials=0: must be at least 1\n")
    assert [path.name for path in tmp_path.iterdir()] == ["mine.yaml"]


def test_a_value_that_no_run_can_be_built_with_is_refused_before_the_search(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The largest of the range is wrong, and only the constructor of the objective knows."""
    space = "objectives.dino.targets.momentum: {type: float, low: 0.5, high: 1.0}"
    text = STUDY.replace("schedule.base_lr: {type: float, low: 1.0e-4, high: 1, log: true}", space)
    path = write(tmp_path, text.replace("recipe=smoke,", "recipe=smoke, targets@objectives.dino.targets=centering,"))
    assert main([str(path), f"results_dir={tmp_path}"]) == 2
    assert "objectives.dino.targets.momentum=1.0: " in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(("failing", "code"), [(1, 0), (2, 1)])
def test_a_search_that_mostly_failed_has_failed(
    failing: int, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its trials are told by the test, in place of workers; the report is written either way."""
    given = [str(write(tmp_path, f"{STUDY}winners: 0\n")), f"results_dir={tmp_path}"]
    tuning = read_tuning(given[0], given[1:])
    study = open_study(tuning)
    for number in range(3):
        trial = study.ask(trials.distributions(tuning))
        trial.set_user_attr("error", "=it broke")
        study.tell(trial, *((None, TrialState.FAIL) if number < failing else (1.0,)))
    monkeypatch.setattr(crew, "work", lambda *arguments: None)
    assert main(given) == code
    told = capsys.readouterr().err
    assert ("dinoswap-tune: 2 of 3 trials failed, the last of them: =it broke; --rerun-failed" in told) == bool(code)
    assert ",'=it broke," in (tmp_path / "runs" / "mine" / "tune" / "trials.csv").read_text()
    assert main([*given, "--report"]) == 0


# --- real runs --------------------------------------------------------------------------------------------------------


def record(trial: FrozenTrial) -> dict[str, Any]:
    return metrics.load_record(Path(trial.user_attrs["folder"]) / "run.json")


def steps(trial: FrozenTrial) -> list[int]:
    """Of logged steps, without evaluations."""
    rows = metrics.read(Path(trial.user_attrs["folder"]) / "metrics.jsonl")
    return [row["step"] for row in rows if "loss" in row]


class Strict(optuna.pruners.BasePruner):
    """Prunes at once."""

    def prune(self, study: optuna.Study, trial: FrozenTrial) -> bool:
        return True


def test_a_pruned_run_stops_cleanly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trials, "pruner", lambda tuning: Strict())
    given = ["trials=1", "trainer.max_steps=100000", f"results_dir={tmp_path}"]
    tuning = read_tuning(write(tmp_path, f"{STUDY}winners: 0\n"), given)
    Worker(tuning)()
    (trial,) = open_study(tuning).trials
    assert (trial.state, trial.user_attrs["status"]) == (TrialState.PRUNED, "pruned")
    assert len(trial.intermediate_values) >= 1
    evaluated = metrics.read(Path(trial.user_attrs["folder"]) / "metrics.jsonl")
    found = {row["step"]: row["eval/knn_top1"] for row in evaluated if "eval/knn_top1" in row}
    assert trial.intermediate_values.items() <= found.items()
    assert min(trial.intermediate_values) == 5  # not 0: an untrained network says nothing
    run = record(trial)
    assert (run["status"], run["overrides"]) == ("preempted", trial.user_attrs["overrides"])
    assert run["steps"] == steps(trial)[-1] < 100000
    saved = checkpoint.newest(Path(trial.user_attrs["folder"]) / "checkpoints", pytest.fail)
    assert saved is not None
    assert saved.step == run["steps"]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_killed_and_interrupted_searches_lose_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ctrl-C at first, and in the second attempt kill -9 of the worker, which the command replaces."""
    given = ["trials=2", f"trainer.max_steps={STEPS}", "trainer.eval_every=100", "trainer.checkpoint_every=0"]
    given += [f"results_dir={tmp_path}", "hydra.launcher.check_code=false"]
    given += [f"hydra.launcher.threads={os.environ.get('OMP_NUM_THREADS', 'null')}"]
    path, folder = write(tmp_path, f"{STUDY}winners: 0\n"), tmp_path / "runs/mine/tune"
    steps_at: list[int] = []  # when the signals were sent

    def shooting(number: signal.Signals, at_worker: bool) -> Callable[[Teller], None]:
        """Once, when a run is under way: at first, or again."""
        before = len(steps_at)

        def look(teller: Teller) -> None:
            for trial in teller.study.get_trials(states=[TrialState.RUNNING]):
                run = Path(trial.user_attrs.get("folder", "none yet"))
                again = read_json(run / "run.json").get("restarts") == before
                if len(steps_at) == before and again and last_step(run) >= 10:
                    steps_at.append(last_step(run))
                    os.kill(int(trial.user_attrs["worker"].split("-")[-2]) if at_worker else os.getpid(), number)

        return look

    monkeypatch.setattr(crew, "LOOK", 0.2)
    monkeypatch.setattr(Teller, "__call__", shooting(signal.SIGINT, at_worker=False))
    assert main([str(path), *given]) == 75
    assert "SIGINT; the same command goes on" in capsys.readouterr().err
    study = optuna.load_study(study_name="mine", storage=storage(folder))
    assert [trial.state for trial in study.trials] == [TrialState.FAIL, TrialState.WAITING]
    assert record(study.trials[0])["status"] == "preempted"

    monkeypatch.setattr(Teller, "__call__", shooting(signal.SIGKILL, at_worker=True))
    assert main([str(path), *given]) == 0
    assert len(steps_at) == 2
    assert max(steps_at) < STEPS
    assert [t.state for t in study.trials] == [TrialState.FAIL] * 2 + [TrialState.COMPLETE] * 2
    interrupted, killed, retry, other = study.trials
    assert interrupted.params == killed.params == retry.params != other.params
    assert [t.user_attrs.get("deaths") for t in (killed, retry, other)] == [0, 1, None]
    for trial in (retry, other):
        run = record(trial)
        assert (run["status"], run["overrides"]) == ("completed", trial.user_attrs["overrides"])
        assert run["metrics"]["eval/knn_top1"] == trial.value
        assert steps(trial) == list(range(1, STEPS + 1))
    assert record(retry)["restarts"] == 2
    assert "2 of 2 trials: 2 completed" in (folder / "report.md").read_text()

    overrides = [line for line in retry.user_attrs["overrides"] if not line.startswith("results_dir=")]
    undisturbed = TrainProcess(overrides, tmp_path / "alone")
    assert undisturbed.wait() == 0, undisturbed.output
    assert metrics.load_record(undisturbed.folder / "run.json")["metrics"] == record(retry)["metrics"]
