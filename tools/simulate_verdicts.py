"""How often studies without any effect report one, and how often a true effect is found: the report's own tests on
simulated outcomes.

    python tools/simulate_verdicts.py -o results/reference/verdicts

    y = level of the seed + effects of the cell's levels, of which each seed has its own + noise of the run

The noise has standard deviation 1; effects vary between seeds with standard deviations of 0, .5, 1 and 2, all of them,
half, or one alone. Designs are those of ablations/, and small ones. Test statistics come from the functions that the
report calls (statistics.strata, estimate, verdict), for all studies of a condition at once; the first of each are also
given to the report's own `judge` as frames of outcomes, and have to come out the same.

Beside the chosen error of crossed designs stand those that were not: the residual alone (every seed has the same
effects), seed x effect pooled or the residual, and seed x this effect alone.
"""

import argparse
import math
import shlex
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from dinoswap.files.writing import write_atomically
from dinoswap.studies.design import make_design
from dinoswap.studies.report.analysis import corners, judge
from dinoswap.studies.statistics import detectable_difference, detectable_effects
from dinoswap.studies.statistics.attribution import values_stratum
from dinoswap.studies.statistics.estimate import t_test
from dinoswap.studies.statistics.factorial import seeds_and_effects, strata_of
from dinoswap.studies.statistics.strata import Stratum
from dinoswap.studies.study import Levels, Study, read_study

Array = npt.NDArray[np.float64]
ALPHA = 0.05
SPREADS = (0.0, 0.5, 1.0, 2.0)
"""Standard deviations of an effect between seeds, in those of a run."""
SEED_SPREAD = 3.0
"""The standard deviation of the levels of the seeds, which blocks take away."""
TRUE = 2.0
"""The effect whose power is shown."""
CHOSEN = "largest of the three"


TEXT = """# False findings and power of the report's verdicts

Of {studies} simulated studies per line without any effect, the percentage that report at least one after Holm's
correction (standard error {error:.1f} at 5 %), where effects vary between seeds by the given standard deviation, in
those of a run: all of them, the first half, or the first alone. *False findings* are of the declared family (main
effects, or arms against the reference), *of shares* and *of interactions* of the two families beside it.

*Power* is the percentage in which a true effect of {power:g} standard deviations of a run, of the last factor, is
found. *Plan's smallest* is the difference that `dinoswap-ablate plan` gives as detectable at 80 % power when it knows
both standard deviations, *power there* how often it is found. The plan takes effects to vary alike, and is cautious
where only some do.

The last columns are the false findings, and in brackets the power, of what was not chosen for crossed designs.
*Residual*: every seed is taken to have the same effects, as reports did before 2026-11-29. *Seed x effect or
residual*: pooled over the effects, or the residual where it is larger. *Seed x this effect*: each effect's own spread
over the seeds, right whatever varies, and nearly blind with 3 seeds. Chosen is the largest of the three
(`studies/statistics/strata.py`): at most 5 % where effects vary alike, and where only some vary it errs least of
those that find anything: up to 9 % with 3 seeds, if these vary by twice the noise of a run. Arms against a reference
have a paired t test, which no variation between seeds disturbs.

Statistics come from the functions that the report calls; the first {checked} studies of each line were also judged by
the report itself (`report.analysis.judge`), with the same p. Made by `{command}`.
"""


@dataclass(frozen=True)
class Design:
    """Cells by name, the reference first, and the study whose report it would be."""

    name: str
    study: Study
    cells: Mapping[str, Levels]

    @property
    def crossed(self) -> bool:
        """Whether effects are averages over the levels of other factors."""
        return self.study.design in ("factorial", "fractional")

    def frame(self, seeds: int) -> pd.DataFrame:
        """Returns the runs, sorted by seed and cell, without values."""
        rows = [(cell, seed, "completed") for seed in range(seeds) for cell in sorted(self.cells)]
        return pd.DataFrame(rows, columns=["cell", "seed", "status"])


@dataclass(frozen=True)
class PValues:
    """The p of outcomes [rows, studies]: `p` by the choice of the error, each [effects, studies]."""

    p: dict[str, Array]
    shares: Array | None = None
    interactions: Array | None = None


def designs() -> Iterator[tuple[Design, tuple[int, ...]]]:
    """Yields the designs to simulate, each with its numbers of seeds."""
    attribution, official = read_study("attribution"), read_study("from_official")
    yield Design("attribution, 16 of 128 cells", attribution, of_study(attribution)), (3, 6)
    three = dict(list(attribution.factors.items())[:3])
    whole = replace(attribution, design="factorial", factors=three)
    yield Design("2^3, whole", whole, of_study(whole)), (3, 4, 5)
    masks = read_study("forward_masking")
    yield Design("forward_masking, 3 x 5, whole", masks, of_study(masks)), (3,)
    yield Design("from_official, one at a time", official, of_study(official)), (3, 6)
    left_out = replace(attribution, design="leave_one_out")
    yield Design("attribution, leave one out", left_out, of_study(left_out)), (3, 6)


