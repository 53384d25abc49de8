"""A D-optimal choice of cells, for factors of three levels and more and for sets of cells with holes in them.

Of the valid cells those are chosen that maximise det(X'X), X the model's matrix of the chosen cells: the volume of the
coefficients' joint confidence region is then smallest. Contrasts are orthonormal over all levels of a factor, so that
X'X = n I where a design is orthogonal; D-efficiency is det(X'X)^(1/p) / n, 1 at most for such a design.

The search is Fedorov's exchange (Theory of Optimal Experiments, 1972): from random starts, swap the chosen cell and the
other one that raise the determinant most, until none does. Swapping x_i for x_j multiplies it by
(1 - d_ii)(1 + d_jj) + d_ij^2, d_ab = x_a' (X'X)^-1 x_b. Of several starts the best is kept. Ties go to the first, after
rounding, so that the choice is the same on every machine.
"""

import itertools
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import helmert

from dinoswap.config.schema import ConfigError

Matrix = NDArray[np.float64]
Term = tuple[int, ...]
"""Positions of the factors in an effect: () the mean, (i,) a main effect, (i, j) an interaction."""

DIGITS = 6
STARTS = 20
WORTH_SAYING = 0.1


def model_matrix(
    rows: Sequence[Sequence[int]], sizes: Sequence[int], terms: Sequence[Term]
) -> tuple[Matrix, list[Term]]:
    """Returns the model matrix [cells, coefficients] of these terms, and the term of each column. `rows` hold a level's
    number per factor, `sizes` how many levels each factor has."""
    cells = np.asarray(rows)
    contrasts = [
        helmert(size).T[cells[:, factor]] * size**0.5 for factor, size in enumerate(sizes)
    ]  # [cells, size - 1]
    blocks, names = [], []
    for term in terms:
        block = np.ones((len(cells), 1))
        for factor in term:
            block = (block[:, :, None] * contrasts[factor][:, None, :]).reshape(len(cells), -1)
        blocks.append(block)
        names += [term] * block.shape[1]
    return np.concatenate(blocks, axis=1), names


def effects(factors: int, interactions: bool) -> list[Term]:
    """Returns the terms of the mean, of the main effects and, with `interactions`, of the two-factor interactions."""
    terms: list[Term] = [(), *((factor,) for factor in range(factors))]
    return terms + (list(itertools.combinations(range(factors), 2)) if interactions else [])


def d_optimal(x: Matrix, runs: int, *, seed: int = 0, starts: int = STARTS) -> list[int]:
    """Returns which rows of `x` [candidates, coefficients] to run, in ascending order; the first is always among them.
    Raises ConfigError where they cannot estimate every coefficient."""
    candidates, coefficients = x.shape
    if runs < coefficients:
        raise ConfigError(
            f"runs={runs}: too few for {coefficients} coefficients; half as many again leave room for error"
        )
    if runs > candidates:
        raise ConfigError(f"runs={runs}: there are {candidates} different valid cells; at most that many")
    if np.linalg.matrix_rank(x) < coefficients:
        raise ConfigError("factors: the valid cells leave some effects inseparable; exclude fewer, or take a level out")
    generator = np.random.default_rng(seed)
    designs = [sorted(_exchanged(x, _start(x, runs, generator))) for _ in range(starts)]
    return max(designs, key=lambda chosen: (round(_log_determinant(x[chosen]), DIGITS), [-row for row in chosen]))


def efficiency(x: Matrix) -> float:
    """Returns the D-efficiency of the design with model matrix `x` [cells, coefficients], 1 where it is orthogonal."""
    return float(np.exp(_log_determinant(x) / x.shape[1]) / len(x))


def _log_determinant(x: Matrix) -> float:
    """Returns ln det(x^T x) of a model matrix x, -inf where it is singular."""
    return float(np.linalg.slogdet(x.T @ x)[1])


def _start(x: Matrix, runs: int, generator: np.random.Generator) -> list[int]:
    """Returns the first row and random ones: first those that raise the rank, so that the determinant is not 0."""
    order = [0, *(generator.permutation(len(x) - 1) + 1).tolist()]
    chosen: list[int] = []
    for row in order:
        if np.linalg.matrix_rank(x[[*chosen, row]]) > len(chosen):
            chosen.append(row)
        if len(chosen) == x.shape[1]:
            break
    return chosen + [row for row in order if row not in chosen][: runs - len(chosen)]


def _exchanged(x: Matrix, chosen: list[int]) -> list[int]:
    """Makes the best swap until none raises the determinant, and returns the chosen rows. chosen[0] stays."""
    while len(chosen) < len(x):
        others = [row for row in range(len(x)) if row not in chosen]
        inverse = np.linalg.inv(x[chosen].T @ x[chosen])
        leaving, entering = x[chosen[1:]], x[others]
        inside = np.einsum("ip,pq,iq->i", leaving, inverse, leaving)
        outside = np.einsum("ip,pq,iq->i", entering, inverse, entering)
        gains = (1 - inside)[:, None] * (1 + outside) + (leaving @ inverse @ entering.T) ** 2  # [leaving, entering]
        best = int(gains.round(DIGITS).argmax())
        if not gains.flat[best] > 1 + 10**-DIGITS:
            break
        chosen[1 + best // len(others)] = others[best % len(others)]
    return chosen


def describe(
    rows: Sequence[Sequence[int]], factors: Sequence[str], sizes: Sequence[int], interactions: bool
) -> list[str]:
    """Returns lines that describe the chosen cells: how good they are, and which interactions would pass for main
    effects.

    The latter is the alias matrix (X1'X1)^-1 X1'X2, X1 the model and X2 the interactions that are not in it: of each
    factor and interaction the largest entry, 1 where an interaction counts in full.
    """
    terms = effects(len(factors), interactions)
    x, names = model_matrix(rows, sizes, terms)
    kinds = "main effects and two-factor interactions" if interactions else "main effects"
    lines = [f"D-optimal for {kinds}: {len(rows)} cells, D-efficiency {efficiency(x):.2f} (1: orthogonal)"]
    if interactions or len(factors) < 2:
        return lines
    others, other_names = model_matrix(rows, sizes, list(itertools.combinations(range(len(factors)), 2)))
    aliases = np.abs(np.linalg.lstsq(x, others, rcond=None)[0])
    largest: dict[tuple[Term, Term], float] = {}
    for (row, column), value in np.ndenumerate(aliases):
        if names[row] and value >= WORTH_SAYING:
            pair = names[row], other_names[column]
            largest[pair] = max(largest.get(pair, 0.0), float(value))
    worst = sorted(largest.items(), key=lambda item: (-round(item[1], DIGITS), item[0]))
    lines.append(
        "interactions that pass for a main effect, by their share:" if worst else "main effects are clear of them"
    )
    for (main, interaction), value in worst:
        lines.append(f"  {factors[main[0]]}: {value:.2f} of {'*'.join(factors[index] for index in interaction)}")
    return lines
