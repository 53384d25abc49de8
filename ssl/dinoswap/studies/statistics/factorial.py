"""Main effects and two-factor interactions of a factorial, whole or fractional, balanced or not, by least squares.

    y = seed + sum of main effects + sum of two-factor interactions + noise        (columns: model_matrix.py)

Every run informs every effect: in a 2^k design the noise of runs makes a main effect uncertain by 2 sigma / sqrt(runs).
A main effect is an average over the levels of the other factors, not the effect at one corner. Effects may be others
for each seed: what they are tested against, with how many degrees of freedom, is in strata.py. The stratum of the
interactions lies below that of the main effects, so that their residual is what is left of both. Interactions of three
factors are taken to be zero. A run without a value leaves its cell empty: what this makes inestimable is said.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Unpack

import numpy as np
import numpy.typing as npt
import pandas as pd

from dinoswap.studies.statistics.estimate import Error, Estimate, MetricOptions, settled
from dinoswap.studies.statistics.model_matrix import (
    Levels,
    Model,
    Term,
    columns,
    effect_name,
    fit_model,
    indicators,
    terms_of,
)
from dinoswap.studies.statistics.outcomes import Outcomes, fisher, why_untested, with_outcome
from dinoswap.studies.statistics.power import detectable, seeds_needed
from dinoswap.studies.statistics.strata import Stratum, make_stratum

ONE_SEED = "one seed does not tell how effects vary between seeds; add one"


@dataclass(frozen=True)
class Factorial:
    """The effects of a factorial: `main` has every main effect, an inestimable one as nan, and `interactions` those
    that could be estimated.

    `aliases`: effect -> {other: weight}; the number given for `effect` is `effect + sum of weight * other`.
    """

    main: tuple[Estimate, ...]
    interactions: tuple[Estimate, ...]
    aliases: dict[str, dict[str, float]]
    inestimable: tuple[str, ...]
    sd: float  # residual, of a single run
    df: int  # of the residual


def factorial(
    outcomes: pd.DataFrame,
    cells: Mapping[str, Levels],
    factors: Mapping[str, Collection[str]],
    *,
    interactions: bool = True,
    **metric: Unpack[MetricOptions],
) -> Factorial:
    """Returns the effects over all outcomes of the cells. Raises ValueError for a bad frame, and when no run has a
    value."""
    ended = with_outcome(outcomes)
    runs = ended.dropna(subset="value")
    if not len(runs):
        raise ValueError("outcomes: no run has a value; there is nothing to estimate")
    model = seeds_and_effects(runs, cells, factors, interactions)
    y = runs["value"].to_numpy(dtype=float)
    strata = strata_of(model, runs["seed"].to_numpy())
    estimates: dict[int, tuple[float, Error]] = {}
    for stratum, terms in strata:
        means = (stratum.contrasts @ y).tolist()
        estimates |= dict(zip(terms, zip(means, stratum.errors(y), strict=True), strict=True))
    residual = strata[0][0].squares(y).residual
    inestimable = model.inestimable()
    main, crossed = [], []
    for index, term in enumerate(model.terms):
        estimated = None if index in inestimable else estimates[index]
        if len(term) == 1:
            sides = _sides(ended, cells, factors, *term[0])
            untested = why_untested(*sides)
            counts = (Outcomes.count(sides[0]), Outcomes.count(sides[1]))
            main.append(_estimate(term, estimated, runs, counts, untested, metric))
        elif estimated:
            crossed.append(_estimate(term, estimated, runs, (Outcomes(), Outcomes()), "", metric))
    names = tuple(effect_name(model.terms[index]) for index in inestimable)
    return Factorial(tuple(main), tuple(crossed), model.aliases(), names, math.sqrt(residual), strata[0][0].residual_df)


def seeds_and_effects(
    runs: pd.DataFrame, cells: Mapping[str, Levels], factors: Mapping[str, Collection[str]], interactions: bool = True
) -> Model:
    """Returns the model of runs that have a value: each seed has a level of its own, and all seeds have the same
    effects."""
    terms = terms_of(factors, interactions)
    levels = columns([cells[cell] for cell in runs["cell"]], factors, terms)
    return fit_model(indicators(runs["seed"].to_numpy()), levels, terms)


def strata_of(model: Model, seeds: npt.NDArray[np.int64]) -> list[tuple[Stratum, list[int]]]:
    """Returns the strata of runs with these seeds, that of the main effects and below it that of the interactions, each
    with the positions of its terms in the model."""
    q, r = np.linalg.qr(model.matrix)
    contrasts = np.linalg.solve(r, q.T)[model.blocks :]  # [kept, rows]
    per_seed = round(len(seeds) / len(np.unique(seeds))) - 1  # runs of a seed, less its own level
    strata = []
    for order in (1, 2):
        places = [place for place, index in enumerate(model.kept) if len(model.terms[index]) == order]
        if places:
            stratum = make_stratum(contrasts[places], seeds, q, per_seed)
            strata.append((stratum, [model.kept[place] for place in places]))
            q, per_seed = np.column_stack([q, stratum.pooled]), per_seed - len(places)
    return strata


def _estimate(
    term: Term,
    known: tuple[float, Error] | None,
    runs: pd.DataFrame,
    sides: tuple[Outcomes, Outcomes],
    untested: str,
    metric: MetricOptions,
) -> Estimate:
    """Returns the estimate of an effect. `known` holds its mean and error, None where it could not be estimated;
    `untested` says why it is not tested, if so."""
    seeds = tuple(int(seed) for seed in np.unique(runs["seed"]))
    mean, se, note = math.nan, math.nan, "the runs that have a value do not tell it from other effects"
    error = known[1] if known else None
    if known and error:
        mean, se = settled(known[0], error.se, float(runs["value"].abs().max()))
        note = "" if error.df else ONE_SEED if len(seeds) < 2 else "the runs do not tell how it varies between seeds"
        note = untested or ("the values do not vary" if error.df and math.isnan(se) else note)
    return Estimate(
        name=effect_name(term),
        mean=mean,
        se=math.nan if untested else se,
        df=error.df if error else 0,
        seeds=seeds,
        df_per_seed=error.df_per_seed if error and error.df else 1,
        reference=sides[0],
        arm=sides[1],
        failures=fisher(*sides),
        note=note,
        error=error if error and error.df else None,
        **metric,
    )


def _sides(
    ended: pd.DataFrame, cells: Mapping[str, Levels], factors: Mapping[str, Collection[str]], factor: str, level: str
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Returns the outcomes at the factor's reference level, and those at `level`."""
    levels = ended["cell"].map(lambda cell: cells[cell][factor])
    return ended[levels == next(iter(factors[factor]))], ended[levels == level]


