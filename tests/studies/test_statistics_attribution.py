"""Shapley values against the average over all orders of switching, the gap, and coverage by simulation."""

import math
from collections.abc import Callable
from itertools import combinations, permutations, product

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from dinoswap.studies.statistics import attribute, factorial, family
from dinoswap.studies.statistics.attribution import _bootstrap, shapley_weights, values_stratum
from dinoswap.studies.statistics.estimate import t_interval, t_test

Row = dict[str, str]
Truth = Callable[[Row], float]


def switches(names: str) -> dict[str, tuple[str, str]]:
    return dict.fromkeys(names, ("off", "on"))


def grid(factors: dict[str, tuple[str, ...]]) -> dict[str, Row]:
    rows = [dict(zip(factors, levels, strict=True)) for levels in product(*factors.values())]
    return {"/".join(row.values()): row for row in rows}


def corners(names: str) -> tuple[Row, Row]:
    return dict.fromkeys(names, "off"), dict.fromkeys(names, "on")


def even(names: str, words: tuple[str, ...]) -> dict[str, Row]:
    """The cells in which the product of the signs of each word's factors is +1."""
    return {
        name: row
        for name, row in grid(switches(names)).items()
        if all(math.prod(1 if row[letter] == "on" else -1 for letter in word) == 1 for word in words)
    }


def random_truth(names: str, order: int, seed: int = 0) -> Truth:
    """Acts through all sets of at most `order` factors."""
    rng = np.random.default_rng(seed)
    sets = [s for size in range(1, order + 1) for s in combinations(names, size)]
    strength = {s: rng.normal() for s in sets}
    return lambda row: sum(value for s, value in strength.items() if all(row[name] == "on" for name in s))


def over_all_orders(names: str, truth: Truth) -> dict[str, float]:
    """Mean change that a factor makes when the factors are switched one after the other."""
    total = dict.fromkeys(names, 0.0)
    orders = list(permutations(names))
    for order in orders:
        row = dict.fromkeys(names, "off")
        for name in order:
            before, row = truth(row), {**row, name: "on"}
            total[name] += (truth(row) - before) / len(orders)
    return total


def outcomes(cells: dict[str, Row], truth: Truth, seeds: int = 3, noise: float = 0.0) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    rows = [
        (cell, seed, "completed", truth(row) + 10 * seed + noise * rng.normal())
        for seed in range(seeds)
        for cell, row in cells.items()
    ]
    return pd.DataFrame(rows, columns=["cell", "seed", "status", "value"]).sample(frac=1, random_state=0)


SEVEN = even("ABCDEFG", ("ABCE", "BCDF", "ACDG"))  # 2^(7-3), resolution IV


def test_a_full_factorial_gives_the_mean_over_all_orders() -> None:
    names, cells = "ABCD", grid(switches("ABCD"))
    truth = random_truth(names, order=4)
    found = attribute(outcomes(cells, truth), cells, switches(names), *corners(names))
    assert {e.name: e.mean for e in found.values} == pytest.approx(over_all_orders(names, truth))
    assert all(found.clear.values())
    assert found.measured == 16
    assert math.isnan(found.model_gap)


@pytest.mark.parametrize("names", ["A", "AB", "ABCDE"])
def test_weights_give_everything_away_and_nothing_to_a_factor_without_effect(names: str) -> None:
    k = len(names)
    weights = shapley_weights(k)
    v = np.random.default_rng(0).normal(size=2**k)
    assert (weights @ v).sum() == pytest.approx(v[-1] - v[0])
    v = v[np.arange(2**k) & ~1]  # the first factor changes nothing
    assert (weights @ v)[0] == pytest.approx(0, abs=1e-12)


def test_a_fraction_of_resolution_four_gives_the_values_of_the_whole() -> None:
    """16 of 128 cells, all aliased pairs active: 21 interactions of which none can be estimated by itself."""
    names = "ABCDEFG"
    truth = random_truth(names, order=2)
    found = attribute(outcomes(SEVEN, truth), SEVEN, switches(names), *corners(names))
    assert len(SEVEN) == found.measured == 16
    assert {e.name: e.mean for e in found.values} == pytest.approx(over_all_orders(names, truth))
    assert all(found.clear.values())
    assert found.model_gap == pytest.approx(found.gap.mean)


