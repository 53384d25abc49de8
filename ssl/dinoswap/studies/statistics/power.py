"""How small a difference a test can find, and how many seeds it takes: power of the t test.

    power(d) = P(|T| > t(df, 1 - alpha/2)),   T ~ noncentral t with df and noncentrality d / se

For n pairs se = sd / sqrt(n) and df = n - 1, `sd` being that of the differences. An effect of a crossed design is
tested against the larger of two mean squares (strata.py): the pooled one, with df, and its own, a part of it, with
own_df:

    power(d) = E[P(|Z + d / se| > t(df, 1 - alpha/2) max(own, pooled)^1/2)],    Z standard normal
    own = X / own_df,  pooled = (X + Y) / df,  X and Y chi-squared with own_df and df - own_df

The expectation is over a grid of the quantiles of X and Y. With own_df = df it is the noncentral t.
"""

import math
from functools import lru_cache

import numpy as np
import numpy.typing as npt
from scipy.optimize import brentq
from scipy.special import chdtri, nctdtr, ndtr, ndtri, stdtrit

GRID = 64
"""Quantiles of each mean square on the grid, with which power is exact to about .002."""


def detectable_difference(sd: float, n: int, alpha: float = 0.05, power: float = 0.8) -> float:
    """Returns the smallest difference that a paired t test at n seeds finds with this power; inf below two seeds."""
    _check(sd, alpha, power)
    return detectable(sd / math.sqrt(n), n - 1, alpha, power) if n > 1 else math.inf


def seeds_needed(
    sd: float, difference: float, alpha: float = 0.05, power: float = 0.8, *, df_per_seed: int = 1, parameters: int = 1
) -> int:
    """Returns the number of seeds at which `difference` is found with this power. `sd` is the standard deviation of the
    estimate that a single seed would give. Raises ValueError for a difference that is not positive."""
    _check(sd, alpha, power)
    if not difference > 0:
        raise ValueError(f"difference={difference}: must be positive; no number of seeds tells zero from zero")
    # What known variance would take: never more than needed, and a few seeds short of it at most
    normal = ((ndtri(1 - alpha / 2) + ndtri(power)) * sd / difference) ** 2
    n = max(math.ceil(float(normal)), parameters // df_per_seed + 1)
    while power_of(difference, sd / math.sqrt(n), df_per_seed * n - parameters, alpha, own_df=n - 1) < power:
        n += 1
    return n


def detectable(se: float, df: int, alpha: float, power: float, *, own_df: int | None = None) -> float:
    """Returns the smallest effect that an estimate with this standard error finds; inf without a degree of freedom."""
    if df < 1:
        return math.inf
    highest = 4 * (stdtrit(df, 1 - alpha / 2) + 1) / (1 - power)  # beyond what any df needs
    return float(brentq(lambda ratio: power_of(ratio, 1.0, df, alpha, own_df=own_df) - power, 0.0, highest)) * se


def power_of(difference: float, se: float, df: int, alpha: float, *, own_df: int | None = None) -> float:
    """Returns the probability that a two-sided t test at `alpha` rejects zero when `difference` is the truth. `own_df`
    are the degrees of freedom of the effect's own mean square, where the error is the larger of that and the pooled
    one."""
    if se == 0:
        return 1.0
    limit, ratio = stdtrit(df, 1 - alpha / 2), difference / se
    if own_df is not None and own_df < df:
        limits = limit * _larger_errors(own_df, df)
        return float(np.mean(ndtr(ratio - limits) + ndtr(-ratio - limits)))
    # Some probabilities far below 1e-20 come as nan
    below, above = np.nan_to_num(nctdtr(df, ratio, -limit)), np.nan_to_num(nctdtr(df, ratio, limit))
    return float(1 - above + below)


@lru_cache(maxsize=64)
def _larger_errors(own_df: int, df: int) -> npt.NDArray[np.float64]:
    """Returns the square roots of the larger of the two mean squares, whose expectation is 1, on a grid of their
    quantiles."""
    quantiles = (np.arange(GRID) + 0.5) / GRID
    own, rest = chdtri(own_df, quantiles)[:, None], chdtri(df - own_df, quantiles)
    errors: npt.NDArray[np.float64] = np.sqrt(np.maximum(own / own_df, (own + rest) / df)).ravel()
    return errors


def _check(sd: float, alpha: float, power: float) -> None:
    """Raises ValueError for a deviation, an alpha or a power out of range."""
    if not 0 <= sd < math.inf:
        raise ValueError(f"sd={sd}: must be a finite number, not negative")
    if not 0 < alpha < power < 1:
        raise ValueError(f"alpha={alpha}, power={power}: 0 < alpha < power < 1 has to hold")
