"""The effects that a study declares, estimated as its design allows: the report's at the end of the runs, and those at
every evaluation on the way (over_training.py).

An arm is paired with the first cell by seed; in a crossed design an effect is an average over the other factors. In
each frame of outcomes, with the columns cell, seed, status and value, the first of the cells is the reference.
"""

from collections.abc import Mapping, Sequence

import pandas as pd

from dinoswap.studies.statistics import Effect, Estimate, Factorial, MetricOptions, factorial, paired_effect
from dinoswap.studies.study import Metric, Study


def declared_effects(
    study: Study, cells: Mapping[str, Mapping[str, str]], outcomes: pd.DataFrame, metric: Metric
) -> Sequence[Estimate]:
    """Returns the effects of the declared family. There are none where no run of a crossed design has a value."""
    if study.design in ("factorial", "fractional"):
        effects = crossed_effects(study, cells, outcomes, metric)
        return effects.main if effects else []
    first, *others = cells
    return [effect_against(first, cell, outcomes, metric) for cell in others]


def effect_against(reference: str, cell: str, outcomes: pd.DataFrame, metric: Metric) -> Effect:
    """Returns the effect of one cell against another, paired by seed."""
    of_reference, of_cell = (outcomes[outcomes["cell"] == name] for name in (reference, cell))
    return paired_effect(of_reference, of_cell, name=cell, **options_of(metric))


def crossed_effects(
    study: Study, cells: Mapping[str, Mapping[str, str]], outcomes: pd.DataFrame, metric: Metric
) -> Factorial | None:
    """Returns the effects of a crossed design, or None where no run has a value."""
    if not outcomes["value"].notna().any():
        return None
    return factorial(outcomes, cells, study.factors, **options_of(metric))


def options_of(metric: Metric) -> MetricOptions:
    """Returns what every analysis of a metric needs to know of it."""
    return {"smallest_effect": metric.smallest_effect, "higher_is_better": metric.higher_is_better}
