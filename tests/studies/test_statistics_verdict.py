"""Verdicts: Holm against the closed test, what each kind takes, and false findings in simulated A/A studies."""

import math
from dataclasses import replace
from itertools import combinations

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from dinoswap.studies.statistics import Effect, Estimate, FailureTest, Outcomes, family, holm, paired_effect
from dinoswap.studies.statistics.effects import sign_flip
from dinoswap.studies.statistics.estimate import equivalence_test, mean_and_error, t_interval, t_test
from dinoswap.studies.statistics.outcomes import mcnemar_counts

FINDINGS = ("better", "worse", "better because fewer runs fail", "worse because more runs fail")


def effect(differences: "list[float] | np.ndarray", **fields: object) -> Effect:
    values = np.asarray(differences, dtype=float)
    mean, se = mean_and_error(values, 1.0)
    seeds = tuple(range(len(values)))
    flip, draws = sign_flip(values)
    return replace(
        Effect(name="", mean=mean, se=se, df=max(len(values) - 1, 0), seeds=seeds, differences=tuple(values.tolist()),
               p_sign_flip=flip, draws=draws), **fields)  # fmt: skip


def allowed(rate: float, trials: int) -> float:
    """Highest share of `trials` that a true rate explains, at three standard errors."""
    return rate + 3 * math.sqrt(rate * (1 - rate) / trials)


# --- simulations ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [3, 5, 10])
def test_intervals_cover_at_their_nominal_rate(n: int) -> None:
    """40,000 trials of normal differences: the standard error of the rate is .0011."""
    draws = np.random.default_rng(n).normal(0.3, 2, (40_000, n))
    low, high = t_interval(draws.mean(1), draws.std(1, ddof=1) / math.sqrt(n), n - 1, 0.95)
    assert abs(((low <= 0.3) & (high >= 0.3)).mean() - 0.95) < 0.0044


@pytest.mark.parametrize("n", [3, 5, 10])
@pytest.mark.parametrize("arms", [1, 7])
def test_the_same_arm_again_is_no_finding(arms: int, n: int) -> None:
    """A/A studies, 1,500 of each size, with one reference for all arms: a finding in at most 5 %."""
    rng, found, trials = np.random.default_rng(n), 0, 1_500
    for values in rng.normal(50, 1, (trials, arms + 1, n)):
        decisions = family([effect(values[i] - values[0]) for i in range(1, arms + 1)])
        found += any(decision.kind in FINDINGS for decision in decisions)
    assert found / trials <= allowed(0.05, trials)
    assert found > 0


METRICS = {
    "uniform": lambda rng, size: rng.uniform(size=size),
    "exponential": lambda rng, size: rng.exponential(size=size),
    "coarse": lambda rng, size: np.round(3 * rng.normal(size=size)),
    "collapsing": lambda rng, size: rng.normal(size=size) - 30 * (rng.random(size) < 0.05),
}


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("arms", [1, 7])
def test_the_same_arm_again_is_hardly_a_finding_when_the_metric_is_not_normal(arms: int, metric: str) -> None:
    """20,000 A/A studies of 3 seeds: at most 5.5 %. Holm's first step decides whether there is any finding."""
    values = METRICS[metric](np.random.default_rng(0), (20_000, arms + 1, 3))
    differences = values[:, 1:] - values[:, :1]
    means, deviations = differences.mean(2), differences.std(2, ddof=1)
    errors = np.where((deviations < 1e-12) & (means != 0), math.nan, deviations / math.sqrt(3))
    found = t_test(means, errors, 2).min(1) * arms <= 0.05
    assert found.mean() <= allowed(0.055, 20_000)


@pytest.mark.parametrize("rate", [0.1, 0.5])
def test_the_same_arm_again_is_no_finding_when_runs_diverge(rate: float) -> None:
    """3,000 A/A pairs of 14 seeds in which every run diverges at this rate."""
    rng, found, trials = np.random.default_rng(0), 0, 3_000
    for values in rng.normal(50, 1, (trials, 14, 2)):
        lost = rng.random((14, 2)) < rate
        test = mcnemar_counts(int((lost[:, 0] > lost[:, 1]).sum()), int((lost[:, 1] > lost[:, 0]).sum()), 14)
        survivors = values[~lost.any(1)]
        found += family([effect(survivors[:, 1] - survivors[:, 0], failures=test)])[0].kind in FINDINGS
    assert 0 < found / trials <= allowed(0.05, trials)


@pytest.mark.parametrize("sd", [0.1, 1.0])
@pytest.mark.parametrize("n", [3, 5, 10])
def test_equivalence_is_claimed_wrongly_at_most_one_time_in_twenty(n: int, sd: float) -> None:
    """40,000 trials whose true difference is the smallest effect of interest itself."""
    draws = np.random.default_rng(n).normal(-0.5, sd, (40_000, n))
    p = equivalence_test(draws.mean(1), draws.std(1, ddof=1) / math.sqrt(n), n - 1, 0.5)
    assert (p <= 0.05).mean() <= allowed(0.05, 40_000)
    assert sd > 0.1 or (p <= 0.05).mean() > 0.045  # where the margin is wide, the whole 5 % are used


# --- verdicts ---------------------------------------------------------------------------------------------------------


def test_holm_is_the_closed_bonferroni_test() -> None:
    p = np.random.default_rng(0).random(6) ** 3
    subsets = [s for size in range(1, 7) for s in combinations(range(6), size)]
    expected = [max(min(1.0, len(s) * min(p[list(s)])) for s in subsets if i in s) for i in range(6)]
    assert holm(p) == pytest.approx(expected)
    assert holm([]) == []


NOISE = np.array([-0.1, 0.0, 0.1])


