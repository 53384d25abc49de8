"""Effects of factorials against averages over the whole grid, their errors against analyses of variance in loops,
aliases against the defining relation of the fraction; false findings, coverage and power by simulation.
"""

import math
from collections.abc import Callable, Mapping
from itertools import combinations, product

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from dinoswap.studies.statistics import aliases, detectable_effects, factorial, family, seeds_for_effects
from dinoswap.studies.statistics.estimate import Array, t_test
from dinoswap.studies.statistics.factorial import seeds_and_effects, strata_of
from dinoswap.studies.statistics.strata import Stratum

Cells = dict[str, dict[str, str]]
Factors = Mapping[str, tuple[str, ...]]

SEVEN: Factors = dict.fromkeys("ABCDEFG", ("off", "on"))
GENERATORS = {"E": "ABC", "F": "BCD", "G": "ACD"}  # 2^(7-3), resolution IV


def grid(factors: Factors) -> Cells:
    rows = [dict(zip(factors, levels, strict=True)) for levels in product(*factors.values())]
    return {"/".join(row.values()): row for row in rows}


def fraction(generators: Mapping[str, str], factors: Factors) -> Cells:
    """The cells in which each generated factor is the product of others, with levels as signs."""
    cells = {}
    for name, row in grid(factors).items():
        signs = {factor: 1 if level == "on" else -1 for factor, level in row.items()}
        if all(signs[g] == math.prod(signs[letter] for letter in word) for g, word in generators.items()):
            cells[name] = row
    return cells


def outcomes(cells: Cells, truth: Callable[[dict[str, str]], float], seeds: int = 2) -> pd.DataFrame:
    """Without noise, but for a shift by seed."""
    rows = [(cell, seed, "completed", truth(row) + 10 * seed) for cell, row in cells.items() for seed in range(seeds)]
    return pd.DataFrame(rows, columns=["cell", "seed", "status", "value"])


def pairwise(factors: Factors, seed: int) -> Callable[[dict[str, str]], float]:
    """A random truth in which factors act alone and in pairs."""
    rng = np.random.default_rng(seed)
    levels = [(factor, level) for factor, names in factors.items() for level in names]
    table = {key: rng.normal() for size in (1, 2) for key in combinations(levels, size)}
    return lambda row: sum(table[key] for size in (1, 2) for key in combinations(row.items(), size))


def average(truth: Callable[[dict[str, str]], float], factors: Factors, fixed: dict[str, str]) -> float:
    return float(np.mean([truth({**row, **fixed}) for row in grid(factors).values()]))


def main_effect(truth: Callable[[dict[str, str]], float], factors: Factors, factor: str, level: str) -> float:
    """Over the whole grid, all levels of the others alike."""
    return average(truth, factors, {factor: level}) - average(truth, factors, {factor: factors[factor][0]})


def crossed_effect(truth: Callable[[dict[str, str]], float], factors: Factors, a: str, x: str, b: str, y: str) -> float:
    p, q = factors[a][0], factors[b][0]
    corners = [average(truth, factors, {a: one, b: two}) for one, two in ((x, y), (p, y), (x, q), (p, q))]
    return corners[0] - corners[1] - corners[2] + corners[3]


def effect_of(name: str, truth: Callable[[dict[str, str]], float], factors: Factors) -> float:
    parts = [tuple(part.split("=")) for part in name.split(" * ")]
    if len(parts) == 1:
        return main_effect(truth, factors, *parts[0])
    return crossed_effect(truth, factors, *parts[0], *parts[1])


MIXED: Factors = {"masking": ("block", "bernoulli"), "mode": ("none", "masked", "separate"), "decay": ("yes", "no")}


def test_effects_of_a_whole_factorial_are_averages_over_the_grid() -> None:
    truth = pairwise(MIXED, seed=0)
    found = factorial(outcomes(grid(MIXED), truth), grid(MIXED), MIXED)
    assert [e.name for e in found.main] == ["masking=bernoulli", "mode=masked", "mode=separate", "decay=no"]
    assert len(found.interactions) == 2 + 1 + 2
    assert found.aliases == {}
    assert found.inestimable == ()
    for estimate in (*found.main, *found.interactions):
        assert estimate.mean == pytest.approx(effect_of(estimate.name, truth, MIXED)), estimate.name


