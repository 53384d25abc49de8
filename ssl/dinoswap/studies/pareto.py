"""Cells that no other cell beats at once in a metric and in a cost: the Pareto front, and how sure it is.

A cell is beaten by one that is at least as good and at least as cheap, and better or cheaper. Means over few seeds are
noisy, so that a cell also has the share of bootstrap resamples of the seeds in which it is on the front. A resample
draws the same seeds for all cells, whose runs of one seed are paired. All n^n resamples of n seeds are gone through up
to n = 5; of more seeds DRAWS are drawn. Below ten seeds or so a bootstrap is too sure of itself.

A cell of which any run collapsed, diverged or failed is no candidate: the mean of those that went well would flatter
it, and so would the cost of runs that learnt nothing.
"""

import itertools
import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd

from dinoswap.rng import numpy_generator
from dinoswap.studies.statistics.estimate import Array
from dinoswap.studies.statistics.outcomes import FAILURES

ENUMERATED = 5
"""Seeds up to which all resamples are gone through."""
DRAWS = 2000


class Standing(NamedTuple):
    """Whether a cell is on the front, and in which share of resamples; nan where there is one seed."""

    on_front: bool
    share: float


def standings(runs: pd.DataFrame, *, higher_is_better: bool, more_is_cheaper: bool) -> dict[str, Standing]:
    """Returns where each candidate stands, by the means over the seeds that all candidates share; none where they share
    no seed. `runs` has the columns cell, seed, status, value and cost; candidates have a run with both numbers, and
    none that failed."""
    failing = set(runs.loc[runs["status"].isin(FAILURES), "cell"])
    known = runs[~runs["cell"].isin(failing)].dropna(subset=["value", "cost"])
    values = known.pivot(index="seed", columns="cell", values="value").dropna() * (1 if higher_is_better else -1)
    costs = known.pivot(index="seed", columns="cell", values="cost").dropna() * (-1 if more_is_cheaper else 1)
    if values.empty:
        return {}
    fronts = on_front(values.mean().to_numpy(), costs.mean().to_numpy())
    shares = shares_on_front(values.to_numpy(), costs.to_numpy())
    by_cell = zip(values.columns, fronts.tolist(), shares.tolist(), strict=True)
    return {str(cell): Standing(front, share) for cell, front, share in by_cell}


def on_front(values: Array, costs: Array) -> npt.NDArray[np.bool_]:
    """Returns which cells are on the front, bool [cells], of their values (higher is better) and costs (lower is), both
    [cells]."""
    from_cheapest, places = np.unique(np.stack([costs, -values], axis=1), axis=0, return_inverse=True)
    distinct = -from_cheapest[:, 1]  # the values of all different points, the best of a cost first
    best_so_far = np.concatenate([[-math.inf], np.maximum.accumulate(distinct)[:-1]])
    return (distinct > best_so_far)[places.ravel()]


def shares_on_front(values: Array, costs: Array) -> Array:
    """Returns the share of resamples of the seeds in which each cell is on the front, [cells], of values and costs
    [seeds, cells]; nan below two seeds."""
    seeds, cells = values.shape
    if seeds < 2:
        return np.full(cells, math.nan)
    fronts = [on_front(values[drawn].mean(axis=0), costs[drawn].mean(axis=0)) for drawn in resamples(seeds)]
    shares: Array = np.array(fronts).mean(axis=0)
    return shares


def resamples(seeds: int) -> npt.NDArray[np.int64]:
    """Returns the resamples of so many seeds, as indices [resamples, seeds]."""
    if seeds <= ENUMERATED:
        return np.array(list(itertools.product(range(seeds), repeat=seeds)))
    return numpy_generator(0, "studies/pareto", seeds).integers(seeds, size=(DRAWS, seeds))
