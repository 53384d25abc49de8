"""TensorBoard: one event file per process of a run, in the run's folder."""

import importlib
import textwrap
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from dinoswap.tracker.base import Status, TrackedRun, Tracker

FOLDER = "tensorboard"


class TensorBoardTracker(Tracker):
    """Writes scalars, pictures, the config as text, and hparams beside the loss and the objective metric. Points of
    `first_step` and later steps that the run wrote before are replaced."""

    package = "torch.utils.tensorboard"

    def start(self, run: TrackedRun, first_step: int) -> None:
        board = importlib.import_module(self.package)
        self._writer = board.SummaryWriter(str(run.folder / FOLDER), purge_step=first_step)
        self._writer.add_text("run", run.name, first_step - 1)
        self._writer.add_text("config", textwrap.indent(run.config, "    "), first_step - 1)  # indented: as it is
        # add_hparams would write them into another folder, as a run of its own
        values = {key: _plain(value) for key, value in run.hparams.items()}
        begin, session, self._end = board.summary.hparams(values, {"loss": 0.0, run.objective: 0.0})
        self._writer.file_writer.add_summary(begin)
        self._writer.file_writer.add_summary(session)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def picture(self, step: int, name: str, image: npt.NDArray[np.uint8]) -> None:
        self._writer.add_image(name, image, step, dataformats="HWC")

    def close(self, status: Status) -> None:
        if status == "completed":
            self._writer.file_writer.add_summary(self._end)
        self._writer.close()


def _plain(value: Any) -> bool | int | float | str:
    """Returns a value as one of the types that hparams may have."""
    return value if isinstance(value, bool | int | float | str) else str(value)
