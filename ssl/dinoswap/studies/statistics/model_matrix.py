"""The linear model of a design: seeds as blocks, main effects, two-factor interactions; and what is aliased with what.

A main effect has a column per level but the first: the indicator of the level less 1 / (number of levels). An
interaction has the products of those columns. So the coefficient of a main effect is `level - reference`, averaged
evenly over the levels of the other factors, and that of an interaction is how much the effect of one changes when the
other is switched.

Columns enter in that order as long as each raises the rank. One that does not is a combination of those before it: it
cannot be estimated, and what is estimated in its place is aliased with it:

    E[estimate of i] = effect_i + sum_j weight_ij effect_j      over the columns j that were left out

(the alias matrix of Box and Wilson). Nothing is looked up: any set of cells has its aliases, however it came about.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import numpy.typing as npt

from dinoswap.studies.statistics.estimate import Array

Levels = Mapping[str, str]
Term = tuple[tuple[str, str], ...]  # ((factor, level),), or two of them for an interaction

DEPENDENT = 1e-8
"""What is left of a column after projecting it on others, relative to its length, when it is a combination of them."""


def effect_name(term: Term) -> str:
    """Returns a term in words: its levels, joined by *."""
    return " * ".join(f"{factor}={level}" for factor, level in term)


def terms_of(factors: Mapping[str, Collection[str]], interactions: bool) -> list[Term]:
    """Returns the terms of the main effects and then of the two-factor interactions, in the order of the factors."""
    main = [(factor, level) for factor, levels in factors.items() for level in list(levels)[1:]]
    pairs = [pair for pair in combinations(main, 2) if pair[0][0] != pair[1][0]] if interactions else []
    return [*((effect,) for effect in main), *pairs]


def columns(rows: Sequence[Levels], factors: Mapping[str, Collection[str]], terms: Sequence[Term]) -> Array:
    """Returns the model columns [rows, terms]. Raises ValueError for a row that lacks a factor or has a level that the
    factor has not."""
    for row in rows:
        for factor, levels in factors.items():
            if row.get(factor) not in levels:
                raise ValueError(f"{factor}={row.get(factor)}: each cell needs one of the levels {', '.join(levels)}")
    main = {
        (factor, level): np.array([row[factor] == level for row in rows]) - 1 / len(levels)
        for factor, levels in factors.items()
        for level in levels
    }
    return np.column_stack([np.prod([main[part] for part in term], axis=0) for term in terms])


def indicators(blocks: npt.ArrayLike) -> Array:
    """Returns the indicators [rows, blocks], a column per block."""
    columns: Array = (np.asarray(blocks)[:, None] == np.unique(blocks)).astype(float)
    return columns


@dataclass(frozen=True)
class Model:
    """The linear model of a set of runs. `kept` and `dropped` index `terms`; `weights` [kept, dropped] is the alias
    matrix."""

    terms: list[Term]
    matrix: Array  # [rows, blocks + kept]
    kept: list[int]
    dropped: list[int]
    weights: Array

    @property
    def blocks(self) -> int:
        """The number of columns of blocks, which come first."""
        return int(self.matrix.shape[1]) - len(self.kept)

    def aliases(self) -> dict[str, dict[str, float]]:
        """Returns effect -> {aliased effect: weight}, for the effects that have aliases."""
        names = [effect_name(term) for term in self.terms]
        by_effect: dict[str, dict[str, float]] = {}
        for row, column in np.argwhere(self.weights):
            others = by_effect.setdefault(names[self.kept[row]], {})
            others[names[self.dropped[column]]] = round(float(self.weights[row, column]), 9)
        return by_effect

    def inestimable(self) -> list[int]:
        """Returns the terms that were left out, and the main effects that cannot be told from a main effect that
        was."""
        main = [len(self.terms[index]) == 1 for index in self.dropped]
        mixed = [index for index, row in zip(self.kept, self.weights[:, main], strict=True) if row.any()]
        return sorted({*self.dropped, *(index for index in mixed if len(self.terms[index]) == 1)})


def fit_model(blocks: Array, candidates: Array, terms: list[Term]) -> Model:
    """Returns the model of the block columns [rows, b] and of those columns [rows, terms] of the terms that raise the
    rank, taken in turn."""
    basis = np.linalg.qr(blocks)[0]
    kept, dropped = [], []
    for index, column in enumerate(candidates.T):
        rest = column - basis @ (basis.T @ column)
        if np.linalg.norm(rest) > DEPENDENT * np.linalg.norm(column):
            kept.append(index)
            basis = np.column_stack([basis, rest / np.linalg.norm(rest)])
        else:
            dropped.append(index)
    matrix = np.column_stack([blocks, candidates[:, kept]])
    weights = np.linalg.lstsq(matrix, candidates[:, dropped], rcond=None)[0][blocks.shape[1] :]
    return Model(terms, matrix, kept, dropped, np.where(np.abs(weights) > DEPENDENT, weights, 0.0))
