"""The variance of runs by random stream: an ANOVA of runs in an orthogonal array.

    y = mean + an effect of each stream's seed + effects of combinations of seeds (two streams, three, ...)

is Hoeffding's decomposition (1948) of a run as a function of independent seeds: all effects are uncorrelated. No two
runs of an array of strength 2 and index 1 share more than one seed. So the effects of combinations are uncorrelated
between runs, like an error, and are the residual R; with `levels` runs of each seed, the mean square of stream k is

    E[M_k] = R + levels * V_k,        E[M_residual] = R,        variance of a run = sum of V_k + R

V_k is the first-order effect (Sobol 1993) of the stream, R what training makes of how streams meet. Of
two arms with the same seeds, the components of the sum of a pair less those of their difference are four covariances.

Intervals are generalised ones (Weerahandi 1993, "Generalized confidence intervals"): each E[M] is drawn as
df * M / chi-square(df), and what is asked for is computed from the draws. They take effects to be normal; with few
levels they are wide.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dinoswap.rng import numpy_generator
from dinoswap.studies.noise.array import Ints

Floats = NDArray[np.float64]

DRAWS = 20_000
"""Draws of an interval, which are the same in each analysis."""
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Quantity:
    """An estimate with the ends of its interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Components:
    """The variance by source: of each stream, and last of the residual. `values` [streams + 1] are unbiased, and so may
    be negative where there is none; `draws` [DRAWS, streams + 1] give their intervals."""

    values: Floats
    draws: Floats


def components(values: Floats, array: Ints, purpose: str) -> Components:
    """Returns the components of the `values` [runs] of an orthogonal array [runs, streams]. Draws are keyed by
    `purpose`."""
    squares, df = mean_squares(values, array)
    levels = int(array.max()) + 1
    drawn = np.column_stack(
        [drawn_square(square, int(of), purpose, k) for k, (square, of) in enumerate(zip(squares, df, strict=True))]
    )
    return Components(of_squares(squares, levels), of_squares(drawn, levels))


def mean_squares(values: Floats, array: Ints) -> tuple[Floats, Ints]:
    """Returns the mean squares of the `values` [runs] by stream of the array [runs, streams], that of the residual
    last, and their degrees of freedom."""
    levels, (runs, streams) = int(array.max()) + 1, array.shape
    centred = values - values.mean()
    means = np.array([[centred[column == level].mean() for level in range(levels)] for column in array.T])
    sums = levels * np.square(means).sum(axis=1)
    residual = max(float(np.square(centred).sum() - sums.sum()), 0.0)  # below 0 by rounding alone
    df = np.array([levels - 1] * streams + [runs - 1 - streams * (levels - 1)])
    return np.append(sums, residual) / df, df


def of_squares(squares: Floats, levels: int) -> Floats:
    """Returns the components of mean squares [..., streams + 1]."""
    residual = squares[..., -1:]
    return np.concatenate([(squares[..., :-1] - residual) / levels, residual], axis=-1)


def drawn_square(square: float, df: int, purpose: str, *counters: int) -> Floats:
    """Returns draws [DRAWS] of the expectation of a mean square, keyed by `purpose` and `counters`."""
    return df * square / numpy_generator(0, f"noise/{purpose}", *counters).chisquare(df, DRAWS)


def quantity(value: float, draws: Floats, least: float = -np.inf, most: float = np.inf) -> Quantity:
    """Returns an estimate with the middle CONFIDENCE of its draws, all within the range that it can have; nan where
    there is no variance."""
    low, high = np.quantile(draws, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    value, low, high = np.clip([value, low, high], least, most)
    return Quantity(float(value), float(low), float(high))
