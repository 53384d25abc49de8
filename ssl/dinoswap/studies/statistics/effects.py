"""Two arms paired by seed: the mean of the differences, with a t interval, and an exact sign-flip test beside it.

The differences hold whatever an effect varies by between seeds, so that their own spread is the error, with n - 1
degrees of freedom. It is not pooled over arms: an arm that hardly changes training has differences that hardly vary,
and a collapsing one would widen the intervals of all others.

If the arm made no difference, each of the n differences could as well have had the other sign. The share of the 2^n
choices of signs whose mean is at least as far from zero is an exact p, whatever the distribution (Fisher 1935). It
cannot be below 2 / 2^n: .25 at 3 seeds, .0625 at 5, .031 at 6. Beyond 20 seeds the choices are drawn at random.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Unpack

import numpy as np
import pandas as pd

from dinoswap.studies.statistics.estimate import Array, Estimate, MetricOptions, mean_and_error
from dinoswap.studies.statistics.outcomes import Outcomes, mcnemar, why_untested, with_outcome

EXACT_UP_TO = 20


@dataclass(frozen=True, kw_only=True)
class Effect(Estimate):
    """The effect of an arm paired with its reference by seed. `seeds` have a value on both sides, `unpaired` have an
    outcome on one side only."""

    differences: tuple[float, ...]
    unpaired: tuple[int, ...] = ()
    p_sign_flip: float = 1.0
    draws: int = 0  # of the sign-flip test; 0 when it went through all choices

    @property
    def p_floor(self) -> float:
        """The smallest p that the sign-flip test can give with as many seeds."""
        floor = min(1.0, 2.0 ** (1 - len(self.seeds)))
        return max(floor, 1 / (self.draws + 1)) if self.draws else floor


def paired_effect(
    reference: pd.DataFrame,
    arm: pd.DataFrame,
    *,
    name: str = "",
    draws: int = 100_000,
    **metric: Unpack[MetricOptions],
) -> Effect:
    """Returns the effect of `arm` against `reference`, frames of outcomes of one cell each.

    `draws` is the number of sign choices that are drawn beyond EXACT_UP_TO seeds. Raises ValueError for a frame that is
    none, an unknown status, a seed run twice, or a completed run without value.
    """
    sides = [with_outcome(frame).set_index("seed", drop=False) for frame in (reference, arm)]
    values = pd.concat([side["value"] for side in sides], axis=1, join="inner").dropna().sort_index()
    pairs = values.to_numpy(dtype=float)  # [seeds, (reference, arm)]
    differences = pairs[:, 1] - pairs[:, 0]
    p_sign_flip, drawn = sign_flip(differences, draws)
    mean, se = mean_and_error(differences, float(np.abs(pairs).max(initial=0.0)))
    note = why_untested(*sides)
    if not note and len(pairs) > 1 and math.isnan(se):
        same = "both sides have the same value in every seed"
        note = "the difference is the same in every seed, which does not tell its spread" if mean else same
    return Effect(
        name=name,
        mean=mean,
        se=math.nan if note else se,
        df=max(len(pairs) - 1, 0),
        seeds=tuple(int(seed) for seed in values.index),
        reference=Outcomes.count(sides[0]),
        arm=Outcomes.count(sides[1]),
        failures=mcnemar(*sides),
        differences=tuple(differences.tolist()),
        unpaired=tuple(int(seed) for seed in sides[0].index.symmetric_difference(sides[1].index)),
        p_sign_flip=p_sign_flip,
        draws=drawn,
        note=note,
        **metric,
    )


def sign_flip(differences: Sequence[float] | Array, draws: int = 100_000) -> tuple[float, int]:
    """Returns the two-sided p of the differences [n], and the number of draws that it is based on: 0 where all 2^n
    choices of signs were gone through."""
    values = np.asarray(differences, dtype=float)
    least = abs(values.sum()) * (1 - 1e-9)  # sums that differ by rounding only are ties
    if len(values) > EXACT_UP_TO:
        signs = np.random.default_rng(0).choice(np.array([-1.0, 1.0]), size=(draws, len(values)))
        extreme = int((np.abs(signs @ values) >= least).sum())
        return (extreme + 1) / (draws + 1), draws  # the observed signs are one of the choices
    sums = np.zeros(1)
    for value in values:
        sums = np.concatenate([sums + value, sums - value])
    return float((np.abs(sums) >= least).mean()), 0
