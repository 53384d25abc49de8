"""The error that an effect is tested against: how much it varies between seeds, and never less than the residual.

The runs of a seed share data order, crops and initial weights, so that a seed is a block, and an effect may itself be
another one for each seed. Then more cells do not make its mean over seeds more certain, only more seeds do, and the
error is not what the runs scatter around a model that gives all seeds the same effect. Of outcomes y and contrasts w,
where effect i is w_i . y, these are the mean squares, in units of a single run's variance:

    own        seed x effect i                                               n - 1 degrees of freedom
    stratum    seed x effect, pooled over all effects of the kind            k (n - 1), of k effects and n seeds
    residual   of the model that gives all seeds the same effects            all that are left

    se_i^2 = |w_i|^2 max(own, stratum, residual),    t with the degrees of freedom of the larger of the last two

The stratum is the classical error of factors that are crossed with blocks. It takes the effects of a kind to vary
alike. One that varies more than the others would be found too often, which its own mean square guards against; by
itself that has so few degrees of freedom that hardly anything would be found. tools/simulate_verdicts.py compares the
choices (results/reference/verdicts).

A mean square is the squared length of the outcomes in a space, that of the columns `seed x effect` beyond the fitted
model, over its dimension: exact for any set of runs, complete or not, where effects do not vary.
"""

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from dinoswap.studies.statistics.estimate import Array, Error, MeanSquare, Source
from dinoswap.studies.statistics.model_matrix import DEPENDENT


@dataclass(frozen=True)
class Squares:
    """The mean squares of outcomes [rows, ...]: own [k, ...], stratum [...], residual [...]; nan where a space has no
    dimension."""

    own: Array
    stratum: Array
    residual: Array


@dataclass(frozen=True)
class Stratum:
    """The effects of one kind in a design, and where their error is found, before there are outcomes."""

    contrasts: Array  # [k, rows]
    own: tuple[Array, ...]  # of each effect an orthonormal basis [rows, n - 1]
    pooled: Array  # [rows, k (n - 1)]
    model: Array  # [rows, rank], an orthonormal basis of what the residual is left over from
    seeds: int
    residual_per_seed: int  # degrees of freedom that another seed adds to the residual

    def squares(self, y: Array) -> Squares:
        """Returns the mean squares of outcomes y [rows, ...]."""
        own = np.stack([mean_square(basis, y) for basis in self.own])
        residuals = y - self.model @ (self.model.T @ y)
        df = self.residual_df
        residual = np.square(residuals).sum(0) / df if df else np.full(y.shape[1:], math.nan)
        return Squares(own, mean_square(self.pooled, y), residual)

    def largest(self, squares: Squares) -> tuple[Array, Array]:
        """Returns the mean square that each effect is tested against and its degrees of freedom, both [k, ...]; nan and
        0 where there is no error: with one seed, or where the runs of the seeds do not tell their own effects."""
        left_over = squares.residual > squares.stratum  # False where one is nan
        pooled = np.where(left_over, squares.residual, squares.stratum)
        df = np.where(left_over, self.residual_df, self.pooled.shape[1])
        known = np.array(self.known).reshape(-1, *[1] * pooled.ndim)
        return np.where(known, np.maximum(squares.own, pooled), math.nan), np.where(known, df, 0)

    def errors(self, y: Array) -> list[Error]:
        """Returns the error of each effect for outcomes y [rows]."""
        squares = self.squares(y)
        values, dfs = self.largest(squares)
        stratum = MeanSquare(float(squares.stratum), self.pooled.shape[1])
        residual = MeanSquare(float(squares.residual), self.residual_df)
        errors = []
        for index, length in enumerate(self.lengths):
            own, df = MeanSquare(float(squares.own[index]), self.own[index].shape[1]), int(dfs[index])
            source: Source = "residual" if residual.value > stratum.value else "stratum"
            per_seed = self.residual_per_seed if source == "residual" else round(df / max(self.seeds - 1, 1))
            source = "own" if own.value > max(stratum.value, residual.value if residual.df else 0.0) else source
            se = float(length) * math.sqrt(float(values[index]))
            errors.append(Error(se, df, max(per_seed, 1), source, own, stratum, residual))
        return errors

    @cached_property
    def lengths(self) -> Array:
        """The standard error [k] of each effect, per unit of a run's standard deviation."""
        lengths: Array = np.linalg.norm(self.contrasts, axis=1)
        return lengths

    @property
    def residual_df(self) -> int:
        """The degrees of freedom of the residual."""
        return int(self.model.shape[0] - self.model.shape[1])

    @property
    def known(self) -> list[bool]:
        """Whether each effect has a spread of its own over the seeds."""
        return [self.seeds > 1 and basis.shape[1] > 0 for basis in self.own]


def make_stratum(
    contrasts: Array,
    seeds: npt.NDArray[np.int64],
    model: Array,
    residual_per_seed: int,
    fitted: Array | None = None,
) -> Stratum:
    """Returns the stratum of the contrasts [k, rows] of runs with these seeds [rows]. `model` is an orthonormal basis
    [rows, rank] of the model that gives all seeds the same effects; `fitted`, where it differs from it, is that of the
    space beyond which seed x effect lies."""
    beyond = model if fitted is None else fitted
    own = tuple(space(by_seed(contrast[None], seeds), beyond) for contrast in contrasts)
    pooled = space(by_seed(contrasts, seeds), beyond)
    return Stratum(contrasts, own, pooled, model, len(np.unique(seeds)), residual_per_seed)


def by_seed(contrasts: Array, seeds: npt.NDArray[np.int64]) -> Array:
    """Splits contrasts [k, rows] of all runs into those of each seed alone, [rows, k * seeds]."""
    membership = (seeds == np.unique(seeds)[:, None]).astype(float)  # [seeds, rows]
    columns: Array = (contrasts[:, None] * membership).reshape(-1, len(seeds)).T
    return columns


def space(columns: Array, fitted: Array) -> Array:
    """Returns an orthonormal basis [rows, rank] of what `columns` [rows, m] reach beyond `fitted`, an orthonormal
    basis."""
    rest = columns - fitted @ (fitted.T @ columns)
    basis, sizes, _ = np.linalg.svd(rest, full_matrices=False)
    reached: Array = basis[:, sizes > DEPENDENT * np.linalg.norm(columns, axis=0).max(initial=0.0)]
    return reached


def mean_square(basis: Array, y: Array) -> Array:
    """Returns the mean square [...] of outcomes y [rows, ...] in the space of `basis` [rows, df]; nan where df is 0."""
    df = basis.shape[1]
    squares: Array = np.square(basis.T @ y).sum(0) / df if df else np.full(y.shape[1:], math.nan)
    return squares
