"""Power against published sample sizes and against simulated t tests."""

import math

import numpy as np
import pytest
from scipy import stats

from dinoswap.studies.statistics import detectable_difference, seeds_needed

TRIALS = 40_000


@pytest.mark.parametrize(("ratio", "pairs"), [(0.2, 199), (0.5, 34), (0.8, 15), (1.0, 10)])
def test_sample_sizes_are_the_published_ones(ratio: float, pairs: int) -> None:
    """Of a two-sided paired t test at .05 and 80 % (G*Power 3.1)."""
    assert seeds_needed(2.0, 2.0 * ratio) == pairs


@pytest.mark.parametrize("alpha", [0.05, 0.05 / 7])
@pytest.mark.parametrize("n", [2, 3, 5, 10])
def test_detectable_difference_is_found_four_times_of_five(n: int, alpha: float) -> None:
    """40,000 trials: the standard error of the rate is .002."""
    difference = detectable_difference(1.7, n, alpha)
    draws = np.random.default_rng(n).normal(difference, 1.7, (TRIALS, n))
    found = stats.ttest_1samp(draws, 0, axis=1).pvalue <= alpha
    assert abs(found.mean() - 0.8) < 4 * math.sqrt(0.8 * 0.2 / TRIALS)


@pytest.mark.parametrize("alpha", [0.05, 0.05 / 15])
@pytest.mark.parametrize("power", [0.5, 0.8, 0.99])
@pytest.mark.parametrize("difference", [0.05, 0.3, 1.0, 4.0, 300.0])
def test_seeds_needed_is_the_first_number_that_suffices(difference: float, power: float, alpha: float) -> None:
    n = seeds_needed(1.0, difference, alpha, power)
    assert detectable_difference(1.0, n, alpha, power) <= difference
    assert n == 2 or detectable_difference(1.0, n - 1, alpha, power) > difference


def test_edges() -> None:
    assert detectable_difference(1.0, 1) == math.inf
    assert detectable_difference(0.0, 3) == 0
    assert seeds_needed(0.0, 0.1) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((1.0, 0.0), "difference=0"),
        ((-1.0, 1.0), "sd=-1"),
        ((1.0, 1.0, 0.05, 1.0), "power=1"),
        ((1.0, 1.0, 0.0), "alpha=0"),
    ],
)
def test_what_has_no_answer_is_refused(arguments: tuple[float, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        seeds_needed(*arguments)
