"""Detects a non-finite loss or gradient before the step, without waiting for the device.

`severity` is computed on the device and makes the fused optimiser and the EMA skip their update. The host reads it one
step later, just before the next update: the state is then still the one that met the bad batch, so it can be kept.

In fp16 a gradient that overflows while the loss is finite is no fault as long as the loss scale can be halved: such a
step is skipped too (`nonfinite` in metrics.jsonl), but neither counted nor kept.
"""

import logging
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from dinoswap.distributed import all_reduce_max
from dinoswap.optim.late_reading import LateReading

KEPT_REPLAYS = 3
"""The number of non-finite steps after which no more states are kept."""

_log = logging.getLogger(__name__)


class Diverged(RuntimeError):
    """Too many non-finite steps in a row."""


class NonFiniteGuard:
    """Counts non-finite steps and stops the run after `limit` in a row. `keep(step)`, where it is set, saves the state
    for replay at the first few of them, but for those in a row, which leave the state as it is. Steps count from 0
    here, and from 1 in messages, as in metrics.jsonl."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.keep: Callable[[int], Path] | None = None
        self.in_a_row = 0
        self.total = 0
        self._pending: tuple[int, LateReading] | None = None

    def severity(self, loss: Tensor, norms: Mapping[str, Tensor], loss_scale: Tensor) -> Tensor:
        """Returns a float32 scalar on the device, the maximum over ranks: 0 when loss and gradient norms are finite,
        1 when a gradient is not and a smaller loss scale may help, 2 otherwise. `loss_scale` is 1 without scaling."""
        finite = torch.stack([loss.detach().float(), *(norm.float() for norm in norms.values())]).isfinite().all()
        hopeless = ~loss.detach().isfinite() | (loss_scale <= 1)
        return all_reduce_max((~finite).float() * (1 + hopeless))

    def watch(self, step: int, severity: Tensor) -> None:
        """Starts to copy the severity of a step to the host, where the next `resolve` reads it."""
        self._pending = (step, LateReading(severity))

    def resolve(self) -> None:
        """Counts and logs the watched step if it was not finite. Call it before the state changes. Raises Diverged at
        the limit."""
        if self._pending is None:
            return
        step, reading = self._pending
        self._pending = None
        severity = reading.value()
        if severity < 2:
            self.in_a_row = 0 if severity == 0 else self.in_a_row
            return
        self.in_a_row += 1
        self.total += 1
        message = f"step {step + 1}: loss or gradients were not finite, so the weights were left as they are"
        if self.keep is not None and self.in_a_row == 1 and self.total <= KEPT_REPLAYS:
            message += f"; the state before it is in {self.keep(step)}"
        _log.warning(message)
        if self.in_a_row >= self.limit:
            raise Diverged(
                f"{message}. It was the last of {self.in_a_row} such steps in a row (trainer.max_nonfinite_steps). "
                "Lower the lr (schedule.base_lr, schedule.lr.peak), lengthen its warm-up, or use "
                "trainer.precision=bf16 or fp32"
            )

    def state_dict(self) -> dict[str, int]:
        """Returns the counters that a checkpoint holds."""
        return {"in_a_row": self.in_a_row, "total": self.total}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Restores the counters of a `state_dict`."""
        self.in_a_row, self.total = int(state["in_a_row"]), int(state["total"])
