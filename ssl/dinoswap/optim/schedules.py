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
WarmupShape = Literal["linear", "cosine"]
FreezeBy = Literal["zero_lr", "drop_gradients"]

ADAMW_WEIGHT_DECAY = 0.01
"""Torch's default, which a group without a weight-decay schedule keeps."""


class Schedule:
    """One value per step. `final` is returned past the end, as the official trainer does."""

    def __init__(self, values: np.ndarray, final: float) -> None:
        self.values = values
        self.final = float(final)

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, step: int) -> float:
        return float(self.values[step]) if step < len(self.values) else self.final


def cosine(base: float, final: float, total: int, *, warmup: int = 0, start: float = 0.0, frozen: int = 0) -> Schedule:
    """Returns `frozen` steps of 0, `warmup` steps from `start` to `base` (both reached), then a cosine towards `final`.
    Raises ValueError where these are longer than `total`."""
    cosine_steps = total - warmup - frozen
    if cosine_steps < 0:
        raise ValueError(
            f"a warm-up of {warmup} steps (+ {frozen} frozen) is longer than the schedule of {total} steps: "
            "shorten schedule.warmup or schedule.teacher_temp_warmup, or raise trainer.max_steps"
        )
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
    values = schedule.values.copy()
    values[:steps] = 0.0
    return Schedule(values, schedule.final)


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
        """Returns the values over a run of `total` steps, with peak and end multiplied by `scale`. Raises ValueError
        for lengths that do not fit into the run; `name` is the config key in the message."""
        warmup = steps(self.warmup, total, f"{name}.warmup")
        rest = total - warmup
        cosine_steps = rest if self.cosine is None else steps(self.cosine, total, f"{name}.cosine")
        if not 0 <= cosine_steps <= rest:
            raise ValueError(
                f"{name}: a warm-up of {warmup} and a cosine of {cosine_steps} steps are longer than the run of "
                f"trainer.max_steps={total}; shorten {name}.warmup or {name}.cosine"
            )
        return warmup_cosine(self.start, self.peak, self.end, warmup=warmup, cosine_steps=cosine_steps, scale=scale)


@dataclass(frozen=True, kw_only=True)
class ScheduleSettings:
    """Lengths are steps (integers) or fractions of the run (below 1), so that a shortened run keeps its shape."""

    base_lr: float
    lr_scaling: LrScaling
    min_lr: float
    warmup: int | float
    freeze_last_layer: int | float
    freeze_by: FreezeBy
    weight_decay: float
    weight_decay_end: float
    weight_decay_warmup: int | float
    momentum: float
    momentum_end: float
    teacher_temp_start: float
    teacher_temp: float
    teacher_temp_warmup: int | float
    teacher_temp_shape: WarmupShape

    def __post_init__(self) -> None:
        for name in ("base_lr", "min_lr", "weight_decay", "weight_decay_end"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name}={getattr(self, name)}: must be 0 or more")
        for name in ("momentum", "momentum_end"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}={getattr(self, name)}: an EMA momentum lies between 0 and 1")
        for name in ("teacher_temp_start", "teacher_temp"):
            if not getattr(self, name) > 0:
                raise ValueError(
                    f"{name}={getattr(self, name)}: a temperature must be above 0 (the recipe uses .04-.07)"
                )


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


def build_schedules(settings: ScheduleSettings, *, total: int, batch_size: int) -> Schedules:
    """Returns the schedules lr, last_layer_lr, last_layer_dropped (1 while its gradients are dropped), prototype_lr
    (which is not scaled by the batch size), weight_decay, constant_weight_decay (AdamW's default), momentum and
    teacher_temp. Raises ValueError where a length does not fit into `total` steps.

    Where the last layer of the heads is frozen by a lr of 0, Adam's moments already accumulate meanwhile. Where its
    gradients are dropped, as the legacy trainer @ 67f6a87 does, the moments and their bias correction begin with the
    first real step."""
    warmup = steps(settings.warmup, total, "schedule.warmup")
    lr = cosine(scaled_lr(settings.base_lr, batch_size, settings.lr_scaling), settings.min_lr, total, warmup=warmup)
    frozen = steps(settings.freeze_last_layer, total, "schedule.freeze_last_layer")
    dropped = settings.freeze_by == "drop_gradients"
    decay_warmup = steps(settings.weight_decay_warmup, total, "schedule.weight_decay_warmup")
    temp_warmup = steps(settings.teacher_temp_warmup, total, "schedule.teacher_temp_warmup")
    temperature = linear_then_constant if settings.teacher_temp_shape == "linear" else cosine_then_constant
    return Schedules(
        {
            "lr": lr,
            "last_layer_lr": lr if dropped else with_frozen_start(lr, frozen),
            "last_layer_dropped": Schedule(np.ones(frozen if dropped else 0), 0.0),
            "prototype_lr": cosine(settings.base_lr, 0.0, total, warmup=warmup),
            "weight_decay": cosine(
                settings.weight_decay,
                settings.weight_decay_end,
                total,
                warmup=decay_warmup,
                start=settings.weight_decay,
            ),
            "constant_weight_decay": Schedule(np.empty(0), ADAMW_WEIGHT_DECAY),
            "momentum": cosine(settings.momentum, settings.momentum_end, total),
            "teacher_temp": temperature(settings.teacher_temp_start, settings.teacher_temp, temp_warmup),
        }
    )
