"""Cosines over the whole run. Follows dinov2/train/train.py of facebookresearch/dinov2 @ b8931f7."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from dinoswap.optim.schedules import (
    Schedule,
    cosine,
    cosine_then_constant,
    linear_then_constant,
    scaled_lr,
    steps,
)
from dinoswap.schedule.base import SchedulePlan, require_momenta, require_rates, require_temperatures

WarmupShape = Literal["linear", "cosine"]


@dataclass(frozen=True, kw_only=True)
class CosineSchedule(SchedulePlan):
    """lr on a line to its base and then on a cosine to `min_lr`, weight decay and momentum on cosines to their ends,
    the temperature on a line or half a cosine to its end, where it stays. Raises ValueError for a value out of range.
    """

    base_lr: float
    min_lr: float
    warmup: int | float
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
        require_rates(self._named("base_lr", "min_lr", "weight_decay", "weight_decay_end"))
        require_momenta(self._named("momentum", "momentum_end"))
        require_temperatures(self._named("teacher_temp_start", "teacher_temp"))

    def _named(self, *names: str) -> dict[str, float]:
        """Returns the arguments of these names, by name."""
        return {name: getattr(self, name) for name in names}

    def check(self, total: int) -> None:
        """Raises ValueError, besides, where a warm-up that a cosine follows is longer than the run."""
        super().check(total)
        self._length("teacher_temp_warmup", total)
        for name in ("warmup", "weight_decay_warmup"):
            if self._length(name, total) > total:
                raise ValueError(
                    f"schedule.{name}={getattr(self, name)}: is longer than the run of trainer.max_steps={total}; give "
                    "fewer steps, a share of the run such as 0.1, or more of trainer.max_steps"
                )

    def unfinished(self, total: int) -> Iterator[str]:
        """Yields a sentence, besides, where the temperature is still on its way when the run ends."""
        yield from super().unfinished(total)
        if (warmup := self._length("teacher_temp_warmup", total)) > total:
            yield (
                f"schedule.teacher_temp_warmup={warmup}: is longer than the run of trainer.max_steps={total}: the "
                "teacher's temperature does not reach schedule.teacher_temp"
            )

    def curves(self, total: int, batch_size: int) -> Mapping[str, Schedule]:
        """Returns the five schedules. The lr of the prototype bank ends at 0, as in the legacy trainer @ 67f6a87."""
        lengths = (self._length(name, total) for name in ("warmup", "weight_decay_warmup", "teacher_temp_warmup"))
        warmup, decay_warmup, temp_warmup = lengths
        lr, decay = scaled_lr(self.base_lr, batch_size, self.lr_scaling), self.weight_decay
        temperature = linear_then_constant if self.teacher_temp_shape == "linear" else cosine_then_constant
        return {
            "lr": cosine(lr, self.min_lr, total, warmup=warmup),
            "prototype_lr": cosine(self.base_lr, 0.0, total, warmup=warmup),
            "weight_decay": cosine(decay, self.weight_decay_end, total, warmup=decay_warmup, start=decay),
            "momentum": cosine(self.momentum, self.momentum_end, total),
            "teacher_temp": temperature(self.teacher_temp_start, self.teacher_temp, temp_warmup),
        }

    def _length(self, name: str, total: int) -> int:
        """Returns the length in steps that the argument `name` is, of `total` steps."""
        return steps(getattr(self, name), total, f"schedule.{name}")
