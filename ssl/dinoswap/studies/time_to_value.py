"""Hours of training until a run has a value: the learning curve on an axis of cost.

A run has a value from where its curve first does, on straight lines between the evaluations in the loop; at its first
evaluation already where that has it. Hours are those of training alone, without evaluations and the start of a process:
step * images per step / images per second / 3600 * units, where a unit is a core or a GPU.

A run that never has the value is censored: its hours are more than those of its last evaluation. The hours of a cell
are the median over its runs, the fewest in which half of them have the value (as of a Kaplan-Meier curve, where all
are censored at their end). One that diverged or failed never has it.
"""

import math
import statistics
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pandas as pd

from dinoswap.studies.over_training import Run
from dinoswap.studies.statistics import Estimate, paired_effect
from dinoswap.studies.statistics.estimate import Array
from dinoswap.studies.study import Metric


class Target(NamedTuple):
    """A value of a metric for each seed, and in words whose it is."""

    values: Mapping[int, float]
    words: str

    @property
    def mean(self) -> float:
        """The mean over the seeds."""
        return statistics.fmean(self.values.values())


@dataclass(frozen=True)
class CellHours:
    """The hours of one cell to a value: inf where fewer than half of its `runs` have it, nan where what a step takes is
    not known. `reached` is how many have it, `within` the hours to the last evaluation (median). `log_ratio` is the
    logarithm of its hours over those of the reference, None where not all runs of both have the value."""

    cell: str
    hours: float
    reached: int
    runs: int
    within: float
    log_ratio: Estimate | None


def targets(curves: pd.DataFrame, reference: str, collapsed: Collection[Run], metric: Metric) -> list[Target]:
    """Returns the values to which hours are given: what the reference has at its last evaluation, by seed, so that each
    of its runs reaches its own; and the best that every run reaches that did not collapse, unless one has it at its
    first evaluation. `curves` has the columns cell, seed, step and value, all runs at the same steps."""
    table = curves.pivot(index="step", columns=["cell", "seed"], values="value").sort_index()
    sign = 1 if metric.higher_is_better else -1
    ends = {int(seed): float(value) for (cell, seed), value in table.iloc[-1].dropna().items() if cell == reference}
    chosen = [Target(ends, f"what {reference} of the same seed has at its last evaluation, on average")] if ends else []
    sound = sign * table.loc[:, [run not in collapsed for run in table.columns]]
    shared = sound.max().min()
    if shared > sound.iloc[0].max():
        level = float(sign * shared)
        seeds = map(int, table.columns.unique("seed"))
        chosen.append(Target(dict.fromkeys(seeds, level), "the best that every run reaches that did not collapse"))
    return chosen


def first_step(steps: Array, values: Array, value: float) -> float:
    """Returns the step, between evaluations a fraction of one, at which a curve of `values` [n] at `steps` [n] first is
    at `value` or above; inf where it never is."""
    known = np.isfinite(values)
    steps, values = steps[known], values[known]
    above = np.flatnonzero(values >= value)
    if not len(above):
        return math.inf
    first = int(above[0])
    if first == 0:
        return float(steps[0])
    return float(np.interp(value, values[first - 1 : first + 1], steps[first - 1 : first + 1]))


def hours_to(
    curves: pd.DataFrame, hours_per_step: Mapping[Run, float], values: Mapping[int, float], metric: Metric
) -> dict[Run, tuple[float, float]]:
    """Returns the step and the hours at which each run has the value of its seed, inf where it never has; no run whose
    seed has no value. `hours_per_step` has the runs, nan where theirs are not known; one that is not in `curves` (cell,
    seed, step, value) never has the value."""
    sign = 1 if metric.higher_is_better else -1
    by_run = {(str(cell), int(seed)): curve for (cell, seed), curve in curves.groupby(["cell", "seed"])}
    reached = {}
    for run, hours in hours_per_step.items():
        _, seed = run
        if seed in values:
            curve = by_run.get(run, curves.iloc[:0]).sort_values("step")
            at, measured = (curve[name].to_numpy(dtype=float) for name in ("step", "value"))
            step = first_step(at, sign * measured, sign * values[seed])
            reached[run] = (step, step * hours if step < math.inf else math.inf)
    return reached


def of_cells(
    hours: Mapping[Run, float], hours_per_step: Mapping[Run, float], last_step: int, reference: str
) -> list[CellHours]:
    """Returns the hours of each cell, in the order of the runs. `hours` are those of each run to a value, `last_step`
    is that of the last evaluation."""
    by_cell: dict[str, dict[int, float]] = {}
    for (cell, seed), needed in hours.items():
        by_cell.setdefault(cell, {})[seed] = needed
    cells = []
    for cell, by_seed in by_cell.items():
        within = np.median([hours_per_step[cell, seed] * last_step for seed in by_seed])
        reached = sum(needed != math.inf for needed in by_seed.values())
        ratio = None if cell == reference else _log_ratio(by_cell.get(reference, {}), by_seed, cell)
        cells.append(CellHours(cell, median(list(by_seed.values())), reached, len(by_seed), float(within), ratio))
    return cells


def median(hours: list[float]) -> float:
    """Returns the fewest hours in which at least half of the runs have the value; nan where any are not known."""
    return math.nan if any(map(math.isnan, hours)) else sorted(hours)[math.ceil(len(hours) / 2) - 1]


def _log_ratio(reference: Mapping[int, float], arm: Mapping[int, float], name: str) -> Estimate | None:
    """Returns the logarithm of the arm's hours over the reference's, paired by seed; None unless all are known, finite
    and above 0."""
    if not reference or not all(0 < needed < math.inf for needed in (*reference.values(), *arm.values())):
        return None
    frames = [
        pd.DataFrame(
            {"seed": list(side), "status": "completed", "value": [math.log(needed) for needed in side.values()]}
        )
        for side in (reference, arm)
    ]
    return paired_effect(*frames, name=name)
