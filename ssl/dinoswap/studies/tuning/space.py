"""What a search draws from: the parameters of `space`."""

import math
from dataclasses import dataclass
from typing import Any, Literal, cast

from dinoswap.studies.overrides import Scalar, as_text


@dataclass(frozen=True, kw_only=True)
class Parameter:
    """The values that a key is drawn from: `low` to `high`, both included, or one of `choices`.

    Raises ValueError for bounds, steps and choices that do not fit the type or each other.
    """

    type: Literal["float", "int", "categorical"]
    low: float | None = None
    high: float | None = None
    log: bool = False
    step: float | None = None
    choices: list[Any] | None = None

    def __post_init__(self) -> None:
        (self._check_choices if self.type == "categorical" else self._check_bounds)()

    def _check_choices(self) -> None:
        """Raises ValueError where a categorical parameter has bounds, or not two different choices."""
        for name in ("low", "high", "step"):
            if getattr(self, name) is not None:
                raise ValueError(f"{name}={getattr(self, name)}: is for numbers; type: categorical has choices only")
        for choice in self.choices or []:
            if not (choice is None or isinstance(choice, str | int | float)):
                raise ValueError(f"choices={choice}: must be one value; write a list as text, '[0.1, 0.5]'")
        if len({as_text(choice) for choice in self.choices or []}) < max(len(self.choices or []), 2):
            raise ValueError(f"choices={self.choices}: must be at least two values, all different")

    def _check_bounds(self) -> None:
        """Raises ValueError where a number has choices, or bounds between which nothing can be drawn."""
        if self.choices is not None:
            raise ValueError(f"choices={self.choices}: are for type: categorical; give low and high")
        for name in ("low", "high", "step"):
            value = getattr(self, name)
            if value is None and name != "step":
                raise ValueError(f"has no {name}; give low and high")
            if self.type == "int" and value is not None and value != int(value):
                raise ValueError(f"{name}={value:g}: must be a whole number for type: int")
        low, high = cast(float, self.low), cast(float, self.high)
        if not low < high:
            raise ValueError(f"low={low:g}: must be below high={high:g}")
        if self.log and not low > 0:
            raise ValueError(f"low={low:g}: must be above 0 on a logarithmic scale")
        if self.step is not None and (self.log or not 0 < self.step <= high - low):
            raise ValueError(f"step={self.step:g}: must lie between 0 and high - low, and cannot go with log: true")

    @property
    def examples(self) -> list[Scalar]:
        """Values that the key has to accept: every choice, or the least and the largest."""
        if self.choices is not None:
            return list(self.choices)
        low, high = cast(float, self.low), cast(float, self.high)
        if self.step is not None:
            high = low + math.floor((high - low) / self.step + 1e-9) * self.step  # 0.3 / 0.1 is 2.9999999999999996
        return [int(low), int(high)] if self.type == "int" else [low, high]
