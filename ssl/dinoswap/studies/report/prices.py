"""What the effects of a study cost, on the metric that decides: their effect on the time per image, the cells that none
beats in both, and the hours until runs have a value."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pandas as pd

from dinoswap.studies.costs import COSTS
from dinoswap.studies.estimates import effects_on_time
from dinoswap.studies.over_training import Run as RunKey
from dinoswap.studies.pareto import Standing, standings
from dinoswap.studies.report.collect import Collected, Run
from dinoswap.studies.statistics import Decision, Estimate
from dinoswap.studies.statistics.outcomes import FAILURES
from dinoswap.studies.study import Metric
from dinoswap.studies.time_to_value import CellHours, Target, hours_to, of_cells, targets

RATE = "images_per_second"
AXES = {name: cost.axis for name, cost in COSTS.items() if cost.axis}
"""The costs in which cells are compared, and what they are called."""


@dataclass(frozen=True)
class PricedEffect:
    """The verdict on an effect, and that effect on the logarithm of the time per image."""

    decision: Decision
    log_time: Estimate

    @property
    def is_known(self) -> bool:
        """Whether both have a number."""
        return math.isfinite(self.decision.effect.mean) and math.isfinite(self.log_time.mean)


@dataclass(frozen=True)
class Prices:
    """What the effects and the cells of a study cost. `fronts` has, by cost, where each candidate stands; `hours` has
    nothing where it is not known how many images a step has, or the metric is not measured in the loop."""

    metric: Metric
    effects: Sequence[PricedEffect]
    fronts: Mapping[str, Mapping[str, Standing]]
    no_candidates: Sequence[str]  # cells with runs that failed
    hours: Sequence[tuple[Target, Sequence[CellHours]]]


def prices(collected: Collected, outcomes: pd.DataFrame, decisions: Sequence[Decision], metric: Metric) -> Prices:
    """Returns what the effects on a metric cost. `outcomes` are those of the metric, a row for each run in their
    order, `decisions` the verdicts on them."""
    cells = {cell.name: cell.levels for cell in collected.design.cells}
    rates = outcomes.assign(value=[run.value(RATE) for run in collected.runs])
    on_time = {effect.name: effect for effect in effects_on_time(collected.study, cells, rates)}
    named = [(decision, on_time.get(decision.effect.name)) for decision in decisions]
    failing = set(outcomes.loc[outcomes["status"].isin(FAILURES), "cell"])
    return Prices(
        metric,
        [PricedEffect(decision, log_time) for decision, log_time in named if log_time is not None],
        {name: _front(collected, outcomes, metric, name) for name in AXES},
        [cell for cell in cells if cell in failing],
        hours(collected, metric),
    )


def _front(collected: Collected, outcomes: pd.DataFrame, metric: Metric, cost: str) -> dict[str, Standing]:
    """Returns where each candidate stands in a metric and a cost."""
    runs = outcomes.assign(cost=[run.value(cost) for run in collected.runs])
    cheaper = COSTS[cost].more_is_cheaper
    return standings(runs, higher_is_better=metric.higher_is_better, more_is_cheaper=cheaper)


def hours_per_step(collected: Collected) -> dict[RunKey, float]:
    """Returns the core- or GPU-hours of a step of training of each run that ended, nan where they are not known; no run
    where it is not known how many images a step has."""
    return {
        (run.entry.cell, run.entry.seed): _hours_per_step(run, collected.images_per_step[run.entry.cell])
        for run in collected.ended
        if run.entry.cell in collected.images_per_step
    }


def _hours_per_step(run: Run, images: int) -> float:
    rate = run.value(RATE)
    return images / rate / 3600 * run.units if rate > 0 else math.nan


def loop_curves(collected: Collected, metric: Metric) -> pd.DataFrame:
    """Returns what all runs measured of a metric in the loop: cell, seed, step and value."""
    if collected.in_loop is None:
        return pd.DataFrame(columns=["cell", "seed", "step", "value"])
    return collected.in_loop[collected.in_loop["name"] == metric.name].drop(columns="name")


def hours(collected: Collected, metric: Metric) -> list[tuple[Target, Sequence[CellHours]]]:
    """Returns, for each value that hours are given to, those of each cell."""
    curves, per_step = loop_curves(collected, metric), hours_per_step(collected)
    if curves.empty or not per_step:
        return []
    reference, last = collected.design.reference.name, int(curves["step"].max())
    collapsed = {(run.entry.cell, run.entry.seed) for run in collected.runs if run.status == "collapsed"}
    return [
        (target, of_cells({run: needed for run, (_, needed) in reached.items()}, per_step, last, reference))
        for target in targets(curves, reference, collapsed, metric)
        for reached in [hours_to(curves, per_step, target.values, metric)]
    ]