def of_study(study: Study) -> dict[str, Levels]:
    """Returns the levels of each cell of a study."""
    return {cell.name: cell.levels for cell in make_design(study, check=False).cells}


# --- outcomes ---------------------------------------------------------------------------------------------------------


def simulated(
    design: Design, frame: pd.DataFrame, spread: float, vary: str, studies: int, rng: np.random.Generator
) -> Array:
    """Returns outcomes [rows, studies] without an effect on average."""
    seeds = frame["seed"].to_numpy()
    y = rng.normal(size=(len(frame), studies))
    y += rng.normal(0, SEED_SPREAD, (seeds.max() + 1, studies))[seeds]
    factors = list(design.study.factors.items())
    varying = {"all": len(factors), "half": (len(factors) + 1) // 2, "one": 1}[vary]
    for factor, levels in factors[:varying]:
        at = (
            frame["cell"]
            .map(lambda cell, factor=factor, names=list(levels): names.index(design.cells[cell][factor]))
            .to_numpy()
        )
        # Of two levels the difference varies by `spread`
        y += rng.normal(0, spread / math.sqrt(2), (seeds.max() + 1, len(levels), studies))[seeds, at]
    return y


def with_effect(design: Design, frame: pd.DataFrame, y: Array, size: float) -> Array:
    """Returns the outcomes with an effect of the last factor's last level, which never varies where not all do."""
    factor, levels = list(design.study.factors.items())[-1]
    off = [design.cells[cell][factor] == list(levels)[-1] for cell in frame["cell"]]
    return y + size * np.array(off, dtype=float)[:, None]


# --- tests ------------------------------------------------------------------------------------------------------------


class Paired:
    """Each cell against the first: a paired t test."""

    def __init__(self, design: Design, seeds: int) -> None:
        first, *others = design.cells
        frame = design.frame(seeds)
        place = {(cell, seed): row for row, (cell, seed) in enumerate(zip(frame["cell"], frame["seed"], strict=True))}
        self.reference = [place[first, seed] for seed in range(seeds)]
        self.arms = [[place[cell, seed] for seed in range(seeds)] for cell in others]

    def __call__(self, y: Array) -> PValues:
        differences = y[self.arms] - y[self.reference]  # [effects, seeds, studies]
        n = differences.shape[1]
        return PValues({CHOSEN: t_test(differences.mean(1), differences.std(1, ddof=1) / math.sqrt(n), n - 1)})


class Crossed:
    """Main effects, interactions and shares of the gap."""

    def __init__(self, design: Design, seeds: int) -> None:
        frame = design.frame(seeds)
        model = seeds_and_effects(frame, design.cells, design.study.factors)
        strata = [stratum for stratum, _ in strata_of(model, frame["seed"].to_numpy())]
        self.main, self.pairs = strata[0], strata[1] if len(strata) > 1 else None
        self.shares = values_stratum(frame, design.cells, design.study.factors, *corners(design.study))

    def __call__(self, y: Array) -> PValues:
        squares = self.main.squares(y)
        none = np.zeros_like(squares.own)
        pooled = self.main.largest(replace(squares, own=none))
        choices = {
            CHOSEN: self.main.largest(squares),
            "residual": (none + squares.residual, none + self.main.residual_df),
            "seed x effect or residual": pooled,
            "seed x this effect": (squares.own, none + [[basis.shape[1]] for basis in self.main.own]),
        }
        p = {name: p_values(self.main, y, *error) for name, error in choices.items()}
        rest = [
            None if stratum is None else p_values(stratum, y, *stratum.largest(stratum.squares(y)))
            for stratum in (self.shares, self.pairs)
        ]
        return PValues(p, *rest)


def p_values(stratum: Stratum, y: Array, square: Array, df: Array) -> Array:
    """Returns the p [effects, studies] of a stratum's contrasts, whose errors have these mean squares and degrees of
    freedom."""
    se = stratum.lengths[:, None] * np.sqrt(square)
    p: Array = t_test(stratum.contrasts @ y, se, df)
    return p


def any_finding(p: Array | None) -> float:
    """Returns the share of studies whose smallest p Holm's first step rejects."""
    return math.nan if p is None else float((p.min(0) * len(p) <= ALPHA).mean())


def found_last(p: Array) -> float:
    """Returns the share of studies in which the last effect survives Holm's procedure."""
    order = np.argsort(p, axis=0)
    ordered = np.take_along_axis(p, order, 0) * np.arange(len(p), 0, -1)[:, None]
    rejected = np.maximum.accumulate(ordered, axis=0) <= ALPHA
    return float((rejected & (order == len(p) - 1)).any(0).mean())


def check(design: Design, frame: pd.DataFrame, y: Array, tested: PValues, studies: int) -> None:
    """Raises SystemExit unless the report's own judgement of the first studies has the same p."""
    metric = design.study.metrics[0]
    complete = replace(design.study, seeds=sorted(set(frame["seed"])))
    for study in range(studies):
        result = judge(complete, design.cells, frame.assign(value=y[:, study]), metric)
        reported = {"main": [d.effect.p for d in result.decisions], "shares": [d.effect.p for d in result.shares]}
        expected = {
            "main": tested.p[CHOSEN][:, study],
            "shares": [] if tested.shares is None else tested.shares[:, study],
        }
        for name, p in reported.items():
            if not np.allclose(p, expected[name], rtol=1e-6, atol=1e-12):
                raise SystemExit(f"{design.name}: the report's p of {name} are {p}, simulated {expected[name]}")


# --- conditions -------------------------------------------------------------------------------------------------------


def rows(design: Design, seeds: int, studies: int, checked: int) -> Iterator[dict[str, Any]]:
    """Yields a row of the table for each way in which effects vary between seeds."""
    frame, test = design.frame(seeds), (Crossed if design.crossed else Paired)(design, seeds)
    conditions = [(0.0, "all"), *((sd, variation) for variation in ("all", "half", "one") for sd in SPREADS[1:])]
    for index, (spread, vary) in enumerate(conditions):
        rng = np.random.default_rng([seeds, index])
        y = simulated(design, frame, spread, vary, studies, rng)
        null = test(y)
        check(design, frame, y, null, checked)
        smallest = detectable(design, seeds, spread)
        true, detected = (test(with_effect(design, frame, y, size)).p for size in (TRUE, smallest))
        yield {
            "design": design.name,
            "seeds": seeds,
            "sd": spread,
            "vary": vary,
            "false": any_finding(null.p[CHOSEN]),
            "shares": any_finding(null.shares),
            "interactions": any_finding(null.interactions),
            "power": found_last(true[CHOSEN]),
            "detectable": smallest,
            "found": found_last(detected[CHOSEN]),
            "others": {name: (any_finding(p), found_last(true[name])) for name, p in null.p.items() if name != CHOSEN},
        }


def detectable(design: Design, seeds: int, spread: float) -> float:
    """Returns the plan's smallest detectable difference at 80 % power, had it known how effects vary, for the last
    effect."""
    if not design.crossed:
        return detectable_difference(math.hypot(math.sqrt(2), spread), seeds, ALPHA / (len(design.cells) - 1))
    levels, factors = list(design.cells.values()), design.study.factors
    alpha = ALPHA / sum(len(names) - 1 for names in factors.values())
    return list(detectable_effects(levels, factors, seeds, math.sqrt(2), alpha, seed_sd=spread).values())[-1]


# --- the table --------------------------------------------------------------------------------------------------------


def percent(share: float) -> str:
    """Returns a share in per cent."""
    return "-" if math.isnan(share) else f"{100 * share:.1f}"


def markdown(results: list[dict[str, Any]], studies: int, checked: int, command: str) -> str:
    """Returns the README.md of all rows."""
    names = list(dict.fromkeys(name for row in results for name in row["others"]))
    head = ["design", "seeds", "sd between seeds", "effects that vary", "**false findings**", "of shares"]
    head += [
        "of interactions",
        f"power at {TRUE:g}",
        "plan's smallest",
        "power there",
        *(f"{name} (power)" for name in names),
    ]
    lines = [f"| {' | '.join(head)} |", f"|---|{'---:|' * 2}---|{'---:|' * (len(head) - 4)}"]
    for row in results:
        numbers = [
            f"**{percent(row['false'])}**",
            *(percent(row[name]) for name in ("shares", "interactions", "power")),
        ]
        numbers += [f"{row['detectable']:.2f}", percent(row["found"])]
        numbers += [f"{percent(false)} ({percent(power)})" for false, power in row["others"].values()]
        numbers += ["-"] * (len(names) - len(row["others"]))
        lines.append(f"| {row['design']} | {row['seeds']} | {row['sd']:g} | {row['vary']} | {' | '.join(numbers)} |")
    error = 100 * math.sqrt(ALPHA * (1 - ALPHA) / studies)
    return "\n".join(
        [TEXT.format(studies=studies, error=error, power=TRUE, checked=checked, command=command), *lines, ""]
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--out", type=Path, required=True, help="folder of README.md")
    parser.add_argument("--studies", type=int, default=10_000, help="of each line")
    parser.add_argument("--checked", type=int, default=3, help="of these, judged by the report as well")
    arguments = parser.parse_args()
    results = []
    for design, counts in designs():
        for seeds in counts:
            for row in rows(design, seeds, arguments.studies, arguments.checked):
                results.append(row)
                print(*(f"{key}={value}" for key, value in row.items()), flush=True)
    arguments.out.mkdir(parents=True, exist_ok=True)
    command = f"python tools/simulate_verdicts.py {shlex.join(sys.argv[1:])}"
    text = markdown(results, arguments.studies, arguments.checked, command)
    write_atomically(arguments.out / "README.md", text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
