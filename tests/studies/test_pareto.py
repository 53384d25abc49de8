"""Fronts and their shares, against loops written from the definition."""

import itertools
import math

import numpy as np
import pandas as pd
import pytest

from dinoswap.studies.pareto import DRAWS, ENUMERATED, on_front, resamples, shares_on_front, standings


def beaten(cell: int, values: list[float], costs: list[float]) -> bool:
    """By the definition, cell by cell."""
    return any(
        values[other] >= values[cell]
        and costs[other] <= costs[cell]
        and (values[other] > values[cell] or costs[other] < costs[cell])
        for other in range(len(values))
    )


def test_the_front_is_as_by_the_definition_ties_included() -> None:
    draw = np.random.default_rng(0)
    for cells in (1, 2, 9):
        for _ in range(50):
            values, costs = draw.integers(0, 4, (2, cells)).astype(float)  # coarse, so that many are equal
            expected = [not beaten(cell, values.tolist(), costs.tolist()) for cell in range(cells)]
            assert on_front(values, costs).tolist() == expected


def test_equal_cells_are_both_on_the_front() -> None:
    assert on_front(np.array([2.0, 2.0, 1.0]), np.array([5.0, 5.0, 5.0])).tolist() == [True, True, False]


def test_shares_of_few_seeds_go_through_all_resamples() -> None:
    draw = np.random.default_rng(1)
    values, costs = draw.normal(size=(2, 3, 4))
    counts = np.zeros(4)
    for drawn in itertools.product(range(3), repeat=3):
        means = [[sum(table[seed][cell] for seed in drawn) / 3 for cell in range(4)] for table in (values, costs)]
        counts += [not beaten(cell, means[0], means[1]) for cell in range(4)]
    np.testing.assert_allclose(shares_on_front(values, costs), counts / 27)
    assert 0 < counts.min() < 27 or 0 < np.median(counts) < 27, "else it tells nothing"


def test_shares_of_many_seeds_are_drawn_and_repeat_themselves() -> None:
    seeds = ENUMERATED + 1
    drawn = resamples(seeds)
    assert drawn.shape == (DRAWS, seeds) and (drawn == resamples(seeds)).all()
    assert np.bincount(drawn.ravel()) == pytest.approx(np.full(seeds, DRAWS), rel=0.1)
    better = np.array([1.0, 1, 1, 1, 1, -7])  # behind in every resample that has its bad seed
    values = np.stack([np.zeros(seeds), better], axis=1)
    shares = shares_on_front(values, np.zeros((seeds, 2)))
    without_bad = (1 - 1 / seeds) ** seeds
    assert shares[1] == pytest.approx(without_bad, abs=4 * math.sqrt(0.25 / DRAWS))


def test_paired_seeds_do_not_blur_the_front() -> None:
    """Seeds that differ by far more than cells do say nothing where all cells have the same ones."""
    rows = [
        (cell, seed, "completed", 100.0 * seed + gain, 10.0 * seed + price)
        for cell, gain, price in (("cheap", 0, 0), ("good", 1, 1), ("beaten", 0, 1))
        for seed in range(4)
    ]
    runs = pd.DataFrame(rows, columns=["cell", "seed", "status", "value", "cost"])
    placed = standings(runs, higher_is_better=True, more_is_cheaper=False)
    assert placed == {"cheap": (True, 1.0), "good": (True, 1.0), "beaten": (False, 0.0)}
    turned = runs.assign(value=-runs["value"], cost=-runs["cost"])
    assert standings(turned, higher_is_better=False, more_is_cheaper=True) == placed


def test_cells_with_failing_runs_are_no_candidates_and_pending_ones_do_not_count() -> None:
    rows = [
        ("a", 2, "completed", -99.0, 1.0),  # b has no such seed to compare with
        *(("a", seed, "completed", 1.0, 1.0) for seed in range(2)),
        *(("b", seed, "completed", 0.0, 0.5) for seed in range(2)),
        ("b", 2, "running", math.nan, math.nan),
        ("c", 0, "completed", 9.0, 0.1),
        ("c", 1, "diverged", math.nan, 0.1),
        ("d", 0, "collapsed", 9.0, 0.1),
        ("e", 0, "missing", math.nan, math.nan),
    ]
    runs = pd.DataFrame(rows, columns=["cell", "seed", "status", "value", "cost"])
    assert standings(runs, higher_is_better=True, more_is_cheaper=False) == {"a": (True, 1.0), "b": (True, 1.0)}
    alone = standings(runs[(runs["seed"] == 0) & (runs["cell"] != "c")], higher_is_better=True, more_is_cheaper=False)
    assert alone["a"].on_front and math.isnan(alone["a"].share), "one seed tells no share"
    apart = runs[(runs["seed"] == 2) | (runs["cell"] == "b")]
    assert standings(apart, higher_is_better=True, more_is_cheaper=False) == {}, "no seed is shared"
    assert standings(runs[runs["cell"] == "d"], higher_is_better=True, more_is_cheaper=False) == {}