@pytest.mark.parametrize("seed", range(6))
def test_an_estimate_is_the_effect_and_its_aliases_by_their_weights(seed: int) -> None:
    """For cells picked at random, from nearly none to nearly all: no table knows their aliases."""
    rng = np.random.default_rng(seed)
    names = rng.permutation(list(grid(MIXED)))[: 4 + seed]
    cells = {name: grid(MIXED)[name] for name in names}
    truth = pairwise(MIXED, seed)
    found = factorial(outcomes(cells, truth), cells, MIXED)
    assert found.aliases == aliases(list(cells.values()), MIXED)
    known = [e for e in (*found.main, *found.interactions) if not math.isnan(e.mean)]
    assert known
    for estimate in known:
        expected = effect_of(estimate.name, truth, MIXED)
        for other, weight in found.aliases.get(estimate.name, {}).items():
            expected += weight * effect_of(other, truth, MIXED)
        assert estimate.mean == pytest.approx(expected), estimate.name


# --- what effects are tested against ----------------------------------------------------------------------------------


def noisy(cells: Cells, seeds: int, spread: float = 0.0, seed: int = 0) -> pd.DataFrame:
    """Runs of standard deviation 1 without an effect on average; each seed has its own, with this deviation."""
    rng = np.random.default_rng(seed)
    frame = outcomes(cells, lambda row: 0.0, seeds)
    frame["value"] += rng.normal(size=len(frame))
    for factor in next(iter(cells.values())):
        own = rng.normal(0, spread, seeds)
        at = np.array([cells[cell][factor] == "on" for cell in frame["cell"]])
        frame["value"] += own[frame["seed"]] * at
    return frame


def naive_squares(frame: pd.DataFrame, cells: Cells, names: str) -> tuple[dict[str, float], float, float]:
    """Of a whole 2^k, in a loop: seed x each main effect, pooled over them, and the residual of the additive model with
    pairs, in units of a run's variance."""
    seeds, runs = sorted(set(frame["seed"])), len(cells)
    table = frame.pivot(index="seed", columns="cell", values="value")
    own = {}
    for name in names:
        of_seeds = []
        for seed in seeds:
            on = [table.loc[seed, cell] for cell in cells if cells[cell][name] == "on"]
            off = [table.loc[seed, cell] for cell in cells if cells[cell][name] == "off"]
            of_seeds.append(np.mean(on) - np.mean(off))
        own[name] = float(np.var(of_seeds, ddof=1)) * runs / 4
    left = table.to_numpy() - table.mean(axis=1).to_numpy()[:, None]
    means = left.mean(0)
    words = [word for size in (1, 2) for word in combinations(names, size)]
    fitted = np.zeros(runs)
    for word in words:
        sign = np.array([math.prod(1 if cells[cell][name] == "on" else -1 for name in word) for cell in table.columns])
        fitted += sign * (sign @ means) / runs
    squares = float(np.square(left - fitted).sum())
    return own, float(np.mean(list(own.values()))), squares / (runs * len(seeds) - len(seeds) - len(words))