def test_a_fraction_that_mixes_main_effects_with_pairs_is_not_clear() -> None:
    names, cells = "ABC", even("ABC", ("ABC",))
    truth = random_truth(names, order=1)
    found = attribute(outcomes(cells, truth), cells, switches(names), *corners(names))
    assert not any(found.clear.values())
    assert {e.name: e.mean for e in found.values} == pytest.approx(over_all_orders(names, truth))  # no pair acts


def test_values_sum_to_the_measured_gap_whatever_the_model_makes_of_it() -> None:
    """Three and more factors interact, there is noise, and cells are missing."""
    names, noisy = "ABCDEFG", outcomes(SEVEN, random_truth("ABCDEFG", order=7), noise=1.0)
    start, end = corners(names)
    on, off = (noisy[noisy["cell"] == "/".join(corner.values())].set_index("seed")["value"] for corner in (end, start))
    some = noisy.drop(noisy[noisy["cell"].str.startswith("on/off/on")].index)
    whole = attribute(noisy, SEVEN, switches(names), start, end)
    assert abs(whole.model_gap - whole.gap.mean) > 0.1  # of which the model alone would give another account
    for frame in (noisy, some):
        found = attribute(frame, SEVEN, switches(names), start, end)
        assert sum(e.mean for e in found.values) == pytest.approx(found.gap.mean)
        assert found.gap.mean == pytest.approx((on - off).mean())
        assert found.per_seed.sum(axis=1).to_numpy() == pytest.approx((on - off).sort_index().to_numpy())


def test_the_gap_is_a_paired_t_test_and_the_bootstrap_is_shorter() -> None:
    cells = grid(switches("ABC"))
    found = attribute(outcomes(cells, random_truth("ABC", 3), noise=0.5), cells, switches("ABC"), *corners("ABC"))
    interval = stats.ttest_1samp(found.per_seed.sum(axis=1), 0).confidence_interval()
    assert (found.gap.low, found.gap.high) == pytest.approx((interval.low, interval.high))
    for estimate in found.values:
        values = found.per_seed[estimate.name]
        low, high = found.bootstrap[estimate.name]
        assert values.min() - 1e-9 <= low < estimate.mean < high <= values.max() + 1e-9
        assert high - low < estimate.high - estimate.low


@pytest.mark.parametrize(("names", "seeds"), [("ABC", 4), ("ABCDEFG", 3)])
def test_values_are_tested_as_main_effects_are(names: str, seeds: int) -> None:
    """Against their variation between seeds, of each alone or of all together (Mahalanobis), or the residual."""
    cells = SEVEN if len(names) == 7 else grid(switches(names))
    frame = outcomes(cells, random_truth(names, 2), seeds=seeds, noise=0.5)
    found = attribute(frame, cells, switches(names), *corners(names))
    alone = [outcomes(cells, lambda row, one=one: float(row is one), seeds=1) for one in cells.values()]
    weights = np.array([attribute(o, cells, switches(names), *corners(names)).per_seed.to_numpy()[0] for o in alone]).T
    apart = found.per_seed.to_numpy() - found.per_seed.to_numpy().mean(0)  # [seeds, factors]
    inverse = np.linalg.inv(weights @ weights.T)
    stratum = sum(d @ inverse @ d for d in apart) / (len(names) * (seeds - 1))
    residual = factorial(frame, cells, switches(names)).sd ** 2
    for i, estimate in enumerate(found.values):
        own = np.square(apart[:, i]).sum() / (seeds - 1) / np.square(weights[i]).sum()
        error = estimate.error
        assert error is not None and estimate.mean == pytest.approx(found.per_seed[estimate.name].mean())
        assert error.own.value == pytest.approx(own) and error.own.df == seeds - 1
        assert error.stratum.value == pytest.approx(stratum) and error.stratum.df == len(names) * (seeds - 1)
        assert error.residual.value == pytest.approx(residual)
        assert estimate.se == pytest.approx(
            math.sqrt(max(own, stratum, residual) * np.square(weights[i]).sum() / seeds)
        )


