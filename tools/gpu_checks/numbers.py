"""What a check measures, and how losses and weights compare."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

Numbers = dict[str, Any]
"""What a check found. `failed` says in words what is wrong, "" nothing; `skipped` why it did not run."""


@dataclass(frozen=True)
class Check:
    """`run(subject, device)` for each of some subjects, in at most so many seconds each."""

    run: Callable[[str, torch.device], Numbers]
    subjects: Callable[[torch.device], Sequence[str]]
    seconds: float


def largest_difference(measured: Sequence[float], expected: Sequence[float]) -> float:
    """Relative to what is expected; NaN, which no tolerance holds, where a value is not finite."""
    ours, theirs = (torch.tensor(values, dtype=torch.float64) for values in (measured, expected))
    return float(((ours - theirs) / theirs).abs().max())


def beyond(name: str, difference: float, tolerance: float) -> str:
    """What is wrong with a difference, "" within the tolerance; each such text ends with a semicolon."""
    return "" if difference <= tolerance else f"{name} differ by {difference:.1e}, more than {tolerance:.0e}; "