def aliases(
    cells: Sequence[Levels], factors: Mapping[str, Collection[str]], interactions: bool = True
) -> dict[str, dict[str, float]]:
    """Returns effect -> {aliased effect: weight} of a design that is run completely."""
    return _planned(cells, factors, 1, interactions).aliases()


def detectable_effects(
    cells: Sequence[Levels],
    factors: Mapping[str, Collection[str]],
    seeds: int,
    sd: float,
    alpha: float = 0.05,
    power: float = 0.8,
    interactions: bool = True,
    seed_sd: float = 0.0,
) -> dict[str, float]:
    """Returns the smallest main effects that a design, run completely, finds with this power; inf for inestimable ones.

    `sd` is the standard deviation of the difference of two runs that share a seed, sqrt(2) times that of a run within
    its seed; `seed_sd` is that of the effects between seeds, which more cells do not average out. The test is that of
    strata.py.
    """
    one_seed_sds, count = _one_seed_sds(cells, factors, sd, seed_sd, interactions)
    return {
        name: detectable(se / math.sqrt(seeds), (seeds - 1) * count, alpha, power, own_df=seeds - 1)
        if math.isfinite(se)
        else math.inf
        for name, se in one_seed_sds.items()
    }


def seeds_for_effects(
    cells: Sequence[Levels],
    factors: Mapping[str, Collection[str]],
    sd: float,
    difference: float,
    alpha: float = 0.05,
    power: float = 0.8,
) -> int | None:
    """Returns the number of seeds at which a design, run completely, finds every main effect of this size; None where
    no number does."""
    one_seed_sds, count = _one_seed_sds(cells, factors, sd, 0.0, True)
    largest = max(one_seed_sds.values())
    if not math.isfinite(largest):
        return None
    return seeds_needed(largest, difference, alpha, power, df_per_seed=count, parameters=count)


def _one_seed_sds(
    cells: Sequence[Levels], factors: Mapping[str, Collection[str]], sd: float, seed_sd: float, interactions: bool
) -> tuple[dict[str, float], int]:
    """Returns the standard deviation of each main effect as one seed would give it, inf for inestimable ones, and the
    number of main effects that can be estimated."""
    model = _planned(cells, factors, 1, interactions)
    q, r = np.linalg.qr(model.matrix)
    lengths = np.linalg.norm(np.linalg.solve(r, q.T)[model.blocks :], axis=1)
    known = dict(zip(model.kept, np.hypot(lengths * sd / math.sqrt(2), seed_sd).tolist(), strict=True))
    inestimable = model.inestimable()
    main = [index for index, term in enumerate(model.terms) if len(term) == 1]
    by_name = {
        effect_name(model.terms[index]): math.inf if index in inestimable else float(known[index]) for index in main
    }
    return by_name, sum(index in known for index in main)


def _planned(cells: Sequence[Levels], factors: Mapping[str, Collection[str]], seeds: int, interactions: bool) -> Model:
    """Returns the model of a design of which every cell is run with so many seeds."""
    terms = terms_of(factors, interactions)
    matrix = np.tile(columns(cells, factors, terms), (seeds, 1))
    return fit_model(indicators(np.repeat(np.arange(seeds), len(cells))), matrix, terms)