def test_other_levels_and_fixed_factors_take_no_part() -> None:
    """Three modes of which two are at the corners, and a factor that does not change between them."""
    factors = {"mode": ("none", "masked", "separate"), "decay": ("yes", "no"), "forward": ("one", "two")}
    size = {"none": 0.0, "masked": 5.0, "separate": 2.0}
    cells = grid(factors)
    frame = outcomes(cells, lambda row: size[row["mode"]] * (2 if row["decay"] == "no" else 1) + len(row["forward"]))
    start = {"mode": "separate", "decay": "yes", "forward": "two"}
    end = {"mode": "masked", "decay": "no", "forward": "two"}
    expected = {"mode": ((5 - 2) + (10 - 4)) / 2, "decay": ((4 - 2) + (10 - 5)) / 2}
    for frame_, measured in ((frame, 4), (frame[frame["cell"] != "separate/no/two"], 3)):
        found = attribute(frame_, cells, factors, start, end)
        assert {e.name: e.mean for e in found.values} == pytest.approx(expected)
        assert found.measured == measured


def test_seeds_whose_cells_do_not_determine_the_values_are_left_out_and_said() -> None:
    cells = grid(switches("ABC"))
    frame = outcomes(cells, random_truth("ABC", 2), seeds=4)
    dead = (frame["seed"] == 2) & frame["cell"].str.startswith("on")  # A is never on
    dead |= (frame["seed"] == 3) & (frame["cell"] == "on/on/on")  # an end that diverged: the model has to stand in
    frame.loc[dead, ["status", "value"]] = ["diverged", math.nan]
    found = attribute(frame, cells, switches("ABC"), *corners("ABC"))
    assert found.unused == (2,)
    assert found.gap.seeds == (0, 1, 3)
    assert found.per_seed.loc[3].to_numpy() == pytest.approx(found.per_seed.loc[0].to_numpy())
    assert (found.gap.arm.runs, found.gap.arm.diverged, found.gap.reference.diverged) == (4, 2, 0)
    assert "2 diverged of 4, reference 0 of 4" in family([found.gap])[0].words
    with pytest.raises(ValueError, match="no seed has a value in cells enough"):
        attribute(frame[frame["seed"] == 2], cells, switches("ABC"), *corners("ABC"))


def test_corners_that_do_not_differ_are_refused() -> None:
    cells = grid(switches("AB"))
    with pytest.raises(ValueError, match="0 factors differ between start and end"):
        attribute(outcomes(cells, random_truth("AB", 1)), cells, switches("AB"), corners("AB")[0], corners("AB")[0])


@pytest.mark.parametrize("spread", [0.0, 1.0])
@pytest.mark.parametrize(("names", "seeds"), [("ABC", 3), ("ABC", 5), ("ABCDEFG", 3)])
def test_intervals_cover_and_no_share_is_found_where_there_is_none(names: str, seeds: int, spread: float) -> None:
    """4,000 trials, in a full and in a fractional factorial. Seeds differ by three standard deviations of a run, and
    effects, which are nothing on average, by `spread` between seeds."""
    cells, trials = SEVEN if len(names) == 7 else grid(switches(names)), 4_000
    frame = outcomes(cells, lambda row: 0.0, seeds=seeds).sort_values(["seed", "cell"])
    stratum = values_stratum(frame, cells, switches(names), *corners(names))
    rng, seed = np.random.default_rng(seeds), frame["seed"].to_numpy()
    y = rng.normal(size=(len(frame), trials)) + rng.normal(0, 3, (seeds, trials))[seed]
    for name in names:
        on = np.array([cells[cell][name] == "on" for cell in frame["cell"]])
        y += on[:, None] * rng.normal(0, spread, (seeds, trials))[seed]
    square, df = stratum.largest(stratum.squares(y))
    means, errors = stratum.contrasts @ y, stratum.lengths[:, None] * np.sqrt(square)
    low, high = t_interval(means, errors, df, 0.95)
    assert 0.945 < ((low <= 0) & (high >= 0)).mean() < 0.985
    found = (t_test(means, errors, df).min(0) * len(means) <= 0.05).mean()
    assert 0.005 < found <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / trials)


def test_the_percentile_bootstrap_is_too_short_for_three_seeds() -> None:
    """1,000 trials; the reason why t is reported. It covers when the truth lies between the extremes: 1 - 2 / 2^3."""
    trials, covered = 1_000, 0
    for values in np.random.default_rng(0).normal(size=(trials, 3)):
        low, high = _bootstrap(pd.DataFrame({"A": values}), 0.95, draws=1_000)["A"]
        covered += low <= 0 <= high
    assert abs(covered / trials - 0.75) < 4 * math.sqrt(0.75 * 0.25 / trials)
