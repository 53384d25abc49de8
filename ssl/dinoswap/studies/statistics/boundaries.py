"""How large t has to be at each of several planned looks, for few seeds: the joint distribution of the t statistics.

A study that is analysed after n_1 < ... < n_K seeds may spend an error rate a on false findings up to look k, of what
the numbers of seeds are a share s = n_k / n_K of (Lan & DeMets 1983):

    obrien_fleming    a*(s) = 2 - 2 Phi(z(1 - a/2) / sqrt(s))      hardly anything early, close to the t test at the end
    pocock            a*(s) = a ln(1 + (e - 1) s)                  about the same hurdle at each look

The boundary c_k is what t_k exceeds with probability a*(s_k) - a*(s_k-1) when no boundary was reached before. Tests are
one-sided, of a tail each (Jennison & Turnbull 2000, chapters 7 and 11); two tails are two tests at half the rate.

Not the limit of many seeds, in which t is normal, but the t of each look is used. Of v degrees of freedom at n seeds,
the numerator and the residuals are a normal vector of v + 1 dimensions, whose direction is all that t depends on. A
later look adds dimensions. Given t' of the later one, with n' and v', the direction of the rest is uniform, so that

    t = sqrt(v) (sqrt(n/n') cos + sqrt(1 - n/n') sin x) / (sin sqrt((1 - x^2) b)),      t' = sqrt(v') cos / sin
    x = +- sqrt(Beta(1/2, (v' - 1)/2)),     b ~ Beta(v/2, (v' - 1 - v)/2),  independent

and t of still earlier looks depend on t alone: backwards in time they are a Markov chain that begins with Student's t.
So the chance of having come to t' without reaching a boundary is an integral over the one of the look before, on a grid
of quantiles of x and b; the tails themselves are exact. Exact for normal differences, but for the grid (under 1 %).
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.special import betaincinv, ndtr, ndtri, stdtr, stdtrit

from dinoswap.studies.looks import Spending

Array = npt.NDArray[np.float64]
LEVELS = np.logspace(-7, np.log10(0.25), 40)
"""The error rates, of one tail, for which boundaries are worked out. Between them they are interpolated."""
TAILS = np.logspace(-30, np.log10(0.5), 120)
"""Upper tail probabilities of t at which the chance of having come so far is kept, and their mirror images."""
QUANTILES = (48, 24)
"""Of x and of b."""
LEAST = 1e-300
"""In place of a probability of zero, whose logarithm is taken."""


@dataclass(frozen=True)
class Boundaries:
    """By error rate [levels] and look: the upper tail probability of Student's t at which the boundary is, what has
    been spent by then, and what has been spent since the look before."""

    nominal: Array  # [levels, looks]
    spent: Array  # [levels, looks]

    def overall(self, look: int, p: Any) -> Any:
        """Returns the smallest error rate at which t of this look reaches the boundary, `p` being its upper tail
        probability: a p-value that holds over all looks (the repeated p of Jennison & Turnbull 2000, chapter 9)."""
        return _level_of(self.nominal[:, look], p)

    def overall_any(self, look: int, p: Any) -> Any:
        """Returns the same for a p of any test, whatever it has to do with those of the other looks: the sum of the
        rates of the looks is all that is used."""
        return _level_of(np.diff(self.spent, axis=1, prepend=0.0)[:, look], p)

    def overall_after(self, looks: int, p: Any) -> Any:
        """Returns the smallest error rate of which, after this number of looks, at least `p` is left."""
        return _level_of(LEVELS - self.spent[:, looks - 1], p) if looks else p

    def nominal_at(self, look: int, level: float) -> float:
        """Returns the upper tail probability of t at the boundary of an error rate."""
        return float(np.exp(np.interp(np.log(level), np.log(LEVELS), np.log(self.nominal[:, look]))))

    def left_after(self, looks: int, level: float) -> float:
        """Returns what is left of an error rate after this number of looks."""
        share = self.spent[:, looks - 1] / LEVELS if looks else np.zeros_like(LEVELS)
        return level * (1 - float(np.interp(np.log(level), np.log(LEVELS), share)))


def _level_of(limits: Array, p: Any) -> Any:
    """Returns the error rate whose limit, which rises with it, is p: never less than p, nor than the first of LEVELS.
    Beyond the last of them it rises to 1."""
    backwards = np.maximum(limits, LEAST)[::-1]
    rising = np.minimum.accumulate(backwards)[::-1]  # what is rejected at a rate is rejected at all higher ones
    logs = np.log([*rising, 1.0]), np.log([*LEVELS, 1.0])
    return np.maximum(np.exp(np.interp(np.log(np.maximum(p, LEAST)), *logs)), p)


def spend(spending: Spending, share: Array, level: Array) -> Array:
    """Returns how much of an error rate is spent when this share of the seeds has been seen."""
    spent: Array = level * np.log1p((np.e - 1) * share)
    if spending == "obrien_fleming":
        spent = 2 * ndtr(ndtri(level / 2) / np.sqrt(share))
    return spent


@lru_cache(maxsize=64)
def boundaries(counts: tuple[int, ...], spending: Spending, pooled: int = 1) -> Boundaries:
    """Returns the boundaries of looks after these numbers of seeds. t has pooled * (n - 1) degrees of freedom at n
    seeds: 1 of paired differences, or the number of effects of which the error is pooled (strata.py)."""
    shares = np.array(counts) / counts[-1]
    spent = spend(spending, shares, LEVELS[:, None])
    increments = np.diff(spent, axis=1, prepend=0.0)
    nominal = np.empty_like(increments)
    tails = np.concatenate([TAILS, 1 - TAILS[-2::-1]])
    reached = np.ones((len(LEVELS), len(tails)))  # the chance that no boundary was reached before, given t [tails]
    for look, count in enumerate(counts):
        df = pooled * (count - 1)
        if look:
            before = pooled * (counts[look - 1] - 1)
            earlier, weights = _earlier(_t(tails, df), counts[look - 1] / count, before, df)
            place = stdtr(before, -earlier)
            limits = _t(nominal[:, look - 1], before)
            reached = np.stack(
                [(np.interp(place, tails, row) * (earlier < limit)) @ weights
                 for row, limit in zip(reached, limits, strict=True)]
            )  # fmt: skip
        nominal[:, look] = [_tail(tails, row, target) for row, target in zip(reached, increments[:, look], strict=True)]
    return Boundaries(nominal, spent)


def _t(tail: Array, df: int) -> Array:
    """Returns the t with this upper tail probability."""
    t: Array = -stdtrit(df, tail)
    return t


def _earlier(later: Array, share: float, df: int, later_df: int) -> tuple[Array, Array]:
    """Returns t of the look before, [later, cases], for each t of the later look, and the weights [cases] of the cases
    of x and b. `share` is that of the seeds."""
    rest = later_df - 1 - df
    counts = QUANTILES if rest else (QUANTILES[0] * QUANTILES[1], 1)  # without other dimensions b is 1
    of_x, of_b = ((np.arange(count) + 0.5) / count for count in counts)
    x = np.sqrt(betaincinv(0.5, (later_df - 1) / 2, of_x))
    x = np.concatenate([-x[::-1], x])[:, None]
    b = betaincinv(df / 2, rest / 2, of_b) if rest else np.ones(1)
    angle = np.arctan2(np.sqrt(later_df), later)[:, None, None]  # cos / sin = t' / sqrt(v')
    numerator = np.sqrt(share) * np.cos(angle) + np.sqrt(1 - share) * np.sin(angle) * x
    earlier = np.sqrt(df) * numerator / (np.sin(angle) * np.sqrt((1 - x**2) * b))
    cases = x.size * b.size
    return earlier.reshape(len(later), cases), np.full(cases, 1 / cases)


def _tail(tails: Array, reached: Array, target: float) -> float:
    """Returns the tail probability q such that the chance to come beyond it, and not to have reached a boundary before,
    is `target`: the integral of `reached` from 0 to q."""
    steps = np.diff(tails, prepend=0.0)
    middle = np.concatenate([reached[:1], (reached[1:] + reached[:-1]) / 2])
    total = np.cumsum(steps * middle)
    if target <= total[0]:
        return max(target, LEAST) / max(float(reached[0]), LEAST)
    with np.errstate(divide="ignore"):  # no chance at all, as where every t so small has been reached before
        return float(np.exp(np.interp(np.log(target), np.log(total), np.log(tails))))
