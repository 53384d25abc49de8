"""A run with three trackers that is stopped by SIGTERM and continued: each has what metrics.jsonl has, and one run."""

import math
import os
import signal
from pathlib import Path

import pytest
from mlflow import MlflowClient
from tracked import events_of, wandb_files, wandb_records, wandb_rows

from dinoswap.config.configuration import plain
from dinoswap.config.first_check import first_check
from dinoswap.config.schema import ConfigError
from dinoswap.config.tracked import require_packages
from dinoswap.run import job, trackers
from dinoswap.run.assemble import build_run
from dinoswap.run.loop import Preempted, Run
from dinoswap.run.metrics import RunRecord, load_record, read
from dinoswap.tracker.base import Tracker
from dinoswap.tracker.wandb import WandbTracker
from small_models import composed

SETTINGS = [
    *(
        "recipe=smoke",
        "trainer.precision=fp32",
        "trainer.device=cpu",
        "data.workers=0",
        "evaluation.linear_probe=false",
    ),
    *("trainer.max_steps=4", "trainer.log_every=1", "trainer.eval_every=2", "trainer.checkpoint_every=0"),
    *("evaluation.images=24", "evaluation.in_loop_images=24", "tracker=[tensorboard,wandb,mlflow]"),
    "tracker.wandb.mode=offline",
]
PICTURES = {"crops", "pca", "pca_2x", "similarity", "accuracy", "curves"}
STOPPED_AT = 3


def built(folder: Path) -> Run:
    config = plain(composed([*SETTINGS, f"results_dir={folder}"]))
    choices, overrides = {"preset": "official", "masking": "block"}, ["masking=block", "trainer.max_steps=4"]
    return build_run(
        config,
        folder,
        lambda: RunRecord.start(
            folder / "run.json", run_id="1a2b", study="mine", seed=0, choices=choices, overrides=overrides
        ),
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tracked")
    stopped = built(folder)
    step = stopped.trainer.step

    def interrupted(number: int, *rest: object) -> object:
        if number == STOPPED_AT - 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(number, *rest)  # type: ignore[arg-type]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trackers, "CLOSE_SECONDS", 120.0)  # of a machine that does much else
        patch.setattr(stopped.trainer, "step", interrupted)
        with pytest.raises(Preempted, match=f"SIGTERM: saved after step {STOPPED_AT}"):
            job.finish(stopped)
        job.finish(built(folder))
    assert load_record(folder / "run.json")["status"] == "completed"
    return folder


def rows_of(folder: Path) -> list[dict[str, float]]:
    """What was logged as numbers."""
    rows = read(folder / "metrics.jsonl")
    return [{name: value for name, value in row.items() if value is not None} for row in rows]


def points_of(folder: Path) -> dict[tuple[float, str], float]:
    """The same by step and name."""
    return {(row["step"], name): value for row in rows_of(folder) for name, value in row.items() if name != "step"}


def test_tensorboard_has_it(folder: Path) -> None:
    events = events_of(folder)
    found = {
        (event.step, name): event.value
        for name in events.Tags()["scalars"]
        for event in events.Scalars(name)
        if not math.isnan(event.value)
    }
    assert found == pytest.approx(points_of(folder), rel=1e-6)  # it has float32
    assert {event.step for event in events.Images("crops")} == {0, 2, 4}


def test_wandb_has_it(folder: Path) -> None:
    files = wandb_files(folder)
    assert len(files) == 2
    logged = [row for path in files for row in wandb_rows(path) if not PICTURES & set(row)]
    assert [{name: value for name, value in row.items() if not math.isnan(value)} for row in logged] == rows_of(folder)
    exits = [record.exit.exit_code for path in files for record in wandb_records(path) if record.HasField("exit")]
    assert exits == [1, 0]
    assert len({record.run.run_id for path in files for record in wandb_records(path) if record.HasField("run")}) == 1


def test_mlflow_has_it(folder: Path) -> None:
    client = MlflowClient(f"sqlite:///{folder}/mlflow.db")
    (run,) = client.search_runs([experiment.experiment_id for experiment in client.search_experiments()])
    assert (run.info.status, run.info.run_name) == ("FINISHED", "official trainer.max_steps=4 seed 0")
    histories = {name: client.get_metric_history(run.info.run_id, name) for name in run.data.metrics}
    found = {
        (point.step, name): point.value
        for name, history in histories.items()
        for point in history
        if not math.isnan(point.value)
    }
    assert found == points_of(folder)
    assert all(len({point.step for point in history}) == len(history) for history in histories.values())


def test_a_package_that_is_missing_is_named_before_anything_is_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    config = plain(composed(["recipe=smoke", "tracker=[tensorboard,wandb]"]))
    require_packages(config)
    monkeypatch.setattr(WandbTracker, "package", "a_package_that_nobody_has")
    first_check(config)  # as of a run that is evaluated elsewhere
    with pytest.raises(ConfigError) as refused:
        require_packages(config)
    assert str(refused.value) == (
        "tracker=wandb: the package a_package_that_nobody_has is not installed; pip install 'dinoswap[wandb]'"
    )


def test_a_folder_is_no_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """wandb leaves one of its name where it was started."""
    (tmp_path / "left_by_wandb").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(WandbTracker, "package", "left_by_wandb")
    tracker: Tracker = WandbTracker(project="", entity=None, mode=None, code=False)
    assert not tracker.is_installed()


def test_a_wrong_value_is_refused() -> None:
    config = plain(composed(["recipe=smoke", "tracker=wandb", "tracker.wandb.mode=on"]))
    with pytest.raises(ConfigError, match=r"tracker\.wandb\.mode=on: must be one of online, offline"):
        first_check(config)
