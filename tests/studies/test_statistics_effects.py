"""Paired effects against scipy's t tests, all choices of signs, and scipy's exact tests of failures."""

import math
import re
from itertools import product

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from dinoswap.studies.statistics import Outcomes, effects, family, paired_effect
from dinoswap.studies.statistics.effects import sign_flip
from dinoswap.studies.statistics.outcomes import fisher

WITHOUT_VALUE = ("diverged", "failed", "missing", "running", "preempted", "killed")


def arm(values: dict[int, float | str]) -> pd.DataFrame:
    """{seed: value, or the status of a run that has none}."""
    rows = [
        (s, v if v in WITHOUT_VALUE else "completed", math.nan if v in WITHOUT_VALUE else v) for s, v in values.items()
    ]
    return pd.DataFrame(rows, columns=["seed", "status", "value"])


def pair(differences: list[float]) -> tuple[pd.DataFrame, pd.DataFrame]:
    levels = np.random.default_rng(1).normal(50, 10, len(differences))
    return arm(dict(enumerate(levels))), arm(dict(enumerate(levels + differences)))


@pytest.mark.parametrize("n", [2, 3, 9])
def test_is_the_paired_t_test_of_scipy(n: int) -> None:
    rng = np.random.default_rng(n)
    reference, other = rng.normal(50, 3, n), rng.normal(51, 3, n)
    order = rng.permutation(n)  # pairs are by seed, not by position
    found = paired_effect(
        arm(dict(enumerate(reference))), arm({int(s): other[s] for s in order}), smallest_effect=2.0, confidence=0.9
    )
    expected = stats.ttest_rel(other, reference)
    interval = expected.confidence_interval(0.9)
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high), rel=1e-10)
    assert found.p == pytest.approx(expected.pvalue, rel=1e-10)
    assert found.sd == pytest.approx((other - reference).std(ddof=1))
    assert found.differences == pytest.approx(other - reference)
    above = stats.ttest_1samp(other - reference, -2.0, alternative="greater").pvalue
    below = stats.ttest_1samp(other - reference, 2.0, alternative="less").pvalue
    assert found.p_equivalent == pytest.approx(max(above, below), rel=1e-10)


@pytest.mark.parametrize("n", range(1, 9))
def test_sign_flip_goes_through_all_choices(n: int) -> None:
    differences = np.random.default_rng(n).normal(0.5, 1, n).round(1)  # rounded: sums that tie
    means = [np.dot(signs, differences) for signs in product((-1, 1), repeat=n)]
    expected = np.mean([abs(m) >= abs(differences.sum()) - 1e-9 for m in means])
    assert sign_flip(differences) == (expected, 0)


def test_drawn_signs_agree_with_all_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    differences = np.random.default_rng(0).normal(0.4, 1, 21)
    drawn, draws = sign_flip(differences)
    monkeypatch.setattr(effects, "EXACT_UP_TO", 21)
    exact, none = sign_flip(differences)
    assert (draws, none) == (100_000, 0)
    assert abs(drawn - exact) < 4 * math.sqrt(exact * (1 - exact) / draws)
    assert sign_flip([1.0] * 30, draws=999)[0] == 1 / 1000


@pytest.mark.parametrize(("n", "floor"), [(3, 0.25), (5, 0.0625), (6, 0.03125), (9, 0.00390625)])
def test_no_sign_flip_p_is_below_the_floor(n: int, floor: float) -> None:
    found = paired_effect(*pair([1.0 + 0.01 * i for i in range(n)]))
    assert found.p_floor == floor
    assert found.p_sign_flip == pytest.approx(floor)


def test_only_seeds_that_both_have_are_compared_and_every_outcome_is_counted() -> None:
    reference = arm({0: 10.0, 1: 11.0, 2: 12.0, 3: "diverged", 4: 14.0, 5: "running", 6: 16.0})
    other = arm({0: 11.0, 1: 13.0, 2: "failed", 3: 14.0, 4: "diverged", 5: 15.0, 7: 20.0})
    other.loc[other["seed"] == 1, "status"] = "collapsed"
    found = paired_effect(reference, other)
    assert found.seeds == (0, 1)
    assert found.differences == (1.0, 2.0)
    assert found.unpaired == (5, 6, 7)
    assert found.reference == Outcomes(runs=6, diverged=1)
    assert found.arm == Outcomes(runs=7, collapsed=1, diverged=1, failed=1)
    assert found.arm.values == 5
    # Of seeds 0-4, three failed in the arm only and one in the reference only
    assert found.failures.p == pytest.approx(stats.binomtest(3, 4).pvalue)
    assert found.failures.floor == pytest.approx(stats.binomtest(4, 4).pvalue)
    assert found.failures.excess == pytest.approx(2 / 5)


