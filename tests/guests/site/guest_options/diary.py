"""A tracker that keeps a diary: a line for each thing that it is told."""

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from dinoswap.tracker.base import Status, TrackedRun, Tracker


class Diary(Tracker):
    """Writes into `<file>` of the run's folder."""

    def __init__(self, *, file: str) -> None:
        if not file.endswith(".txt"):
            raise ValueError(f"file={file}: has to end in .txt")
        self.file = file

    def start(self, run: TrackedRun, first_step: int) -> None:
        self._path = run.folder / self.file
        self._write(f"{run.name}, from step {first_step}")

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        self._write(f"step {step}: {', '.join(values)}")

    def picture(self, step: int, name: str, image: npt.NDArray[np.uint8]) -> None:
        self._write(f"step {step}: a picture of {name}")

    def close(self, status: Status) -> None:
        self._write(status)

    def _write(self, line: str) -> None:
        with self._path.open("a") as file:
            file.write(f"{line}\n")