@pytest.mark.parametrize("spread", [0.0, 2.0])
@pytest.mark.parametrize(("names", "seeds"), [("ABC", 4), ("AB", 3), ("ABCD", 2)])
def test_the_error_is_the_largest_of_three_mean_squares(names: str, seeds: int, spread: float) -> None:
    cells = grid(dict.fromkeys(names, ("off", "on")))
    frame = noisy(cells, seeds, spread)
    own, stratum, residual = naive_squares(frame, cells, names)
    found = factorial(frame.sample(frac=1, random_state=0), cells, dict.fromkeys(names, ("off", "on")))
    assert found.sd == pytest.approx(math.sqrt(residual))
    for estimate in found.main:
        error = estimate.error
        assert error is not None
        assert error.own.value == pytest.approx(own[estimate.name[0]]) and error.own.df == seeds - 1
        assert error.stratum.value == pytest.approx(stratum) and error.stratum.df == len(names) * (seeds - 1)
        assert error.residual.value == pytest.approx(residual) and error.residual.df == found.df
        largest = max(own[estimate.name[0]], stratum, residual)
        assert estimate.se == pytest.approx(2 * math.sqrt(largest / len(frame)))
        assert estimate.df == (len(names) * (seeds - 1) if stratum >= residual else found.df)
        t = stats.t(estimate.df)
        assert estimate.p == pytest.approx(2 * t.sf(abs(estimate.mean / estimate.se)))
        assert estimate.high - estimate.mean == pytest.approx(t.ppf(0.975) * estimate.se)


def test_two_cells_are_a_paired_t_test() -> None:
    rng = np.random.default_rng(0)
    factors: Factors = {"A": ("off", "on")}
    frame = outcomes(grid(factors), lambda row: float(row["A"] == "on"), seeds=6)
    frame["value"] += rng.normal(size=len(frame))
    (found,) = factorial(frame, grid(factors), factors).main
    table = frame.pivot(index="seed", columns="cell", values="value")
    expected = stats.ttest_rel(table["on"], table["off"])
    assert (found.p, found.df) == (pytest.approx(expected.pvalue), 5)
    interval = expected.confidence_interval()
    assert (found.low, found.high) == (pytest.approx(interval.low), pytest.approx(interval.high))


def test_where_effects_do_not_vary_between_seeds_the_residual_is_the_error() -> None:
    """Ordinary least squares with blocks: what is between seeds in the main effects was taken out of the noise."""
    factors = dict.fromkeys("ABC", ("off", "on"))
    cells = grid(factors)
    frame = noisy(cells, 4)
    signs = np.array([[1.0 if cells[cell][name] == "on" else -1.0 for name in "ABC"] for cell in frame["cell"]])
    for seed in range(4):
        rows = (frame["seed"] == seed).to_numpy()
        frame.loc[rows, "value"] -= signs[rows] @ (signs[rows].T @ frame.loc[rows, "value"]) / 8
    frame["value"] += signs @ [0.7, -0.2, 0.4]
    found = factorial(frame, cells, factors)
    pairs = [signs[:, i] * signs[:, j] for i, j in combinations(range(3), 2)]
    blocks = np.array([[float(s == seed) for seed in range(4)] for s in frame["seed"]])
    matrix = np.column_stack([blocks, signs / 2, *pairs])
    beta, squares, *_ = np.linalg.lstsq(matrix, frame["value"].to_numpy(), rcond=None)
    df = 32 - matrix.shape[1]
    errors = np.sqrt(np.diag(np.linalg.inv(matrix.T @ matrix)) * squares[0] / df)
    assert [e.mean for e in found.main] == pytest.approx(list(beta[4:7]))
    assert [e.se for e in found.main] == pytest.approx(list(errors[4:7]))
    assert [e.p for e in found.main] == pytest.approx(list(2 * stats.t.sf(np.abs(beta[4:7] / errors[4:7]), df)))
    assert all(e.error is not None and e.error.source == "residual" for e in found.main)


def test_what_main_effects_vary_by_is_no_error_of_interactions() -> None:
    """Their stratum lies below: with main effects that vary a hundredfold, interactions have the error of the runs."""
    factors = dict.fromkeys("ABC", ("off", "on"))
    quiet, loud = (factorial(noisy(grid(factors), 3, spread), grid(factors), factors) for spread in (0.0, 100.0))
    assert min(e.se for e in loud.main) > 10 * max(e.se for e in quiet.main)
    assert [e.se for e in loud.interactions] == pytest.approx([e.se for e in quiet.interactions])
    assert [e.df for e in loud.interactions] == [e.df for e in quiet.interactions]


