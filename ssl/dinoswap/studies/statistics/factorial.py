"""Main effects and two-factor interactions of a factorial, whole or fractional, balanced or not, by least squares.

    y = seed + sum of main effects + sum of two-factor interactions + noise        (columns: model_matrix.py)

Every run informs every effect, so that in a 2^k design the standard error of a main effect is 2 sigma / sqrt(runs). A
main effect is an average over the levels of the other factors, not the effect at one corner. Intervals are by Student's
t with the residual degrees of freedom; they take an effect to be the same for every seed, up to the noise. Interactions
of three factors are taken to be zero. A run without a value leaves its cell empty: what this makes inestimable is said.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Unpack

import numpy as np
import pandas as pd

from dinoswap.studies.statistics.estimate import Array, Estimate, MetricOptions, settled
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
from dinoswap.studies.statistics.outcomes import Outcomes, fisher, with_outcome
from dinoswap.studies.statistics.power import detectable


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
    df: int


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
    terms = terms_of(factors, interactions)
    levels = columns([cells[cell] for cell in runs["cell"]], factors, terms)
    model = fit_model(indicators(runs["seed"].to_numpy()), levels, terms)
    means, errors, df, sd = least_squares(model.matrix, runs["value"].to_numpy(dtype=float))
    numbers = dict(zip(model.kept, zip(means[model.blocks :], errors[model.blocks :], strict=True), strict=True))
    inestimable = model.inestimable()
    main, crossed = [], []
    for index, term in enumerate(terms):
        known = numbers[index] if index not in inestimable else None
        if len(term) == 1:
            main.append(_estimate(term, known, df, runs, _sides(ended, cells, factors, *term[0]), metric))
        elif known:
            crossed.append(_estimate(term, known, df, runs, (Outcomes(), Outcomes()), metric))
    names = tuple(effect_name(terms[index]) for index in inestimable)
    return Factorial(tuple(main), tuple(crossed), model.aliases(), names, float(sd), df)


def _estimate(
    term: Term,
    known: tuple[float, float] | None,
    df: int,
    runs: pd.DataFrame,
    sides: tuple[Outcomes, Outcomes],
    metric: MetricOptions,
) -> Estimate:
    """`known`: mean and standard error; None for an effect that could not be estimated."""
    mean, se, note = math.nan, math.nan, "the runs that have a value do not tell it from other effects"
    if known:
        mean, se = settled(float(known[0]), float(known[1]), float(runs["value"].abs().max()))
        note = "" if df else "nothing is left to tell the noise by; add a seed"
    return Estimate(
        name=effect_name(term),
        mean=mean,
        se=se,
        df=df if known else 0,
        seeds=tuple(int(seed) for seed in np.unique(runs["seed"])),
        df_per_seed=runs["cell"].nunique() - 1,
        reference=sides[0],
        arm=sides[1],
        failures=fisher(*sides),
        note=note,
        **metric,
    )


def _sides(
    ended: pd.DataFrame, cells: Mapping[str, Levels], factors: Mapping[str, Collection[str]], factor: str, level: str
) -> tuple[Outcomes, Outcomes]:
    """How the runs ended at the factor's reference level, and at `level`."""
    levels = ended["cell"].map(lambda cell: cells[cell][factor])
    reference = next(iter(factors[factor]))
    return Outcomes.count(ended[levels == reference]), Outcomes.count(ended[levels == level])


def least_squares(matrix: Array, y: Array) -> tuple[Array, Array, int, Array]:
    """Coefficients and standard errors [columns, ...] of y [rows, ...] on a matrix [rows, columns] of full rank, the
    residual degrees of freedom and the residual standard deviation [...]; nan without a degree of freedom."""
    q, r = np.linalg.qr(matrix)
    coefficients = np.linalg.solve(r, q.T @ y)
    df = matrix.shape[0] - matrix.shape[1]
    squares = np.square(y - matrix @ coefficients).sum(0)
    sd = np.sqrt(squares / df) if df else np.full_like(squares, math.nan)
    return coefficients, np.multiply.outer(np.linalg.norm(np.linalg.inv(r), axis=1), sd), df, sd


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
) -> dict[str, float]:
    """The smallest main effects that a design, run completely, finds with this power; inf for inestimable ones.

    `sd`: of the difference of two runs that share a seed, sqrt(2) times that of a run within its seed.
    """
    model = _planned(cells, factors, seeds, interactions)
    df = model.matrix.shape[0] - model.matrix.shape[1]
    errors = np.linalg.norm(np.linalg.inv(np.linalg.qr(model.matrix)[1]), axis=1) * sd / math.sqrt(2)
    known = dict(zip(model.kept, errors[model.blocks :], strict=True))
    inestimable = model.inestimable()
    return {
        effect_name(term): math.inf if index in inestimable else detectable(float(known[index]), df, alpha, power)
        for index, term in enumerate(model.terms)
        if len(term) == 1
    }


def _planned(cells: Sequence[Levels], factors: Mapping[str, Collection[str]], seeds: int, interactions: bool) -> Model:
    terms = terms_of(factors, interactions)
    matrix = np.tile(columns(cells, factors, terms), (seeds, 1))
    return fit_model(indicators(np.repeat(np.arange(seeds), len(cells))), matrix, terms)
