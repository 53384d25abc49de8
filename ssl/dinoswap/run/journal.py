"""The log of a running run: metrics.jsonl, trackers, the line that the user sees, the pictures at its end."""

import logging
import os
from collections.abc import Collection, Mapping
from pathlib import Path
from types import TracebackType

import torch
from torch import Tensor

from dinoswap.distributed import all_reduce_mean, is_main
from dinoswap.evaluation.evaluator import Evaluation
from dinoswap.evaluation.measure import TRAINED
from dinoswap.evaluation.summary import cell, percentages
from dinoswap.evaluation.visualise import curves_figure
from dinoswap.metric.diagnostics import FEW_STEPS
from dinoswap.optim.late_reading import LateReading
from dinoswap.run.metrics import MetricsLog, read
from dinoswap.run.progress import Display
from dinoswap.run.trackers import Trackers

_log = logging.getLogger(__name__)


class Journal:
    """Writes logs and evaluations of one run; a context manager. Steps are counted as in metrics.jsonl: the first is 1,
    and 0 is before it.

    `done`: number of steps that are not repeated; lines of later steps are dropped. `objectives`: their names tell loss
    terms from other values. `warm_up`: warnings are shown only after this many steps, and after FEW_STEPS, as an
    untrained network looks collapsed. Only the main process writes.
    """

    def __init__(
        self,
        folder: Path,
        display: Display,
        objectives: Collection[str],
        trackers: Trackers,
        *,
        done: int,
        warm_up: int,
    ) -> None:
        self.folder, self.display, self.objectives, self.warm_up = folder, display, objectives, warm_up
        self.trackers = trackers
        self._pending: tuple[int, list[str], LateReading, dict[str, float]] | None = None
        # The other ranks log to nowhere: their metrics are the same
        self.metrics = MetricsLog(folder / "metrics.jsonl" if is_main() else Path(os.devnull))
        if is_main():
            self.metrics.truncate_from(done + 1 if done else 0)

    def __enter__(self) -> "Journal":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            self.write_logged()
        finally:
            self.metrics.close()

    def log(self, step: int, logs: Mapping[str, Tensor], hyper: Mapping[str, float]) -> None:
        """Logs the means of `logs` over all ranks, and the schedules' values `hyper`. All scalars of the step take one
        transfer from the device, which `write_logged` reads."""
        self.write_logged()
        means = all_reduce_mean(torch.stack([value.float() for value in logs.values()]))
        others = {**hyper, "images_per_second": self.display.images_per_second}
        self._pending = (step, list(logs), LateReading(means), others)

    def write_logged(self) -> None:
        """Writes and shows the step that was logged last, unless it is done. Called when the next step is on its way,
        so that the host need not wait for the device; whatever else is written or saved comes after it."""
        if self._pending is None:
            return
        step, names, reading, others = self._pending
        self._pending = None
        values = dict(zip(names, reading.value().tolist(), strict=True))
        self._write(step, {**values, **others})
        self.display.report(
            step, {name: value for name, value in values.items() if name == "loss" or self._is_term(name)}
        )

    def has_evaluation(self, step: int) -> bool:
        """Tells whether metrics.jsonl holds an evaluation after `step`."""
        return any(row["step"] == step and "loss" not in row for row in read(self.metrics.path))

    def evaluated(self, step: int, evaluation: Evaluation) -> None:
        """Logs the metrics and pictures of an evaluation after `step`, and its warning."""
        self.write_logged()
        if not self.has_evaluation(step):  # there is one when a run stopped just after its final evaluation resumes
            self._write(step, evaluation.metrics)
        for name, picture in evaluation.pictures.items():
            self.trackers.picture(step, name, picture)
        if evaluation.warning and step > max(self.warm_up, FEW_STEPS):
            _log.warning("step %d: %s", step, evaluation.warning)

    def save_pictures(self, evaluation: Evaluation) -> None:
        """Saves the pictures of the final evaluation and the curves of the whole run as PNG files."""
        if not is_main():
            return
        rows = read(self.metrics.path)
        terms = list(dict.fromkeys(name for row in rows for name in row if self._is_term(name)))
        names = next((column.names for column in percentages(evaluation.columns).values()), ())  # of the first one
        levels = {row: cell(scores, names) for row, scores in evaluation.results.items() if row != TRAINED}
        evaluation.pictures["curves"] = curves_figure(
            rows,
            terms,
            [f"eval/{name}" for name in names[:1]],
            {row: level for row, level in levels.items() if level is not None},
        )
        evaluation.save_pictures(self.folder / "pictures")

    @property
    def lines(self) -> int:
        """The number of lines in metrics.jsonl. Only the main process knows it."""
        return self.metrics.lines

    def sync(self) -> None:
        """Waits until all lines of metrics.jsonl are on the disk."""
        self.write_logged()
        if is_main():
            self.metrics.sync()

    def _is_term(self, name: str) -> bool:
        """Tells whether a logged value is `objective/term`."""
        return name.split("/")[0] in self.objectives

    def _write(self, step: int, values: Mapping[str, float]) -> None:
        """Writes the numbers of a step to metrics.jsonl and to the trackers."""
        self.metrics.log(step, values)
        self.trackers.scalars(step, values)
