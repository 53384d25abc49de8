"""The gap between two corners of a design, split among the factors that change: Shapley values.

    phi_i = sum over sets S of other factors of |S|! (k - |S| - 1)! / k! * (v(S + i) - v(S))        (Shapley 1953)

v(S) is the outcome with the factors in S switched from `start` to `end`. phi_i is the mean change that switching i
makes, over all orders in which the k factors can be switched; the values sum to the gap, v(all) - v(none).

v is what was measured where the cell was measured. The rest comes from the model of main effects and two-factor
interactions (model_matrix.py), fitted to the measured cells of the same seed. Between two-level factors an interaction
of two splits evenly, which is what a main effect averaged over both levels contains already: so a fraction that keeps
main effects clear of two-factor interactions (resolution IV) gives the values of the full factorial, whichever way its
interactions are aliased, unless three or more factors interact. Where that does not hold a value is not `clear`: it
rests on the interactions that could not be estimated being zero.

Values are linear in the outcomes, so that each seed has its own. They are tested as main effects are: against how much
values vary between seeds, pooled over the factors, the residual of the model, or their own spread, whichever is largest
(strata.py). The gap is one comparison of two cells, paired by seed. The percentile bootstrap over seeds is given for
comparison; it is too short below 10 seeds (nominal 95 % covers about 75 % at 3 and 84 % at 5), and is not what verdicts
rest on.
"""

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Unpack

import numpy as np
import numpy.typing as npt
import pandas as pd

from dinoswap.studies.statistics.estimate import Array, Error, Estimate, MetricOptions, mean_and_error, settled
from dinoswap.studies.statistics.factorial import seeds_and_effects
from dinoswap.studies.statistics.model_matrix import DEPENDENT, Levels, columns, fit_model, indicators, terms_of
from dinoswap.studies.statistics.outcomes import Outcomes, mcnemar, why_untested, with_outcome
from dinoswap.studies.statistics.strata import Stratum, make_stratum, space

MOST_FACTORS = 14


@dataclass(frozen=True)
class Attribution:
    """The Shapley values of a gap, each named by its factor. All means are over the seeds of `gap`, whose name is
    'gap'."""

    values: tuple[Estimate, ...]
    gap: Estimate  # between the corners; the values sum to it
    model_gap: float  # the same by the fitted model alone; nan if every cell of the cube was measured
    bootstrap: dict[str, tuple[float, float]]  # percentile intervals, over seeds
    per_seed: pd.DataFrame  # [seeds, factors]
    clear: dict[str, bool]
    measured: int  # cells of the cube of 2^k that were measured, in the seed that has fewest
    unused: tuple[int, ...]  # seeds whose cells do not determine the values


@dataclass(frozen=True)
class _Map:
    """The linear map from the outcomes of a seed's cells, sorted by name, to the Shapley values."""

    weights: Array  # [factors, cells]
    model_gap: Array  # [cells]
    clear: npt.NDArray[np.bool_]  # [factors]
    measured: int


