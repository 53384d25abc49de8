"""Hours until runs have a value: of curves drawn by hand, and of a study's run folders."""

import itertools
import math
import statistics

import numpy as np
import pandas as pd
import pytest
import scipy.stats

from dinoswap.studies.study import Metric
from dinoswap.studies.time_to_value import first_step, hours_to, median, of_cells, targets

KNN = Metric(name="eval/knn_top1", smallest_effect=1.0)
LOSS = Metric(name="loss", smallest_effect=1.0, higher_is_better=False)


def curves(values: dict[tuple[str, int], list[float]], every: int = 10) -> pd.DataFrame:
    rows = [
        (cell, seed, every * index, value)
        for (cell, seed), measured in values.items()
        for index, value in enumerate(measured)
    ]
    return pd.DataFrame(rows, columns=["cell", "seed", "step", "value"])


@pytest.mark.parametrize(
    ("values", "value", "step"),
    [
        ([0, 10, 20], 5, 5),
        ([0, 10, 20], 10, 10),
        ([0, 10, 20], 12.5, 12.5),
        ([0, 10, 4, 20], 10, 10),  # it does not have to stay there
        ([0, 10, 4, 20], 12, 25),
        ([7, 3, 20], 5, 0),
        ([0, 10, 20], 20.1, math.inf),
        ([0, math.nan, 20], 5, 5),  # straight over what was not finite
        ([math.nan, math.nan], 5, math.inf),
        ([], 5, math.inf),
    ],
)
def test_a_curve_first_has_a_value(values: list[float], value: float, step: float) -> None:
    steps = 10.0 * np.arange(len(values))
    assert first_step(steps, np.array(values, dtype=float), value) == step


def test_first_step_is_that_of_a_fine_walk_along_the_curve() -> None:
    draw = np.random.default_rng(2)
    for _ in range(30):
        values, value = draw.normal(0, 1, 8), float(draw.normal(0, 1))
        walk = np.linspace(0, 70, 70_001)
        above = np.interp(walk, 10.0 * np.arange(8), values) >= value
        expected = walk[above.argmax()] if above.any() else math.inf
        assert first_step(10.0 * np.arange(8), values, value) == pytest.approx(expected, abs=2e-3)


def test_targets_are_the_references_ends_and_what_all_reach() -> None:
    frame = curves(
        {("r", 0): [1, 5, 9], ("r", 1): [1, 8, 7], ("a", 0): [2, 6, 4], ("a", 1): [0, 1, 8], ("c", 0): [1, 0, 0]}
    )
    ends, shared = targets(frame, "r", {("c", 0)}, KNN)
    assert ends.values == {0: 9, 1: 7} and ends.mean == 8 and set(shared.values.values()) == {6}
    assert [target.values for target in targets(frame, "r", set(), KNN)] == [{0: 9, 1: 7}], "c has its best at once"
    negated = frame.assign(value=-frame["value"])
    ends, shared = targets(negated, "r", {("c", 0)}, LOSS)
    assert ends.values == {0: -9, 1: -7} and set(shared.values.values()) == {-6}
    (shared,) = targets(frame, "absent", {("c", 0)}, KNN)
    assert set(shared.values.values()) == {6}


def test_hours_of_runs_and_of_cells() -> None:
    frame = curves(
        {("r", 0): [0, 10, 20], ("r", 1): [0, 5, 20], ("a", 0): [0, 20, 20], ("a", 1): [0, 15, 20], ("b", 0): [0, 1, 2]}
    )
    per_step = {("r", 0): 0.1, ("r", 1): 0.2, ("a", 0): 0.1, ("a", 1): 0.3, ("b", 0): 0.5, ("b", 1): math.nan}
    reached = hours_to(frame, per_step, {0: 10.0, 1: 10.0}, KNN)
    steps = {("r", 0): 10, ("r", 1): 10 + 10 / 3, ("a", 0): 5, ("a", 1): 10 * 10 / 15}
    for run, step in steps.items():
        assert reached[run] == pytest.approx((step, step * per_step[run]))
    assert reached["b", 0] == reached["b", 1] == (math.inf, math.inf), "one that diverged never has the value"
    hours = {run: needed for run, (_, needed) in reached.items()}
    r, a, b = of_cells(hours, per_step, 20, "r")
    assert (r.cell, r.hours, r.reached, r.runs, r.log_ratio) == ("r", 1.0, 2, 2, None)
    assert b.hours == math.inf and (b.reached, b.runs) == (0, 2) and b.log_ratio is None
    assert a.within == pytest.approx(statistics.median([2.0, 6.0]))
    logs = [math.log(hours["a", seed] / hours["r", seed]) for seed in (0, 1)]
    low, high = scipy.stats.t.interval(0.95, 1, statistics.mean(logs), scipy.stats.sem(logs))
    assert a.log_ratio is not None
    assert (a.log_ratio.mean, a.log_ratio.low, a.log_ratio.high) == pytest.approx((statistics.mean(logs), low, high))
    falling = hours_to(frame.assign(value=-frame["value"]), per_step, {0: -10.0}, LOSS)
    assert falling == {run: reached[run] for run in reached if run[1] == 0}, "lower is better, and seed 1 has no value"


def test_the_median_is_kaplan_meiers() -> None:
    """Where all who do not have the value are censored later: the first time at which at most half are left."""
    for hours in itertools.product([1.0, 2.0, 3.0, math.inf], repeat=4):
        left = [(time, sum(other > time for other in hours) / len(hours)) for time in sorted(hours)]
        assert median(list(hours)) == next(time for time, share in left if share <= 0.5)
    assert math.isnan(median([1.0, math.nan, math.inf]))


def test_a_ratio_needs_hours_above_zero() -> None:
    """A run that has the value before its first step of training took no time."""
    per_step = {("r", 0): 1.0, ("r", 1): 1.0, ("a", 0): 1.0, ("a", 1): 1.0}
    _, a = of_cells({("r", 0): 4.0, ("r", 1): 5.0, ("a", 0): 0.0, ("a", 1): 2.0}, per_step, 10, "r")
    assert a.hours == 0 and a.reached == 2 and a.log_ratio is None
