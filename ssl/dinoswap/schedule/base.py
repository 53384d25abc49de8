"""The base class of schedule options: what they share is that the lr grows with the batch, and that the last layer of
the heads is frozen at first.

Nothing here or in an option imports torch, which takes seconds, so that a wrong value is refused before.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from dinoswap.optim.schedules import LrScaling, Schedule, Schedules, steps, with_frozen_start

FreezeBy = Literal["zero_lr", "drop_gradients"]

ADAMW_WEIGHT_DECAY = 0.01
"""Torch's default, which a group without a weight-decay schedule keeps."""


@dataclass(frozen=True, kw_only=True)
class SchedulePlan(ABC):
    """An option of the group. Lengths are steps (integers) or fractions of the run (below 1), so that a shortened run
    keeps its shape.

    Where the last layer is frozen by a lr of 0, Adam's moments already accumulate meanwhile. Where its gradients are
    dropped, as the legacy trainer @ 67f6a87 does, the moments and their bias correction begin with the first real step.
    """

    lr_scaling: LrScaling
    freeze_last_layer: int | float
    freeze_by: FreezeBy

    def check(self, total: int) -> None:
        """Raises ValueError for a length that is none, or that does not fit into a run of `total` steps; the message
        begins with its full key."""
        self._frozen(total)

    def unfinished(self, total: int) -> Iterator[str]:
        """Yields a sentence, which begins with the full key, for each value that a run of `total` steps ends before."""
        if (frozen := self._frozen(total)) > total:
            yield (
                f"schedule.freeze_last_layer={frozen}: is longer than the run of trainer.max_steps={total}: the last "
                "layer of the heads is not trained at all"
            )

    def schedules(self, total: int, batch_size: int) -> Schedules:
        """Returns the schedules of a run of `total` steps with `batch_size` images per step over all ranks: those of
        `curves`, last_layer_lr, last_layer_dropped (1 while its gradients are dropped) and constant_weight_decay
        (AdamW's default). Raises ValueError as `check` does."""
        self.check(total)
        curves, frozen, dropped = self.curves(total, batch_size), self._frozen(total), self.freeze_by != "zero_lr"
        return Schedules(
            {
                **curves,
                "last_layer_lr": curves["lr"] if dropped else with_frozen_start(curves["lr"], frozen),
                "last_layer_dropped": Schedule(np.ones(frozen if dropped else 0), 0.0),
                "constant_weight_decay": Schedule(np.empty(0), ADAMW_WEIGHT_DECAY),
            }
        )

    @abstractmethod
    def curves(self, total: int, batch_size: int) -> Mapping[str, Schedule]:
        """Returns the schedules lr, prototype_lr (of the prototype bank, not scaled by the batch size), weight_decay,
        momentum and teacher_temp."""

    def _frozen(self, total: int) -> int:
        """Returns the number of steps in which the last layer is frozen, of `total`."""
        return steps(self.freeze_last_layer, total, "schedule.freeze_last_layer")


def require_rates(values: Mapping[str, float]) -> None:
    """Raises ValueError for a rate of learning or decay that is negative; the keys are the names in the message."""
    for name, value in values.items():
        if not value >= 0:
            raise ValueError(f"{name}={value}: must be 0 or more")


def require_momenta(values: Mapping[str, float]) -> None:
    """Raises ValueError for a momentum of the teacher outside [0, 1]; the keys are the names in the message."""
    for name, value in values.items():
        if not 0 <= value <= 1:
            raise ValueError(f"{name}={value}: an EMA momentum lies between 0 and 1")


def require_temperatures(values: Mapping[str, float]) -> None:
    """Raises ValueError for a temperature that is not above 0; the keys are the names in the message."""
    for name, value in values.items():
        if not value > 0:
            raise ValueError(f"{name}={value}: a temperature must be above 0 (the recipe uses .04-.07)")
