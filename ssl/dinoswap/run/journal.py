"""What a run tells while it goes: metrics.jsonl, TensorBoard, the line that the user sees, the pictures at its end."""

import logging
import os
from collections.abc import Collection, Mapping
from pathlib import Path
from types import TracebackType

import torch
from torch import Tensor

from dinoswap.distributed import all_reduce_mean, is_main
from dinoswap.evaluation.diagnostics import FEW_STEPS
from dinoswap.evaluation.evaluator import Evaluation
from dinoswap.evaluation.visualise import curves_figure
from dinoswap.run.metrics import MetricsLog, TensorBoard, read
from dinoswap.run.progress import Display

_log = logging.getLogger(__name__)


class Journal:
    """A context manager. Steps are counted as in metrics.jsonl: the first is 1, and 0 is before it.

    `done`: steps that are not repeated; what was written of later ones is dropped. `objectives`: their names tell loss
    terms from other values. `warm_up`: steps, if more than FEW_STEPS, after which a verdict is worth reading: an
    untrained network looks collapsed. Only the main process writes.
    """

    def __init__(
        self, folder: Path, display: Display, objectives: Collection[str], *, done: int, warm_up: int, tensorboard: bool
    ) -> None:
        self.folder, self.display, self.objectives, self.warm_up = folder, display, objectives, warm_up
        # The other ranks log the same, to nowhere: what they evaluate is evaluated by all
        self.metrics = MetricsLog(folder / "metrics.jsonl" if is_main() else Path(os.devnull))
        if is_main():
            self.metrics.truncate_from(done + 1 if done else 0)
        self.board = TensorBoard(folder / "tensorboard", done + 1) if tensorboard and is_main() else None

    def __enter__(self) -> "Journal":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.metrics.close()
        if self.board is not None:
            self.board.close()

    def log(self, step: int, logs: Mapping[str, Tensor], hyper: Mapping[str, float]) -> None:
        """The means over ranks; one transfer from the device for all scalars of the step."""
        numbers = all_reduce_mean(torch.stack([value.float() for value in logs.values()])).tolist()
        values = dict(zip(logs, numbers, strict=True))
        self._write(step, {**values, **hyper, "images_per_second": self.display.images_per_second})
        self.display.report(
            step, {name: value for name, value in values.items() if name == "loss" or self._is_term(name)}
        )

    def has_evaluation(self, step: int) -> bool:
        """Whether metrics.jsonl holds one after `step`."""
        return any(row["step"] == step and "loss" not in row for row in read(self.metrics.path))

    def evaluated(self, step: int, found: Evaluation) -> None:
        if not self.has_evaluation(
            step
        ):  # as it is when a run is resumed that was stopped just after its final evaluation
            self._write(step, found.metrics)
        for name, picture in found.pictures.items():
            if self.board is not None:
                self.board.picture(step, name, picture)
        if found.warning and step > max(self.warm_up, FEW_STEPS):
            _log.warning("step %d: %s", step, found.warning)

    def save_pictures(self, found: Evaluation) -> None:
        """Those of the final evaluation, and the curves of the whole run."""
        if not is_main():
            return
        rows = read(self.metrics.path)
        terms = list(dict.fromkeys(name for row in rows for name in row if self._is_term(name)))
        split = {tuple(name.split("/")): value for name, value in found.metrics.items()}
        baselines = {name[1]: value for name, value in split.items() if (name[0], name[-1]) == ("baseline", "knn_top1")}
        found.pictures["curves"] = curves_figure(rows, terms, baselines=baselines)
        found.save_pictures(self.folder / "pictures")

    @property
    def lines(self) -> int:
        """Of metrics.jsonl, up to now. On other than the main process it means nothing."""
        return self.metrics.lines

    def sync(self) -> None:
        """Wait until the disk has what metrics.jsonl holds."""
        if is_main():
            self.metrics.sync()

    def _is_term(self, name: str) -> bool:
        """Whether a logged value is `objective/term`."""
        return name.split("/")[0] in self.objectives

    def _write(self, step: int, values: Mapping[str, float]) -> None:
        self.metrics.log(step, values)
        if self.board is not None:
            self.board.scalars(step, values)