def test_one_seed_tells_no_error() -> None:
    cells = fraction(GENERATORS, SEVEN)
    frame = noisy(cells, 1)
    (first, *_) = family(factorial(frame, cells, SEVEN, interactions=False).main)
    assert first.kind == "no estimate" and first.effect.p == 1 and math.isfinite(first.effect.mean)
    assert "one seed does not tell how effects vary" in first.words


def test_a_level_whose_runs_are_all_alike_is_not_tested() -> None:
    """Networks that collapsed all score the same: nothing is equivalent, or different, on no variance."""
    factors = dict.fromkeys("AB", ("off", "on"))
    frame = noisy(grid(factors), 3)
    same = frame.assign(value=10.0)
    for decision in family(factorial(same, grid(factors), factors, smallest_effect=2.0).main):
        assert decision.kind == "not tested" and decision.effect.p == decision.effect.p_equivalent == 1
    level = frame["cell"].str.startswith("on")
    frame.loc[level, "value"] = 10.0
    a, b = family(factorial(frame, grid(factors), factors, smallest_effect=2.0).main)
    assert a.kind == "not tested" and "every run of the arm has the value 10" in a.words
    assert b.kind != "not tested"
    frame.loc[level, "status"] = "collapsed"
    assert family(factorial(frame, grid(factors), factors).main)[0].kind == "worse because more runs fail"


# --- aliases ----------------------------------------------------------------------------------------------------------


def test_aliases_of_a_fraction_follow_from_its_defining_relation() -> None:
    """Two pairs of factors are aliased when the product of all four is a word of the defining relation."""
    cells = list(fraction(GENERATORS, SEVEN).values())
    assert len(cells) == 16
    words = [frozenset(g + word) for g, word in GENERATORS.items()]
    relation = {words[0], words[1], words[2], words[0] ^ words[1], words[0] ^ words[2], words[1] ^ words[2]}
    relation |= {words[0] ^ words[1] ^ words[2]}
    found = {frozenset(name[:1] + name[name.index("* ") + 2]): others for name, others in aliases(cells, SEVEN).items()}
    groups: dict[frozenset[str], set[frozenset[str]]] = {}
    for first, second in combinations([frozenset(pair) for pair in combinations("ABCDEFG", 2)], 2):
        if first ^ second in relation:
            groups.setdefault(first, set()).add(second)
    first_of_group = [first for first in groups if not any(first in others for others in groups.values())]
    assert len(first_of_group) == 7
    assert {first: {frozenset((o[0], o[o.index("* ") + 2])) for o in others} for first, others in found.items()} == {
        first: groups[first] for first in first_of_group
    }
    assert all(abs(weight) == 1 for others in aliases(cells, SEVEN).values() for weight in others.values())


def test_half_a_factorial_of_three_mixes_main_effects_with_interactions() -> None:
    factors = dict.fromkeys("ABC", ("off", "on"))
    found = aliases(list(fraction({"C": "AB"}, factors).values()), factors)
    assert found == {
        "A=on": {"B=on * C=on": 0.5},
        "B=on": {"A=on * C=on": 0.5},
        "C=on": {"A=on * B=on": 0.5},
    }


def test_factors_that_always_change_together_are_inestimable() -> None:
    factors = dict.fromkeys("ABC", ("off", "on"))
    cells = {name: row for name, row in grid(factors).items() if row["A"] == row["B"]}
    found = factorial(outcomes(cells, pairwise(factors, 0)), cells, factors)
    assert {"A=on", "B=on", "A=on * B=on"} <= set(found.inestimable)
    assert [math.isnan(e.mean) for e in found.main] == [True, True, False]
    decisions = family(found.main)
    assert [d.kind for d in decisions[:2]] == ["no estimate"] * 2
    assert "do not tell it from other effects" in decisions[0].words
    assert math.isinf(detectable_effects(list(cells.values()), factors, 3, 1.0)["A=on"])


