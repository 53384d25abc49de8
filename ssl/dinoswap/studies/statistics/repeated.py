"""What is left of a t test when a study is looked at more than once, at planned looks or at any time.

At a planned look, p and interval are those of the boundaries (boundaries.py): repeated p-values, which may be compared
with any error rate, and so be corrected by Holm's procedure, and repeated confidence intervals (Jennison & Turnbull
2000, chapter 9). Holm over such p at each look keeps the error rate of the family (Tamhane, Xi & Gou 2021, "Group
sequential Holm and Hochberg procedures").

At any other number of seeds the likelihood ratio of t, of n seeds and v degrees of freedom, is averaged over the effect
sizes that a normal distribution with standard deviation r gives:

    M = (1 + n r^2)^(-1/2) ((1 + t^2 / v) / (1 + t^2 / (v (1 + n r^2))))^((v + 1) / 2)

Of normal differences without effect, whatever their variance, M is a martingale that begins with 1, so that 1 / M is a
p-value at all numbers of seeds together (Ville's inequality), and the differences that it does not reject are a
confidence sequence, whenever the study stops: Wang & Ramdas 2023, "Anytime-valid t-tests and confidence sequences for
Gaussian means with unknown variance", the Gaussian mixture of the scale-invariant likelihood ratio. A difference is
equivalent when M is large against both limits of what matters.

Whoever first keeps to planned looks and then leaves the plan has spent a part of the error rate; the rest is left for
M. Approximations: where failed runs leave fewer pairs, their p is taken as one of the planned number of seeds; and an
error that is the largest of three (strata.py) as the pooled one, which tools/simulate_looks.py tries.
"""

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from scipy.special import stdtr, stdtrit

from dinoswap.studies.looks import Looks
from dinoswap.studies.statistics.boundaries import Boundaries, boundaries

EFFECT_SD = 3.0
"""The r of M. At 5 % it is nearly the best for 4 to 6 seeds, and the first interval that is finite is that of 3."""


@dataclass(frozen=True)
class Look:
    """A look at an effect. Of the looks of the `plan`, `passed` came before this one and before any that was not
    planned; `planned` says whether this is the next of them."""

    plan: Looks
    passed: int
    planned: bool

    @property
    def words(self) -> str:
        if self.planned:
            return f"look {self.passed + 1} of {len(self.plan.counts)}"
        return "at any number of seeds"

    def p(self, mean: Any, se: Any, df: Any, seeds: int, pooled: int) -> Any:
        """Returns the two-sided p of a true mean of zero that holds over all looks; 1 where nothing can be said."""
        t = _ratio(np.abs(mean), se)
        if self.planned:
            tail = self._boundaries(pooled).overall(self.passed, stdtr(df, -t))
        else:
            tail = self._boundaries(pooled).overall_after(self.passed, any_time_p(t, df, seeds) / 2)
        return np.nan_to_num(np.minimum(2 * tail, 1), nan=1.0)

    def p_equivalent(self, mean: Any, se: Any, df: Any, seeds: int, pooled: int, margin: float) -> Any:
        """Returns the p of a true difference of at least `margin`, in either direction, that holds over all looks."""
        t = _ratio(margin - np.abs(mean), se)
        if self.planned:
            tail = self._boundaries(pooled).overall(self.passed, stdtr(df, -t))
        else:
            tail = self._boundaries(pooled).overall_after(self.passed, any_time_p(np.maximum(t, 0), df, seeds))
        return np.nan_to_num(tail, nan=1.0)

    def p_of_failures(self, p: float) -> float:
        """Returns what the p of an exact test becomes when it is made at each planned look; 1 at any other."""
        return min(1.0, 2 * float(self._boundaries(1).overall_any(self.passed, p / 2))) if self.planned else 1.0

    def half_width(self, se: float, df: int, seeds: int, pooled: int, confidence: float) -> float:
        """Returns half of the interval, around the mean, that holds the true difference at all looks together; infinite
        where seeds are too few."""
        limits, tail = self._boundaries(pooled), (1 - confidence) / 2
        if self.planned:
            return -float(stdtrit(df, limits.nominal_at(self.passed, tail))) * se
        return any_time_t(2 * limits.left_after(self.passed, tail), df, seeds) * se if df else math.nan

    def _boundaries(self, pooled: int) -> Boundaries:
        return boundaries(self.plan.counts, self.plan.spending, pooled)


class OperatingCharacteristics(NamedTuple):
    """What a plan does with an effect of some size: how often it is told as a difference and as equivalent, and the
    mean number of seeds until then or until the plan ends."""

    different: float
    equivalent: float
    seeds: float


def operating_characteristics(
    plan: Looks, difference: float, margin: float, level: float, studies: int = 10_000
) -> OperatingCharacteristics:
    """Returns what becomes of an arm that is compared with a reference, by simulation. `difference` and `margin`, the
    smallest effect of interest, are in standard deviations of the difference between two runs of a seed; each test has
    the error rate `level`."""
    differences = np.random.default_rng(0).normal(difference, 1, (studies, plan.counts[-1]))
    going, seeds = np.ones(studies, dtype=bool), np.zeros(studies)
    different, equivalent = np.zeros(studies, dtype=bool), np.zeros(studies, dtype=bool)
    for number, count in enumerate(plan.counts):
        seen, look = differences[:, :count], Look(plan, number, planned=True)
        at = (seen.mean(1), seen.std(1, ddof=1) / math.sqrt(count), count - 1, count, 1)
        seeds[going] = count
        equivalent |= going & (look.p_equivalent(*at, margin) <= level)
        different |= going & ~equivalent & (look.p(*at) <= level)
        going &= ~equivalent & ~different
    return OperatingCharacteristics(float(different.mean()), float(equivalent.mean()), float(seeds.mean()))


def _ratio(difference: Any, se: Any) -> Any:
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.divide(difference, se)


def any_time_p(t: Any, df: Any, seeds: int) -> Any:
    """Returns 1 / M, at most 1."""
    ratio = 1 + seeds * EFFECT_SD**2
    with np.errstate(divide="ignore", invalid="ignore"):
        likelier = np.log1p(np.square(t) / df) - np.log1p(np.square(t) / np.multiply(df, ratio))
        return np.exp(np.minimum(0.0, math.log(ratio) / 2 - np.add(df, 1) / 2 * likelier))


def any_time_t(level: float, df: int, seeds: int) -> float:
    """Returns the |t| at which 1 / M is `level`; infinite where no t is that unlikely."""
    ratio = 1 + seeds * EFFECT_SD**2
    most = (math.sqrt(ratio) / level) ** (2 / (df + 1))
    return math.sqrt(df * (most - 1) / (1 - most / ratio)) if most < ratio else math.inf