def attribute(
    outcomes: pd.DataFrame,
    cells: Mapping[str, Levels],
    factors: Mapping[str, Collection[str]],
    start: Levels,
    end: Levels,
    *,
    draws: int = 10_000,
    **metric: Unpack[MetricOptions],
) -> Attribution:
    """Returns the attribution of the gap from `start` to `end`, each {factor: level}. `draws` is the number of
    bootstrap samples. Raises ValueError for a bad frame, when no factor changes or too many do, and when no seed has
    cells enough."""
    switched = [factor for factor in factors if start[factor] != end[factor]]
    if not 0 < len(switched) <= MOST_FACTORS:
        raise ValueError(f"{len(switched)} factors differ between start and end: must be 1 to {MOST_FACTORS}")
    ended = with_outcome(outcomes)
    runs = ended.dropna(subset="value")
    maps = _maps(runs, cells, factors, _cube(start, end, switched), switched)
    if not maps:
        raise ValueError("outcomes: no seed has a value in cells enough to attribute the gap; run more of the cells")
    used = runs[runs["seed"].isin(maps.keys())].sort_values(["seed", "cell"])
    values = {seed: group["value"].to_numpy() for seed, group in used.groupby("seed")}
    table = pd.DataFrame([maps[seed].weights @ values[seed] for seed in maps], index=list(maps), columns=switched)
    keys = ended["cell"].map(lambda cell: _key(cells[cell], factors))
    first, last = (ended[keys == _key(corner, factors)] for corner in (start, end))
    against = _stratum(used, maps, cells, factors).errors(used["value"].to_numpy(dtype=float))
    return Attribution(
        values=tuple(_values(table, against, float(used["value"].abs().max()), metric)),
        gap=_gap(table.sum(axis=1), first, last, float(used["value"].abs().max()), metric),
        model_gap=float(np.mean([maps[seed].model_gap @ values[seed] for seed in maps])),
        bootstrap=_bootstrap(table, metric.get("confidence", 0.95), draws),
        per_seed=table,
        clear={
            name: all(bool(seed_map.clear[index]) for seed_map in maps.values()) for index, name in enumerate(switched)
        },
        measured=min(seed_map.measured for seed_map in maps.values()),
        unused=tuple(sorted({int(seed) for seed in outcomes["seed"]} - set(maps))),
    )


def _gap(per_seed: pd.Series, first: pd.DataFrame, last: pd.DataFrame, scale: float, metric: MetricOptions) -> Estimate:
    """Returns the estimate of the gap from one value per seed. `first` and `last` are the outcomes of the two
    corners."""
    mean, se = mean_and_error(per_seed.to_numpy(), scale)
    note = why_untested(first, last)
    return Estimate(
        name="gap",
        mean=mean,
        se=math.nan if note else se,
        df=len(per_seed) - 1,
        seeds=tuple(per_seed.index),
        reference=Outcomes.count(first),
        arm=Outcomes.count(last),
        failures=mcnemar(first, last),
        note=note,
        **metric,
    )


def _values(table: pd.DataFrame, against: Sequence[Error], scale: float, metric: MetricOptions) -> Iterator[Estimate]:
    """Yields the estimate of each column of `table` [seeds, factors]; `scale` is the size of the outcomes."""
    for name, error in zip(table, against, strict=True):
        mean, se = settled(float(table[name].mean()), error.se, scale)
        yield Estimate(
            name=name,
            mean=mean,
            se=se,
            df=error.df,
            seeds=tuple(table.index),
            df_per_seed=max(error.df_per_seed, 1),
            note="the values do not vary" if error.df and math.isnan(se) else "",
            error=error if error.df else None,
            **metric,
        )


def values_stratum(
    runs: pd.DataFrame,
    cells: Mapping[str, Levels],
    factors: Mapping[str, Collection[str]],
    start: Levels,
    end: Levels,
) -> Stratum:
    """Returns the stratum that the values of `attribute` are tested against. `runs` have a value, and are sorted by
    seed and cell; every seed has to have cells enough."""
    switched = [factor for factor in factors if start[factor] != end[factor]]
    return _stratum(runs, _maps(runs, cells, factors, _cube(start, end, switched), switched), cells, factors)


def _stratum(
    used: pd.DataFrame, maps: Mapping[int, "_Map"], cells: Mapping[str, Levels], factors: Mapping[str, Collection[str]]
) -> Stratum:
    """Returns the stratum of the shares: their contrasts over the runs `used`, with the model that their errors are
    measured from."""
    seeds = used["seed"].to_numpy()
    model = np.linalg.qr(seeds_and_effects(used, cells, factors).matrix)[0]
    contrasts = np.column_stack([seed_map.weights for seed_map in maps.values()]) / len(maps)  # [factors, runs]
    # A value is of its seed, whatever the model makes of the cells: only what varies between seeds is an error
    cell_columns = indicators(np.unique(used["cell"], return_inverse=True)[1])
    fitted = space(np.column_stack([indicators(seeds), cell_columns]), np.zeros((len(seeds), 0)))
    return make_stratum(contrasts, seeds, model, round(len(seeds) / len(maps)) - 1, fitted)