@pytest.mark.parametrize(
    ("differences", "kind"),
    [
        (2 + NOISE, "better"),
        (-2 + NOISE, "worse"),
        (0.01 + NOISE, "equivalent"),
        (0.3 + NOISE / 10, "equivalent"),  # real, but smaller than what matters
        (0.6 + 5 * NOISE, "not distinguishable"),
        ([0.5, 0.5, 0.5], "not tested"),
        ([1.0], "no estimate"),
    ],
)
@pytest.mark.parametrize("higher_is_better", [True, False])
def test_kinds(differences: list[float], kind: str, higher_is_better: bool) -> None:
    (decision,) = family([effect(differences, smallest_effect=0.5, higher_is_better=higher_is_better)])
    swapped = {"better": "worse", "worse": "better"}
    assert decision.kind == (kind if higher_is_better else swapped.get(kind, kind))
    assert decision.words.startswith(f"{decision.kind}: ")


def test_three_seeds_can_have_a_finding_among_seven_arms() -> None:
    """The reason why Holm does not run over the sign-flip p, of which none is below .25."""
    arms = [effect(10 + NOISE)] + [effect(offset + 5 * NOISE) for offset in (0.1, -0.1, 0.2, 0.0, 0.3, -0.2)]
    decisions = family(arms)
    assert [decision.kind for decision in decisions] == ["better"] + ["not distinguishable"] * 6
    assert decisions[0].p_adjusted == pytest.approx(7 * arms[0].p)
    assert min(holm([arm.p_sign_flip for arm in arms])) == 1


def test_what_is_not_distinguishable_says_how_many_seeds_would_do() -> None:
    """Two arms of the family share alpha; 34 pairs for half a deviation at .05 (G*Power), more at .025."""
    seen = effect([-1.0, 0.0, 2.0], smallest_effect=0.5)
    alone, shared = family([seen])[0], family([seen, seen])[0]
    wanted = effect(np.array([-1.0, 0.0, 1.0]), smallest_effect=0.5)
    assert family([wanted])[0].seeds_for_smallest == 34
    assert family([wanted])[0].seeds_for_seen is None  # nothing was seen
    assert f"about {alone.seeds_for_smallest} seeds to find the smallest" in alone.words
    assert f"{alone.seeds_for_seen} seeds to find one as large as seen" in alone.words
    assert shared.seeds_for_smallest > alone.seeds_for_smallest > 34
    assert "after Holm over 2" in shared.words


# --- failures ---------------------------------------------------------------------------------------------------------


def runs(*values: float | str) -> pd.DataFrame:
    return pd.DataFrame(
        [
            (s, v if isinstance(v, str) else "completed", math.nan if isinstance(v, str) else v)
            for s, v in enumerate(values)
        ],
        columns=["seed", "status", "value"],
    )


def test_more_failures_than_chance_decide_whatever_the_survivors_say() -> None:
    reference = runs(*(50 + 0.1 * i for i in range(9)))
    arm = runs(*(60.0, 61.5), *["diverged"] * 7)
    for first, second, kind in (
        (reference, arm, "worse because more runs fail"),
        (arm, reference, "better because fewer runs fail"),
    ):
        (decision,) = family([paired_effect(first, second)])
        assert decision.kind == kind
        assert decision.p_failures_adjusted == pytest.approx(2 * 2 / 2**7)
        assert "7 diverged of 9" in decision.words


def test_failures_that_could_not_be_told_from_chance_are_named_and_cost_nothing() -> None:
    """Two of three runs lost: a McNemar p of .5 at best, so it does not join the family."""
    lost = FailureTest(p=0.5, floor=0.5, excess=2 / 3)
    arms = [effect(2 + NOISE), effect(NOISE, arm=Outcomes(runs=3, diverged=2), reference=Outcomes(3), failures=lost)]
    decisions = family(arms)
    assert decisions[0].p_adjusted == pytest.approx(2 * arms[0].p)
    assert decisions[1].kind == "not distinguishable"
    assert "2 diverged of 3, reference 0 of 3 (exact p = 0.5, smallest possible 0.5)" in decisions[1].words


def test_failures_that_could_be_told_from_chance_share_the_alpha() -> None:
    lost = FailureTest(p=0.2, floor=0.01, excess=0.5)
    arms = [effect(2 + NOISE), effect(NOISE, failures=lost)]
    assert family(arms)[0].p_adjusted == pytest.approx(3 * arms[0].p)


def test_an_arm_without_a_value_fails() -> None:
    reference, dead = runs(50.0, 51.0, 52.0), runs("diverged", "diverged", "failed")
    (decision,) = family([paired_effect(reference, dead, smallest_effect=1.0)])
    assert decision.kind == "fails"
    assert decision.words == (
        "fails: no run has a value; runs that fail: 2 diverged and 1 failed of 3, reference 0 of 3 "
        "(exact p = 0.25, smallest possible 0.25)"
    )
    assert decision.seeds_for_smallest is None
    assert family([paired_effect(dead, reference)])[0].kind == "no estimate"


def test_estimates_that_are_no_pairs_have_verdicts_too() -> None:
    """16 cells with 3 seeds: 15 degrees of freedom come with each seed, and 14 effects take theirs."""
    estimate = Estimate(name="", mean=0.4, se=0.2, df=31, seeds=(0, 1, 2), df_per_seed=15, smallest_effect=0.4)
    (decision,) = family([estimate])
    assert decision.kind == "not distinguishable"
    n = decision.seeds_for_smallest
    assert n == decision.seeds_for_seen
    power = {
        seeds: stats.nct.sf(stats.t.ppf(0.975, 15 * seeds - 14), 15 * seeds - 14, 0.4 / (0.2 * math.sqrt(3 / seeds)))
        for seeds in (n - 1, n)
    }
    assert power[n - 1] < 0.8 <= power[n]
