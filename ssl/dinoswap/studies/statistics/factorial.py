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
    """`main` has every main effect, an inestimable one as nan; `interactions` those that could be estimated.

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
    """Effects over all outcomes of the cells. Raises ValueError for a bad frame, and when no run has a value."""
    ended = with_outcome(outcomes)
    runs = ended.dropna(subset="value")
    if not len(runs):
        raise ValueError("outcomes: no run has a value; there is nothing to estimate")
    model = seeds_and_effects(runs, cells, factors, interactions)
    y = runs["value"].to_numpy(dtype=float)
    strata = strata_of(model, runs["seed"].to_numpy())
    known: dict[int, tuple[float, Error]] = {}
    for stratum, terms in strata:
        known |= dict(zip(terms, zip((stratum.contrasts @ y).tolist(), stratum.errors(y), strict=True), strict=True))
    residual = strata[0][0].squares(y).residual
    inestimable = model.inestimable()
    main, crossed = [], []
    for index, term in enumerate(model.terms):
        found = None if index in inestimable else known[index]
        if len(term) == 1:
            sides = _sides(ended, cells, factors, *term[0])
            why = why_untested(*sides)
            counts = (Outcomes.count(sides[0]), Outcomes.count(sides[1]))
            main.append(_estimate(term, found, runs, counts, why, metric))
        elif found:
            crossed.append(_estimate(term, found, runs, (Outcomes(), Outcomes()), "", metric))
    names = tuple(effect_name(model.terms[index]) for index in inestimable)
    return Factorial(tuple(main), tuple(crossed), model.aliases(), names, math.sqrt(residual), strata[0][0].residual_df)


def seeds_and_effects(
    runs: pd.DataFrame, cells: Mapping[str, Levels], factors: Mapping[str, Collection[str]], interactions: bool = True
) -> Model:
    """The model of runs that have a value: of each seed its level, of all seeds the same effects."""
    terms = terms_of(factors, interactions)
    levels = columns([cells[cell] for cell in runs["cell"]], factors, terms)
    return fit_model(indicators(runs["seed"].to_numpy()), levels, terms)


def strata_of(model: Model, seeds: npt.NDArray[np.int64]) -> list[tuple[Stratum, list[int]]]:
    """Of runs with these seeds: main effects, then interactions, whose stratum lies below that of the main effects;
    with the places of their terms in the model."""
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
    """`known`: mean and error; None for an effect that could not be estimated."""
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
    """The outcomes at the factor's reference level, and at `level`."""
    levels = ended["cell"].map(lambda cell: cells[cell][factor])
    return ended[levels == next(iter(factors[factor]))], ended[levels == level]


def aliases(
    cells: Sequence[Levels], factors: Mapping[str, Collection[str]], interactions: bool = True
) -> dict[str, dict[str, float]]:
    """Effect -> {other: weight} of a design that is run completely."""
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
    """The smallest main effects that a design, run completely, finds with this power; inf for inestimable ones.

    `sd`: of the difference of two runs that share a seed, sqrt(2) times that of a run within its seed. `seed_sd`: of
    the effects between seeds, which more cells do not average out. The test is that of strata.py.
    """
    of_one_seed, count = _of_one_seed(cells, factors, sd, seed_sd, interactions)
    return {
        name: detectable(se / math.sqrt(seeds), (seeds - 1) * count, alpha, power, own_df=seeds - 1)
        if math.isfinite(se)
        else math.inf
        for name, se in of_one_seed.items()
    }


def seeds_for_effects(
    cells: Sequence[Levels],
    factors: Mapping[str, Collection[str]],
    sd: float,
    difference: float,
    alpha: float = 0.05,
    power: float = 0.8,
) -> int | None:
    """Seeds at which a design, run completely, finds every main effect of this size; None where it cannot."""
    of_one_seed, count = _of_one_seed(cells, factors, sd, 0.0, True)
    largest = max(of_one_seed.values())
    if not math.isfinite(largest):
        return None
    return seeds_needed(largest, difference, alpha, power, df_per_seed=count, parameters=count)


def _of_one_seed(
    cells: Sequence[Levels], factors: Mapping[str, Collection[str]], sd: float, seed_sd: float, interactions: bool
) -> tuple[dict[str, float], int]:
    """Standard deviation of each main effect as one seed would give it, inf for inestimable ones; how many there are
    that seeds can vary in."""
    model = _planned(cells, factors, 1, interactions)
    q, r = np.linalg.qr(model.matrix)
    lengths = np.linalg.norm(np.linalg.solve(r, q.T)[model.blocks :], axis=1)
    known = dict(zip(model.kept, np.hypot(lengths * sd / math.sqrt(2), seed_sd).tolist(), strict=True))
    inestimable = model.inestimable()
    main = [index for index, term in enumerate(model.terms) if len(term) == 1]
    found = {effect_name(model.terms[i]): math.inf if i in inestimable else float(known[i]) for i in main}
    return found, sum(index in known for index in main)


def _planned(cells: Sequence[Levels], factors: Mapping[str, Collection[str]], seeds: int, interactions: bool) -> Model:
    terms = terms_of(factors, interactions)
    matrix = np.tile(columns(cells, factors, terms), (seeds, 1))
    return fit_model(indicators(np.repeat(np.arange(seeds), len(cells))), matrix, terms)
