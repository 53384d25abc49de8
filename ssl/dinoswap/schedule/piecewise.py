"""Values in phases: a line, half a cosine, a constant. Follows the `schedules` section of the configurations, and
`build_schedulers_v2` of dinov3/train/train.py, of facebookresearch/dinov3 @ 6876159."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from dinoswap.optim.schedules import Phases, Schedule, scaled_lr
from dinoswap.schedule.base import SchedulePlan, require_momenta, require_rates, require_temperatures

RANGES: dict[str, Callable[[Mapping[str, float]], None]] = {
    "lr": require_rates,
    "weight_decay": require_rates,
    "momentum": require_momenta,
    "teacher_temp": require_temperatures,
}


@dataclass(frozen=True, kw_only=True)
class PiecewiseSchedule(SchedulePlan):
    """Phases of four values; peak and end of the lr are scaled with the batch, its start is not. Past its phases a
    value stays, where the official arrays end with the run. Raises ValueError for a value out of range."""

    lr: Phases
    weight_decay: Phases
    momentum: Phases
    teacher_temp: Phases

    def __post_init__(self) -> None:
        for name, require in RANGES.items():
            require({f"{name}.{point}": getattr(getattr(self, name), point) for point in ("start", "peak", "end")})

    def check(self, total: int) -> None:
        """Raises ValueError, besides, where the phases of a value are longer than the run."""
        super().check(total)
        for name in RANGES:
            getattr(self, name).lengths(total, f"schedule.{name}")

    def curves(self, total: int, batch_size: int) -> Mapping[str, Schedule]:
        """Returns the five schedules. The lr of the prototype bank has the phases of `lr`, so that it is as constant
        as that is; the official code has no bank."""
        scale = scaled_lr(1.0, batch_size, self.lr_scaling)
        own = {name: getattr(self, name).schedule(total, f"schedule.{name}") for name in RANGES}
        return {**own, "prototype_lr": own["lr"], "lr": self.lr.schedule(total, "schedule.lr", scale)}
