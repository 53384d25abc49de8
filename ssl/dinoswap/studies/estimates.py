"""The effects that a study declares, estimated as its design allows: the report's at the end of the runs, and those at
every evaluation on the way (over_training.py).

An arm is paired with the first cell by seed; in a crossed design an effect is an average over the other factors. In
each frame of outcomes, with the columns cell, seed, status and value, the first of the cells is the reference.

What an effect costs is estimated in the same way, of the logarithm of the time per image, so that estimate and interval
are those of a ratio: `percent` returns them as such.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from dinoswap.studies.statistics import Effect, Estimate, Factorial, MetricOptions, factorial, paired_effect
from dinoswap.studies.statistics.outcomes import WITH_VALUE
from dinoswap.studies.study import Metric, Study


def declared_effects(
    study: Study, cells: Mapping[str, Mapping[str, str]], outcomes: pd.DataFrame, metric: Metric | None
) -> Sequence[Estimate]:
    """Returns the effects of the declared family on values of which `metric` says what matters, if anything does. There
    are none where no run of a crossed design has a value."""
    if study.design in ("factorial", "fractional"):
        effects = crossed_effects(study, cells, outcomes, metric)
        return effects.main if effects else []
    first, *others = cells
    return [effect_against(first, cell, outcomes, metric) for cell in others]


def effect_against(reference: str, cell: str, outcomes: pd.DataFrame, metric: Metric | None) -> Effect:
    """Returns the effect of one cell against another, paired by seed."""
    of_reference, of_cell = (outcomes[outcomes["cell"] == name] for name in (reference, cell))
    return paired_effect(of_reference, of_cell, name=cell, **options_of(metric))


def crossed_effects(
    study: Study, cells: Mapping[str, Mapping[str, str]], outcomes: pd.DataFrame, metric: Metric | None
) -> Factorial | None:
    """Returns the effects of a crossed design, or None where no run has a value."""
    if not outcomes["value"].notna().any():
        return None
    return factorial(outcomes, cells, study.factors, **options_of(metric))


def effects_on_time(study: Study, cells: Mapping[str, Mapping[str, str]], rates: pd.DataFrame) -> Sequence[Estimate]:
    """Returns the effects of the declared family on the logarithm of the time per image. `rates` is a frame of
    outcomes whose values are images per second; a rate that is not above 0 is none."""
    measured = rates["value"] > 0
    seconds = -np.log(rates["value"].where(measured))
    lost = rates["status"].isin(WITH_VALUE) & ~measured
    logarithms = rates.assign(value=seconds, status=rates["status"].mask(lost, "missing"))
    return declared_effects(study, cells, logarithms, None)


class Percent(NamedTuple):
    """A ratio, less 1, in percent, and the limits of its interval."""

    mean: float
    low: float
    high: float


def percent(log_ratio: Estimate) -> Percent:
    """Returns the ratio of which the logarithm was estimated."""
    with np.errstate(over="ignore"):  # the interval of two seeds may end anywhere
        return Percent(*(100 * np.expm1([log_ratio.mean, log_ratio.low, log_ratio.high])).tolist())


def options_of(metric: Metric | None) -> MetricOptions:
    """Returns what every analysis of a metric needs to know of it; nothing of values without one."""
    if metric is None:
        return {}
    return {"smallest_effect": metric.smallest_effect, "higher_is_better": metric.higher_is_better}
