"""How small a difference a test can find, and how many seeds it takes: power of the t test, by the noncentral t.

    power(d) = P(|T| > t(df, 1 - alpha/2)),   T ~ noncentral t with df and noncentrality d / se

For n pairs se = sd / sqrt(n) and df = n - 1, `sd` being that of the differences. A design of C cells that are run with
each seed has n (C - 1) - p degrees of freedom for p effects, of which a pair (C = 2, p = 1) is the smallest case.
"""

import math

import numpy as np
from scipy.optimize import brentq
from scipy.special import nctdtr, ndtri, stdtrit


def detectable_difference(sd: float, n: int, alpha: float = 0.05, power: float = 0.8) -> float:
    """The smallest difference that a paired t test at n seeds finds with this power; inf below two seeds."""
    _check(sd, alpha, power)
    return detectable(sd / math.sqrt(n), n - 1, alpha, power) if n > 1 else math.inf


def seeds_needed(
    sd: float, difference: float, alpha: float = 0.05, power: float = 0.8, *, df_per_seed: int = 1, parameters: int = 1
) -> int:
    """Seeds at which `difference` is found with this power. `sd`: of the estimate that a single seed would give."""
    _check(sd, alpha, power)
    if not difference > 0:
        raise ValueError(f"difference={difference}: must be positive; no number of seeds tells zero from zero")
    # What known variance would take: never more than needed, and a few seeds short of it at most
    normal = ((ndtri(1 - alpha / 2) + ndtri(power)) * sd / difference) ** 2
    n = max(math.ceil(float(normal)), parameters // df_per_seed + 1)
    while power_of(difference, sd / math.sqrt(n), df_per_seed * n - parameters, alpha) < power:
        n += 1
    return n


def detectable(se: float, df: int, alpha: float, power: float) -> float:
    """The smallest effect that an estimate with this standard error finds; inf without a degree of freedom."""
    if df < 1:
        return math.inf
    highest = 2 * (stdtrit(df, 1 - alpha / 2) + 1) / (1 - power)  # beyond what any df needs
    return float(brentq(lambda ratio: power_of(ratio, 1.0, df, alpha) - power, 0.0, highest)) * se


def power_of(difference: float, se: float, df: int, alpha: float) -> float:
    """Chance that a two-sided t test at `alpha` rejects zero when `difference` is the truth."""
    if se == 0:
        return 1.0
    limit, ratio = stdtrit(df, 1 - alpha / 2), difference / se
    # Some probabilities far below 1e-20 come as nan
    below, above = np.nan_to_num(nctdtr(df, ratio, -limit)), np.nan_to_num(nctdtr(df, ratio, limit))
    return float(1 - above + below)


def _check(sd: float, alpha: float, power: float) -> None:
    if not 0 <= sd < math.inf:
        raise ValueError(f"sd={sd}: must be a finite number, not negative")
    if not 0 < alpha < power < 1:
        raise ValueError(f"alpha={alpha}, power={power}: 0 < alpha < power < 1 has to hold")
