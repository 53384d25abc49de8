"""Effects of factorials against averages over the whole grid, aliases against the defining relation of the fraction,
and coverage by simulation.
"""

import math
from collections.abc import Callable, Mapping
from itertools import combinations, product

import numpy as np
import pandas as pd
import pytest

from dinoswap.studies.statistics import Estimate, aliases, detectable_effects, factorial, family
from dinoswap.studies.statistics.factorial import least_squares
from dinoswap.studies.statistics.model_matrix import columns, fit_model, indicators, terms_of

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


def test_standard_errors_are_those_of_a_difference_of_means() -> None:
    """2 sigma / sqrt(runs) for a main effect of 2^3 with 4 seeds, and twice that for a difference of differences."""
    factors = dict.fromkeys("ABC", ("off", "on"))
    frame = outcomes(grid(factors), lambda row: 0.0, seeds=4)
    frame["value"] += np.random.default_rng(0).normal(size=len(frame))
    found = factorial(frame, grid(factors), factors)
    assert found.df == 32 - 4 - 3 - 3
    for estimate in found.main:
        on = frame["cell"].map(lambda cell, name=estimate.name[0]: grid(factors)[cell][name] == "on")
        assert estimate.mean == pytest.approx(frame["value"][on].mean() - frame["value"][~on].mean())
        assert estimate.se == pytest.approx(2 * found.sd / math.sqrt(32))
    assert [e.se for e in found.interactions] == pytest.approx([4 * found.sd / math.sqrt(32)] * 3)


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


def design(seeds: int) -> tuple[np.ndarray, int]:
    """Matrix of 2^(4-1) with all estimable interactions, and its number of blocks."""
    factors = dict.fromkeys("ABCD", ("off", "on"))
    cells, terms = list(fraction({"D": "ABC"}, factors).values()), terms_of(factors, interactions=True)
    blocks = indicators(np.repeat(np.arange(seeds), len(cells)))
    return fit_model(blocks, np.tile(columns(cells, factors, terms), (seeds, 1)), terms).matrix, seeds


@pytest.mark.parametrize("seeds", [3, 5, 10])
def test_intervals_cover_at_their_nominal_rate(seeds: int) -> None:
    """10,000 trials, each with 4 main effects and 3 sums of interactions, and seeds that differ by three sigma."""
    matrix, blocks = design(seeds)
    rng, trials = np.random.default_rng(seeds), 10_000
    truth = np.array([0.5, 0.0, -0.3, 0.0, 0.2, 0.0, 0.0])
    y = matrix[:, :blocks] @ rng.normal(0, 3, (blocks, trials)) + (matrix[:, blocks:] @ truth)[:, None]
    means, errors, df, _ = least_squares(matrix, y + rng.normal(size=y.shape))
    found = [
        Estimate(name="", mean=m, se=s, df=df, seeds=tuple(range(seeds)))
        for m, s in zip(means[blocks:, :500].T.flat, errors[blocks:, :500].T.flat, strict=True)
    ]
    covered = [e.low <= t <= e.high for e, t in zip(found, np.tile(truth, 500), strict=True)]
    half = (found[0].high - found[0].mean) / found[0].se  # the quantile of t that an Estimate uses
    rates = (np.abs(means[blocks:] - truth[:, None]) <= half * errors[blocks:]).mean(1)
    assert np.all(np.abs(rates - 0.95) < 4 * math.sqrt(0.95 * 0.05 / trials))
    assert abs(np.mean(covered) - 0.95) < 0.02


def test_a_factorial_without_effects_has_no_finding() -> None:
    """2,000 trials of 8 cells with 3 seeds: any main effect found in at most 5 %."""
    matrix, blocks = design(3)
    trials = 2_000
    means, errors, df, _ = least_squares(matrix, np.random.default_rng(0).normal(size=(len(matrix), trials)))
    found = 0
    for mean, se in zip(means[blocks : blocks + 4].T, errors[blocks : blocks + 4].T, strict=True):
        main = [Estimate(name="", mean=m, se=s, df=df, seeds=(0, 1, 2)) for m, s in zip(mean, se, strict=True)]
        found += any(decision.kind != "not distinguishable" for decision in family(main))
    assert 0 < found / trials <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / trials)


def test_detectable_effects_are_found_four_times_of_five() -> None:
    """20,000 trials of 8 cells with 3 seeds, at the alpha of four main effects."""
    factors = dict.fromkeys("ABCD", ("off", "on"))
    cells, alpha, trials = list(fraction({"D": "ABC"}, factors).values()), 0.05 / 4, 20_000
    effects = detectable_effects(cells, factors, seeds=3, sd=math.sqrt(2) * 0.7, alpha=alpha)
    matrix, blocks = design(3)
    y = np.random.default_rng(0).normal(0, 0.7, (len(matrix), trials)) + effects["B=on"] * matrix[:, [blocks + 1]]
    means, errors, df, _ = least_squares(matrix, y)
    critical = Estimate(name="", mean=0, se=1, df=df, seeds=(0,), confidence=1 - alpha).high
    rate = (np.abs(means[blocks + 1]) > critical * errors[blocks + 1]).mean()
    assert abs(rate - 0.8) < 4 * math.sqrt(0.8 * 0.2 / trials)
