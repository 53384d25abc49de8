"""MLflow: read back with its client."""

import math
from pathlib import Path

import numpy as np
import pytest
from mlflow import MlflowClient
from mlflow.entities import Run
from tracked import tracked_run

from dinoswap.tracker.mlflow import MlflowTracker


def the_run(uri: str) -> tuple[MlflowClient, Run]:
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name("mine")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    return client, run


def test_a_continued_run_is_one_without_a_point_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # to which an SQLite path is relative
    uri, run = "sqlite:///results/mlflow.db", tracked_run(tmp_path)
    for first, last in ((1, 4), (3, 6)):  # killed after step 4, saved after step 2
        tracker = MlflowTracker(experiment="mine", uri=uri)
        tracker.load()
        tracker.start(run, first)
        for step in range(first, last + 1):
            tracker.scalars(step, {"loss": 0.1 * step, "bad": math.nan})
        tracker.scalars(last, {"eval/knn_top1": 40.0 + last})
        tracker.picture(last, "crops", np.full((4, 6, 3), last, np.uint8))
        if first == 1:
            assert the_run(uri)[1].info.status == "RUNNING"
    tracker.close("completed")
    client, found = the_run(uri)
    assert (found.info.status, found.info.run_name) == ("FINISHED", run.name)
    history = client.get_metric_history(found.info.run_id, "loss")
    assert sorted((point.step, point.value) for point in history) == [(step, 0.1 * step) for step in range(1, 7)]
    evaluated = client.get_metric_history(found.info.run_id, "eval/knn_top1")
    assert sorted((point.step, point.value) for point in evaluated) == [(4, 44.0), (6, 46.0)]
    assert math.isnan(client.get_metric_history(found.info.run_id, "bad")[0].value)
    assert found.data.params["masking"] == "bernoulli"
    assert found.data.params["targets/objectives.dino.targets"] == "sinkhorn"
    artifacts = tmp_path / "results" / "mlartifacts" / found.info.run_id / "artifacts"
    assert (artifacts / "config.yaml").read_text() == run.config
    assert sorted(path.name for path in (artifacts / "crops").iterdir()) == ["step-00000004.png", "step-00000006.png"]
    assert {path.name for path in tmp_path.iterdir()} == {"results"}
