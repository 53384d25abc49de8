"""A difference with its standard error, and what Student's t makes of it: interval, test of zero, equivalence.

    interval      mean +- t(df, confidence) * se
    p             2 P(T_df > |mean| / se)
    p_equivalent  P(T_df < (|mean| - margin) / se), the larger p of the two one-sided tests (TOST, Schuirmann 1987)

The functions broadcast over numpy arrays. Exact for normal differences.
"""

import math
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, TypedDict

import numpy as np
import numpy.typing as npt
from scipy.special import stdtr, stdtrit

from dinoswap.studies.statistics.outcomes import ROUNDING, FailureTest, Outcomes
from dinoswap.studies.statistics.repeated import Look

Array = npt.NDArray[np.float64]


def t_interval(mean: Any, se: Any, df: Any, confidence: float) -> tuple[Any, Any]:
    """Returns the lower and upper limit of the t interval of a mean."""
    half = stdtrit(df, 0.5 + confidence / 2) * se
    return mean - half, mean + half


def t_test(mean: Any, se: Any, df: Any) -> Any:
    """Returns the two-sided p of a true mean of zero, 1 where nothing can be said: se is nan, or both are 0."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.nan_to_num(2 * stdtr(df, -np.abs(np.divide(mean, se))), nan=1.0)


def equivalence_test(mean: Any, se: Any, df: Any, margin: float) -> Any:
    """Returns the p of a true difference of at least `margin` in either direction, 1 where nothing can be said."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.nan_to_num(stdtr(df, np.divide(np.abs(mean) - margin, se)), nan=1.0)


def settled(mean: float, se: float, scale: float) -> tuple[float, float]:
    """Returns `mean` and `se` of values of size `scale`, with what is zero but for rounding set to zero, or nan for
    `se`.

    Differences that are all the same, be they zero, do not tell their spread, and nothing is tested on it: se is nan.
    Otherwise collapsed networks, which all score the same, would be equivalent with certainty.
    """
    if not se <= ROUNDING * scale:
        return mean, se
    return (0.0 if abs(mean) <= ROUNDING * scale else mean), math.nan


def mean_and_error(values: Array, scale: float) -> tuple[float, float]:
    """Returns the mean of values [n] and its standard error, nan where n is too small. `scale` is the size of the
    outcomes that the values come from."""
    if len(values) < 2:
        return (float(values[0]) if len(values) else math.nan), math.nan
    return settled(float(values.mean()), float(values.std(ddof=1)) / math.sqrt(len(values)), scale)


Source = Literal["own", "stratum", "residual"]


@dataclass(frozen=True)
class MeanSquare:
    value: float
    df: int


@dataclass(frozen=True)
class Error:
    """The error that an effect of a crossed design is tested against, the largest of three mean squares (strata.py).
    `se` is the standard error of the effect's mean over the seeds; another seed adds `df_per_seed` degrees of
    freedom."""

    se: float
    df: int
    df_per_seed: int
    source: Source
    own: MeanSquare
    stratum: MeanSquare
    residual: MeanSquare

    @property
    def words(self) -> str:
        """What the effect is tested against, in words."""
        named = {
            "own": "seed x this effect, larger than what is pooled",
            "stratum": "seed x effect, pooled",
            "residual": "the residual, larger than seed x effect",
        }
        return f"{named[self.source]} ({self.df} df)"


class Lasting(NamedTuple):
    p: float
    p_equivalent: float
    low: float
    high: float


class MetricOptions(TypedDict, total=False):
    """Options of every analysis of a metric, with the defaults of Estimate."""

    smallest_effect: float | None  # of interest, in the metric's units; without one nothing is called equivalent
    higher_is_better: bool
    confidence: float  # of the intervals


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A difference, arm less reference, in the metric's units.

    `mean` is nan where it cannot be estimated, and `se` where it is not tested; `note` says why. `error` is what an
    effect of a crossed design is tested against. `low`, `high` and the p are those of one analysis; `lasting` has those
    of a study that is looked at more than once, with a `look`.
    """

    name: str
    mean: float
    se: float
    df: int
    seeds: tuple[int, ...]
    df_per_seed: int = 1  # how many degrees of freedom another seed adds
    smallest_effect: float | None = None
    higher_is_better: bool = True
    confidence: float = 0.95
    reference: Outcomes = field(default_factory=Outcomes)
    arm: Outcomes = field(default_factory=Outcomes)
    failures: FailureTest = field(default_factory=FailureTest)
    note: str = ""
    error: Error | None = None
    look: Look | None = None

    @property
    def tested(self) -> bool:
        """Whether the estimate has an error to be tested against."""
        return self.df > 0 and math.isfinite(self.se)

    @property
    def low(self) -> float:
        """The lower end of the confidence interval."""
        return float(t_interval(self.mean, self.se, self.df, self.confidence)[0])

    @property
    def high(self) -> float:
        """The upper end of the confidence interval."""
        return float(t_interval(self.mean, self.se, self.df, self.confidence)[1])

    @property
    def p(self) -> float:
        """The two-sided p of the t test against zero."""
        return float(t_test(self.mean, self.se, self.df))

    @property
    def p_equivalent(self) -> float:
        """The p of the equivalence test (TOST), 1 without a smallest effect of interest."""
        if self.smallest_effect is None:
            return 1.0
        return float(equivalence_test(self.mean, self.se, self.df, self.smallest_effect))

    @property
    def lasting(self) -> Lasting:
        """The p and the interval that hold however often the study has been looked at: those of one analysis without a
        `look`."""
        if self.look is None:
            return Lasting(self.p, self.p_equivalent, self.low, self.high)
        at = (self.se, self.df, len(self.seeds), self.pooled)
        margin = self.smallest_effect
        p_equivalent = 1.0 if margin is None else float(self.look.p_equivalent(self.mean, *at, margin))
        half = self.look.half_width(*at, self.confidence)
        return Lasting(float(self.look.p(self.mean, *at)), p_equivalent, self.mean - half, self.mean + half)

    @property
    def pooled(self) -> int:
        """Of how many effects the error is pooled: 1 of one that is tested against its own spread."""
        return max(1, round(self.error.stratum.df / max(len(self.seeds) - 1, 1))) if self.error else 1

    @property
    def sd(self) -> float:
        """The standard deviation of the estimate that a single seed would give."""
        return self.se * math.sqrt(len(self.seeds))