def _maps(
    runs: pd.DataFrame,
    cells: Mapping[str, Levels],
    factors: Mapping[str, Collection[str]],
    cube: Sequence[Levels],
    switched: Sequence[str],
) -> dict[int, "_Map"]:
    """Returns seed -> map for the seeds whose cells allow one. Seeds that have the same cells share a map."""
    by_cells: dict[tuple[str, ...], _Map | None] = {}
    maps = {}
    for seed, group in runs.groupby("seed"):
        names = tuple(sorted(group["cell"]))
        if names not in by_cells:
            by_cells[names] = _shapley_map([cells[name] for name in names], cube, factors, switched)
        seed_map = by_cells[names]
        if seed_map is not None:
            maps[int(seed)] = seed_map
    return maps


def _shapley_map(
    measured: Sequence[Levels], cube: Sequence[Levels], factors: Mapping[str, Collection[str]], switched: Sequence[str]
) -> _Map | None:
    """Returns the map for these measured cells, or None when the values rest on main effects that they do not
    determine."""
    weights = shapley_weights(len(switched))
    keys = [_key(cell, factors) for cell in measured]
    matches = [[key == _key(cell, factors) for key in keys] for cell in cube]
    v = np.array(matches, dtype=float)  # [2^k, cells]: from what was measured to v
    known = v.any(1)
    if known.all():
        return _Map(weights @ v, np.full(len(measured), math.nan), np.ones(len(switched), dtype=bool), len(cube))
    terms = terms_of(factors, interactions=True)
    model = fit_model(indicators(np.zeros(len(measured))), columns(measured, factors, terms), terms)
    cube_matrix = columns(cube, factors, terms)
    predicted = np.column_stack([np.ones(len(cube)), cube_matrix[:, model.kept]]) @ np.linalg.pinv(model.matrix)
    v[~known] = predicted[~known]
    # How each value errs per unit of an effect that is left out of the model: [factors, dropped]
    neglected = (
        np.abs(weights @ (cube_matrix[:, model.dropped] - cube_matrix[:, model.kept] @ model.weights)) > DEPENDENT
    )
    if neglected[:, [len(terms[index]) == 1 for index in model.dropped]].any():
        return None
    clear = np.logical_not(neglected.any(axis=1))
    return _Map(weights @ v, predicted[-1] - predicted[0], clear, int(known.sum()))


def shapley_weights(factors: int) -> Array:
    """Returns the weights [factors, 2^factors] whose product with v is the values. Bit i of a set's index says whether
    factor i is in it."""
    members = _members(factors)
    sizes = members.sum(1)
    share = np.array([1 / (factors * math.comb(factors - 1, size)) for size in range(factors)])  # by |S|, without i
    weights: Array = np.where(members, share[sizes - 1, None], -share[np.minimum(sizes, factors - 1), None]).T
    return weights


def _members(factors: int) -> npt.NDArray[np.int64]:
    """Returns [2^factors, factors], 1 where the factor is in the set."""
    return (np.arange(2**factors)[:, None] >> np.arange(factors)) & 1


def _cube(start: Levels, end: Levels, switched: Sequence[str]) -> list[Levels]:
    """Returns all 2^k combinations of the switched factors, in the order of `shapley_weights`."""
    return [
        {**start, **{factor: end[factor] for factor, inside in zip(switched, row, strict=True) if inside}}
        for row in _members(len(switched))
    ]


def _key(cell: Levels, factors: Collection[str]) -> str:
    """Returns the levels of a cell in the order of the factors, as a text to compare."""
    return repr([cell[factor] for factor in factors])


def _bootstrap(table: pd.DataFrame, confidence: float, draws: int) -> dict[str, tuple[float, float]]:
    """Returns the percentile interval of each factor's mean over seeds, all factors resampled together; nan for a
    single seed."""
    if len(table) < 2:
        return dict.fromkeys(table, (math.nan, math.nan))
    picks = np.random.default_rng(0).integers(len(table), size=(draws, len(table)))
    means = table.to_numpy()[picks].mean(1)  # [draws, factors]
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2], axis=0)
    return {name: (float(low[index]), float(high[index])) for index, name in enumerate(table)}