def test_a_level_at_which_every_run_diverges_fails_and_leaves_the_others() -> None:
    frame = outcomes(grid(MIXED), pairwise(MIXED, 1), seeds=3)
    frame.loc[frame["cell"].str.contains("separate"), ["status", "value"]] = ["diverged", math.nan]
    found = factorial(frame, grid(MIXED), MIXED)
    decisions = {d.effect.name: d for d in family(found.main)}
    lost = decisions["mode=separate"]
    assert math.isnan(lost.effect.mean)
    assert lost.kind == "worse because more runs fail"
    assert "12 diverged of 12, reference 0 of 12" in lost.words
    truth = pairwise(MIXED, 1)
    halves = [average(truth, {**MIXED, "mode": ("none", "masked")}, {"mode": m}) for m in ("masked", "none")]
    assert decisions["mode=masked"].effect.mean == pytest.approx(halves[0] - halves[1])


def test_cells_have_to_give_every_factor_a_known_level() -> None:
    with pytest.raises(ValueError, match=r"C=None: each cell needs one of the levels off, on"):
        aliases([{"A": "on", "B": "off"}], dict.fromkeys("ABC", ("off", "on")))


# --- simulations ------------------------------------------------------------------------------------------------------

DESIGNS: dict[str, Cells] = {
    "16 of 128": fraction(GENERATORS, SEVEN),
    "8 of 16": fraction({"D": "ABC"}, dict.fromkeys("ABCD", ("off", "on"))),
    "2^3": grid(dict.fromkeys("ABC", ("off", "on"))),
}


def strata(name: str, seeds: int) -> tuple[Stratum, Array, Array]:
    """Of a design: the main effects' stratum, the seed of each run, and whether each factor is on [rows, factors]."""
    cells = DESIGNS[name]
    frame = outcomes(cells, lambda row: 0.0, seeds)
    factors = dict.fromkeys(next(iter(cells.values())), ("off", "on"))
    model = seeds_and_effects(frame, cells, factors)
    at = np.array([[float(cells[cell][factor] == "on") for factor in factors] for cell in frame["cell"]])
    return strata_of(model, frame["seed"].to_numpy())[0][0], frame["seed"].to_numpy(), at


def trials(name: str, seeds: int, spread: float, count: int) -> tuple[Stratum, Array, Array]:
    """The stratum, outcomes [rows, count] of studies without an effect on average, and the levels."""
    stratum, seed, at = strata(name, seeds)
    rng = np.random.default_rng([seeds, int(10 * spread)])
    y = rng.normal(size=(len(seed), count)) + rng.normal(0, 3, (seeds, count))[seed]
    own = rng.normal(0, spread, (seeds, at.shape[1], count))
    return stratum, y + np.einsum("rf,rfc->rc", at, own[seed]), at


def test_all_studies_at_once_are_tested_as_one_is() -> None:
    """What the simulations below, and tools/simulate_verdicts.py, rest on."""
    stratum, y, _ = trials("16 of 128", 3, 1.0, 5)
    cells = DESIGNS["16 of 128"]
    square, df = stratum.largest(stratum.squares(y))
    p = t_test(stratum.contrasts @ y, stratum.lengths[:, None] * np.sqrt(square), df)
    for study in range(5):
        frame = outcomes(cells, lambda row: 0.0, 3).assign(value=y[:, study])
        assert [e.p for e in factorial(frame, cells, SEVEN).main] == pytest.approx(list(p[:, study]))


@pytest.mark.parametrize("spread", [0.0, 0.5, 1.0, 2.0])
@pytest.mark.parametrize(("name", "seeds"), [("16 of 128", 3), ("8 of 16", 3), ("2^3", 3), ("2^3", 5)])
def test_studies_without_effects_have_a_finding_in_at_most_five_percent(name: str, seeds: int, spread: float) -> None:
    """4,000 studies each, whose effects vary between seeds by so many standard deviations of a run. Holm's first step
    decides whether there is any finding. Intervals hold the truth in at least 95 %, and are not endless. Tested against
    the residual, which takes seeds to have the same effects, a quarter of the studies had a finding."""
    count = 4_000
    stratum, y, _ = trials(name, seeds, spread, count)
    squares = stratum.squares(y)
    square, df = stratum.largest(squares)
    means, errors = stratum.contrasts @ y, stratum.lengths[:, None] * np.sqrt(square)
    found = (t_test(means, errors, df).min(0) * len(means) <= 0.05).mean()
    assert 0.005 < found <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / count)
    covered = (np.abs(means) <= stats.t.ppf(0.975, df) * errors).mean()
    assert 0.945 < covered < 0.985
    if (name, spread) == ("16 of 128", 1.0):
        wrong = stratum.lengths[:, None] * np.sqrt(squares.residual)
        assert (t_test(means, wrong, stratum.residual_df).min(0) * len(means) <= 0.05).mean() > 0.2