def test_fisher_is_that_of_scipy() -> None:
    for (m, n), a, b in product([(8, 8), (24, 12)], range(8), range(8)):
        found = fisher(Outcomes(runs=m, failed=a), Outcomes(runs=n, diverged=b))
        expected = stats.fisher_exact([[a, m - a], [b, n - b]]).pvalue
        assert found.p == pytest.approx(expected)
        tables = [(x, a + b - x) for x in range(a + b + 1) if x <= m and a + b - x <= n]
        attainable = [stats.fisher_exact([[x, m - x], [y, n - y]]).pvalue for x, y in tables]
        assert found.floor == pytest.approx(min(attainable))


COLLAPSED = arm(dict.fromkeys(range(6), 10.0)).assign(status="collapsed")
VARYING = arm({0: 0.1, 1: 0.2, 2: 0.3, 3: 0.5, 4: 0.8, 5: 1.3})


@pytest.mark.parametrize(
    ("reference", "other", "kind", "note"),
    [
        (VARYING, VARYING, "not tested", "both sides have the same value in every seed"),
        # A coarse metric: t would be infinite, and p zero from three seeds. (These differ by rounding.)
        (
            VARYING,
            VARYING.assign(value=VARYING["value"] + 0.1),
            "not tested",
            "the difference is the same in every seed",
        ),
        (VARYING, COLLAPSED.assign(status="completed"), "not tested", "every run of the arm has the value 10"),
        (COLLAPSED.assign(status="completed"), VARYING, "not tested", "every run of the reference has the value 10"),
        (COLLAPSED, COLLAPSED, "not tested", r"every run of both sides fails \(6 collapsed of 6, reference 6 coll"),
        (COLLAPSED, COLLAPSED.assign(value=VARYING["value"]), "not tested", "every run of both sides fails"),
        (VARYING[:3], COLLAPSED[:3], "fails", "every run of the arm fails"),
        (COLLAPSED[:3].assign(value=VARYING["value"]), VARYING, "not tested", "every run of the reference fails"),
    ],
)
def test_nothing_is_tested_on_no_variance_and_on_no_run_that_went_well(
    reference: pd.DataFrame, other: pd.DataFrame, kind: str, note: str
) -> None:
    """Collapsed networks all score alike, and would be equivalent with certainty."""
    found = paired_effect(reference, other, smallest_effect=20.0)
    assert found.p == found.p_equivalent == 1 and not found.tested
    assert math.isnan(found.low) and math.isnan(found.high) and re.search(note, found.note)
    (decision,) = family([found])
    assert decision.kind == kind and decision.seeds_for_smallest is None


def test_values_that_are_nearly_the_same_are_tested() -> None:
    """The other side of it: a hundredth of a percent is a spread."""
    found = paired_effect(VARYING, VARYING.assign(value=VARYING["value"] + [0.1, 0.1, 0.1, 0.1, 0.1, 0.1001]))
    assert found.tested and found.p < 1e-9


def test_one_collapsed_run_of_three_counts_with_its_value() -> None:
    other = arm({0: 0.3, 1: 0.4, 2: 0.6})
    other.loc[2, "status"] = "collapsed"
    found = paired_effect(VARYING[:3], other)
    assert found.tested and found.arm.collapsed == 1 and not found.note


@pytest.mark.parametrize("n", [0, 1])
def test_too_few_pairs_tell_nothing(n: int) -> None:
    found = paired_effect(*pair([0.5] * n), smallest_effect=0.1)
    assert (found.df, found.p, found.p_equivalent, found.p_sign_flip, found.p_floor) == (0, 1, 1, 1, 1)
    assert math.isnan(found.low) and math.isnan(found.high)
    assert math.isnan(found.mean) is (n == 0)


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        (arm({0: 1.0}).drop(columns="status"), "columns status are missing"),
        (arm({0: 1.0}).assign(status="done"), "status=done: must be one of"),
        (pd.concat([arm({0: 1.0}), arm({0: 2.0})]), "seed=0: there is more than one run"),
        (arm({0: 1.0, 1: math.inf}), "seed=1: completed without a finite value"),
    ],
)
def test_what_is_no_frame_of_outcomes_is_refused(frame: pd.DataFrame, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        paired_effect(arm({0: 1.0}), frame)
