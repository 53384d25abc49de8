"""Schedules as arrays: the value at step n is `schedule[n]`, and the final value past the end.

cosine:  final + (base - final) * (1 + cos(pi * i / n)) / 2, i < n, after a linear warm-up whose end point is included.
Follows dinov2/utils/utils.py and dinov2/train/train.py of facebookresearch/dinov2 @ b8931f7.

warmup_cosine:  start + (peak - start) * i / w, i < w, then end + (peak - end) * (1 + cos(pi * i / (n - 1))) / 2, i < n.
Follows `linear_warmup_cosine_decay` of dinov3/train/cosine_lr_scheduler.py of facebookresearch/dinov3 @ 6876159.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

if TYPE_CHECKING:  # values imports torch, which takes seconds; the settings of the schedules are checked without it
    from dinoswap.values import Hyper

LrScaling = Literal["sqrt_1024", "linear_256", "none"]


class Schedule:
    """One value per step. `final` is returned past the end, as the official trainer does."""

    def __init__(self, values: np.ndarray, final: float) -> None:
        self.values = values
        self.final = float(final)

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, step: int) -> float:
        return float(self.values[step]) if step < len(self.values) else self.final

    @property
    def peak(self) -> int:
        """The first step at which the value is the largest."""
        return int(np.append(self.values, self.final).argmax())


def cosine(base: float, final: float, total: int, *, warmup: int = 0, start: float = 0.0, frozen: int = 0) -> Schedule:
    """Returns `frozen` steps of 0, `warmup` steps from `start` to `base` (both reached), then a cosine towards `final`.
    Raises ValueError where these are longer than `total`."""
    cosine_steps = total - warmup - frozen
    if cosine_steps < 0:
        raise ValueError(f"a warm-up of {warmup} steps (+ {frozen} frozen) is longer than a schedule of {total} steps")
    rise = np.linspace(start, base, warmup)
    fall = final + 0.5 * (base - final) * (1 + np.cos(np.pi * np.arange(cosine_steps) / max(cosine_steps, 1)))
    return Schedule(np.concatenate([np.zeros(frozen), rise, fall]), final)


def warmup_cosine(
    start: float, peak: float, end: float, *, warmup: int, cosine_steps: int, scale: float = 1.0
) -> Schedule:
    """Returns `warmup` steps from `start` towards `peak`, which is not reached, then `cosine_steps` on half a cosine
    from `peak` to `end`, both of which are reached, then `end`. Peak and end are multiplied by `scale`."""
    peak, end = peak * scale, end * scale
    rise = np.linspace(start, peak, warmup, endpoint=False)
    fall = end + 0.5 * (peak - end) * (1 + np.cos(np.linspace(0, np.pi, cosine_steps)))
    return Schedule(np.concatenate([rise, fall]), end)


def linear_then_constant(start: float, end: float, warmup: int) -> Schedule:
    """Returns `warmup` steps from `start` to `end`, then `end`."""
    return Schedule(np.linspace(start, end, warmup), end)


def cosine_then_constant(start: float, end: float, warmup: int) -> Schedule:
    """Returns `warmup` steps on half a cosine from `start` towards `end`, then `end`, as the legacy trainer has it
    (@ 67f6a87)."""
    return Schedule(start + (end - start) * (1 - np.cos(np.pi * np.arange(warmup) / max(warmup, 1))) / 2, end)


def with_frozen_start(schedule: Schedule, steps: int) -> Schedule:
    """Returns a copy of `schedule` with its first `steps` values set to 0, which freezes the last layer."""
    return Schedule(np.concatenate([np.zeros(steps), schedule.values[steps:]]), schedule.final)


def scaled_lr(base_lr: float, batch_size: int, rule: LrScaling) -> float:
    """Returns the peak lr for `batch_size` images per step over all ranks."""
    factor = {"sqrt_1024": math.sqrt(batch_size / 1024), "linear_256": batch_size / 256, "none": 1.0}
    return base_lr * factor[rule]


def steps(length: int | float, total: int, name: str) -> int:
    """Returns a length in steps: an integer is a number of steps, a fraction below 1 a share of `total`. Raises
    ValueError for a negative number or a fraction from 1 on; `name` is the config key in the message."""
    if isinstance(length, float) and not 0 <= length < 1:
        raise ValueError(f"{name}={length}: give a whole number of steps, or a fraction of the run from 0 to below 1")
    if length < 0:
        raise ValueError(f"{name}={length}: must not be negative")
    return length if isinstance(length, int) else round(length * total)


@dataclass(frozen=True, kw_only=True)
class Phases:
    """A value that goes linearly from `start` to `peak`, then on half a cosine to `end`, where it stays. Lengths are
    steps (integers) or fractions of the run (below 1); `cosine` None takes what the warm-up leaves of the run."""

    start: float
    peak: float
    end: float
    warmup: int | float
    cosine: int | float | None

    def schedule(self, total: int, name: str, scale: float = 1.0) -> Schedule:
        """Returns the values over a run of `total` steps, with peak and end multiplied by `scale`. Raises ValueError as
        `lengths` does."""
        warmup, cosine_steps = self.lengths(total, name)
        return warmup_cosine(self.start, self.peak, self.end, warmup=warmup, cosine_steps=cosine_steps, scale=scale)

    def lengths(self, total: int, name: str) -> tuple[int, int]:
        """Returns the steps of the warm-up and of the cosine in a run of `total` steps. Raises ValueError for lengths
        that do not fit into the run; `name` is the config key in the message."""
        warmup = steps(self.warmup, total, f"{name}.warmup")
        rest = total - warmup
        cosine_steps = rest if self.cosine is None else steps(self.cosine, total, f"{name}.cosine")
        if not 0 <= cosine_steps <= rest:
            raise ValueError(
                f"{name}: a warm-up of {warmup} and a cosine of {cosine_steps} steps are longer than the run of "
                f"trainer.max_steps={total}; shorten {name}.warmup or {name}.cosine"
            )
        return warmup, cosine_steps


class Schedules(Mapping[str, Schedule]):
    """All schedules of a run by name. `at(step)` returns their values, which the step and the objectives read."""

    def __init__(self, schedules: Mapping[str, Schedule]) -> None:
        self._schedules = dict(schedules)

    def __getitem__(self, name: str) -> Schedule:
        return self._schedules[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._schedules)

    def __len__(self) -> int:
        return len(self._schedules)

    def at(self, step: int) -> "Hyper":
        """Returns the value of every schedule at `step`, counted from 0."""
        return {name: schedule[step] for name, schedule in self._schedules.items()}

    def final(self) -> "Hyper":
        """Returns the value that every schedule keeps from its end on. A term whose weight rises from 0 computes
        nothing at step 0, so these are the values to count FLOPs and memory with."""
        return {name: schedule.final for name, schedule in self._schedules.items()}
