"""The base class of experiment trackers, and what they are told of a run.

A tracker is an option of the group `tracker`: a module here and a YAML in configs/tracker. It decides no result, so a
run may be continued with others. No module of a tracker imports its package, or torch, at its top: the config is
checked without them, and most runs do without most packages.
"""

import importlib
import importlib.util
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt

Status = Literal["running", "completed", "failed", "preempted", "diverged"]
"""How a run has ended; "running" where another process has taken it over."""

CLOSE_SECONDS = 8.0
"""The longest that the end of a run waits for one of its trackers."""


@dataclass(frozen=True)
class TrackedRun:
    """Describes a run to its trackers.

    `name` is for people. `key` is the same in all processes that continue the run, and of no other run, also where an
    equal one was begun anew. `folder` is the run's own, `results` that of all runs. `config` is the resolved config as
    YAML. `hparams` are flat: the option of each group, and the settings that deviate from versioned defaults.
    `objective` names the metric that the run is judged by.
    """

    name: str
    key: str
    run_id: str
    study: str
    seed: int
    folder: Path
    results: Path
    config: str
    hparams: Mapping[str, Any]
    objective: str


class Tracker(ABC):
    """Tracks one run. All calls after `load` come from a thread of the tracker's own, one after the other, and may take
    any time: the run does not wait. After an exception none follows but `abandon`.

    `package` is what has to be installed, by the command `install`; "" where nothing has.
    """

    package: ClassVar[str] = ""
    install: ClassVar[str] = ""

    def is_installed(self) -> bool:
        """Tells whether the package is there, without importing it. A folder of its name is not."""
        if not self.package:
            return True
        spec = importlib.util.find_spec(self.package.partition(".")[0])
        return spec is not None and spec.origin is not None

    def load(self) -> None:
        """Imports the package. The main thread calls it: a process must not be forked in the middle of an import."""
        if self.package:
            importlib.import_module(self.package)

    @abstractmethod
    def start(self, run: TrackedRun, first_step: int) -> None:
        """Begins, or continues, the run. `first_step` is the first that is trained from now on; a run that was killed
        may repeat steps which are tracked already."""

    @abstractmethod
    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Adds numbers by name, NaN and infinities among them. Steps never decrease, and may come twice, as of a step
        and of the evaluation after it."""

    @abstractmethod
    def picture(self, step: int, name: str, image: npt.NDArray[np.uint8]) -> None:
        """Adds a picture, uint8 [H, W, 3]."""

    @abstractmethod
    def close(self, status: Status) -> None:
        """Delivers the rest, and ends. Only CLOSE_SECONDS are waited for it."""

    def abandon(self) -> None:  # noqa: B027  # most have nothing to let go of
        """Lets go of processes and connections that would hold the end of the run, after `close` took too long or any
        call failed. It may be called twice, and from another thread while a call has not returned."""

    def remedy(self) -> str:
        """Returns where what was not delivered is, or what delivers it later."""
        return "metrics.jsonl has all"
