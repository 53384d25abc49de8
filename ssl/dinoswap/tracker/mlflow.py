"""MLflow: by default an SQLite file, as its store of plain files is no longer maintained."""

import logging
import os
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt

from dinoswap.tracker.base import Status, TrackedRun, Tracker

SQLITE = "sqlite:///"
KEY = "dinoswap.key"
"""The tag that holds the key of a run, by which it is found again."""
STATUS = {"completed": "FINISHED", "preempted": "KILLED", "failed": "FAILED", "diverged": "FAILED"}


class MlflowTracker(Tracker):
    """Tracks a run as one of `experiment` at the tracking URI `uri`; None is that of MLFLOW_TRACKING_URI, or else an
    SQLite file in the folder of results. Pictures and the config lie beside such a file in `mlartifacts`, or where a
    server keeps them."""

    package = "mlflow"
    install = "pip install 'dinoswap[mlflow]'"

    def __init__(self, *, experiment: str, uri: str | None) -> None:
        self.experiment, self.uri = experiment, uri

    def load(self) -> None:
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # it is read at the import
        super().load()
        logging.getLogger("mlflow").setLevel(logging.WARNING)

    def start(self, run: TrackedRun, first_step: int) -> None:
        from mlflow import MlflowClient
        from mlflow.entities import Param

        uri = self.uri or os.environ.get("MLFLOW_TRACKING_URI") or f"{SQLITE}{run.results / 'mlflow.db'}"
        self._client = MlflowClient(uri)
        experiment = self._experiment(uri)
        existing = self._client.search_runs([experiment], f"tags.\"{KEY}\" = '{run.key}'", max_results=1)
        if existing:
            self._id = existing[0].info.run_id
            self._client.update_run(self._id, status="RUNNING")
        else:
            tags = {KEY: run.key, "run_id": run.run_id, "study": run.study, "folder": str(run.folder)}
            self._id = self._client.create_run(experiment, run_name=run.name, tags=tags).info.run_id
            # A name may have no @; values cannot be changed later
            params = [Param(name.replace("@", "/"), str(value)) for name, value in run.hparams.items()]
            self._client.log_batch(self._id, params=params)
        self._client.log_text(self._id, run.config, "config.yaml")
        self._last: dict[str, int] | None = {} if existing else None

    def _experiment(self, uri: str) -> str:
        """Returns the id of the experiment at a tracking URI, which is made where there is none."""
        from mlflow.exceptions import MlflowException

        artifacts = None
        if uri.startswith(SQLITE):
            artifacts = Path(uri.removeprefix(SQLITE)).absolute().with_name("mlartifacts").as_uri()
        if (existing := self._client.get_experiment_by_name(self.experiment)) is None:
            try:
                return str(self._client.create_experiment(self.experiment, artifact_location=artifacts))
            except MlflowException:  # another run has just made it
                existing = self._client.get_experiment_by_name(self.experiment)
                if existing is None:
                    raise
        return str(existing.experiment_id)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        new = [Metric(name, value, now, step) for name, value in values.items() if not self._has(name, step)]
        self._client.log_batch(self._id, metrics=new)

    def _has(self, name: str, step: int) -> bool:
        """Tells whether the run had a metric at this step, or a later one, when it was continued."""
        if self._last is None:
            return False
        if name not in self._last:
            history = self._client.get_metric_history(self._id, name)
            self._last[name] = max((metric.step for metric in history), default=-1)
        return step <= self._last[name]

    def picture(self, step: int, name: str, image: npt.NDArray[np.uint8]) -> None:
        self._client.log_image(self._id, image, f"{name}/step-{step:08d}.png")

    def close(self, status: Status) -> None:
        if status in STATUS:
            self._client.set_terminated(self._id, STATUS[status])