def test_intervals_hold_effects_that_are_there() -> None:
    """As many as without effects: the pairs of a resolution IV design do not touch them."""
    stratum, y, at = trials("16 of 128", 3, 1.0, 4_000)
    truth = np.array([0.5, 0.0, -3.0, 1.0, 0.0, 2.0, 0.0])
    y = y + ((at - 0.5) @ truth + 2 * (at[:, 0] - 0.5) * (at[:, 1] - 0.5))[:, None]
    square, df = stratum.largest(stratum.squares(y))
    half = stats.t.ppf(0.975, df) * stratum.lengths[:, None] * np.sqrt(square)
    rates = (np.abs(stratum.contrasts @ y - truth[:, None]) <= half).mean(1)
    assert np.all(rates > 0.95 - 4 * math.sqrt(0.05 * 0.95 / 4_000))


def test_mean_squares_of_an_incomplete_design_are_not_biased() -> None:
    """8 cells with 3 seeds, of which a fifth did not end with a value: all three are 1 where effects do not vary."""
    factors = dict.fromkeys("ABC", ("off", "on"))
    cells = grid(factors)
    rng = np.random.default_rng(1)
    frame = outcomes(cells, lambda row: 0.0, 3).sample(frac=0.8, random_state=1)
    (main, _), (pairs, _) = strata_of(seeds_and_effects(frame, cells, factors), frame["seed"].to_numpy())
    y = rng.normal(size=(len(frame), 4_000)) + rng.normal(0, 3, (3, 4_000))[frame["seed"]]
    for stratum in (main, pairs):
        squares = stratum.squares(y)
        for square in (*squares.own, squares.stratum, squares.residual):
            assert square.mean() == pytest.approx(1, abs=0.08)


@pytest.mark.parametrize(("spread", "least"), [(0.0, 0.8), (1.0, 0.77), (3.0, 0.77)])
def test_detectable_effects_are_found_four_times_of_five(spread: float, least: float) -> None:
    """20,000 studies of 8 cells with 3 seeds, at the alpha of four main effects. Where effects do not vary the residual
    has more degrees of freedom than was planned with."""
    alpha, count = 0.05 / 4, 20_000
    stratum, y, at = trials("8 of 16", 3, spread, count)
    factors = dict.fromkeys("ABCD", ("off", "on"))
    cells = list(DESIGNS["8 of 16"].values())
    size = detectable_effects(cells, factors, 3, math.sqrt(2), alpha, seed_sd=spread)["B=on"]
    y = y + size * at[:, [1]]
    square, df = stratum.largest(stratum.squares(y))
    rate = (t_test(stratum.contrasts @ y, stratum.lengths[:, None] * np.sqrt(square), df)[1] <= alpha).mean()
    assert least <= rate < 0.9
    assert spread < 3 or rate == pytest.approx(0.8, abs=0.02)


def test_the_seeds_that_detect_an_effect_are_the_first_that_do() -> None:
    factors = dict.fromkeys("ABCD", ("off", "on"))
    cells = list(DESIGNS["8 of 16"].values())
    n = seeds_for_effects(cells, factors, 1.0, 0.6)
    assert n is not None and n > 3
    sizes = [detectable_effects(cells, factors, seeds, 1.0)["A=on"] for seeds in (n - 1, n)]
    assert sizes[1] <= 0.6 < sizes[0]
    assert seeds_for_effects(cells[:2], factors, 1.0, 0.6) is None
