"""How often studies that are looked at more than once report an effect that is none, and how many seeds they take.

    python tools/simulate_looks.py -o results/reference/verdicts

Outcomes are those of simulate_verdicts.py. Studies without any effect are looked at in every way that the record of
looks can tell apart: as planned; after every seed without a plan; as planned once, and after every seed from then on,
always or only where the first look was promising. Each stops at its first finding. Then effects of several sizes are
looked for as planned, by an arm against a reference: what is decided, after how many seeds.

p-values come from the functions that the report calls (statistics.repeated), for all studies of a condition at once.
"""

import argparse
import math
import shlex
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dinoswap.files.writing import write_atomically
from dinoswap.studies.looks import Looks
from dinoswap.studies.statistics.factorial import seeds_and_effects, strata_of
from dinoswap.studies.statistics.repeated import Look, operating_characteristics
from dinoswap.studies.study import read_study
from simulate_verdicts import ALPHA, SPREADS, Array, Design, of_study, simulated

PLANS = (Looks((3, 6, 12)), Looks((3, 6, 12), "pocock"), Looks((5,)))
PROMISING = 0.3
"""The smallest p after Holm at the first look below which the opportunist looks again after every seed."""
SIZES = (0.0, 0.25, 0.5, 1.0, 2.0)
"""True effects, in smallest effects of interest."""
SMALLEST = 2.0
"""The smallest effect of interest, in standard deviations of the difference between two runs of a seed."""
ARMS = 8

TEXT = """# Looking at studies before their last seed

Boundaries are those of `seeds: {{looks: [3, 6, 12], spending: ...}}`: see `studies/statistics/boundaries.py`, and for
looks that are not planned `repeated.py`. Made by `{command}`.

## False findings

Of {studies} simulated studies per line without any effect, the percentage in which some look finds one after Holm's
correction (standard error {error:.1f} at 5 %), if the study stops at its first finding. Effects vary between seeds as
in [the other table](README.md).

- *as planned*: at the planned looks alone.
- *every seed*: without a plan, after each seed from the second on.
- *planned, then every seed*: the first planned look, and from then on after each seed.
- *where promising*: the same where the smallest p of the first look is below {promising:g}, elsewhere as planned.
- *once*: one t test after all seeds, as in a study without looks; *naive*: that t test after every seed.

At most 5 % where effects vary alike, and always for arms that are compared with a reference. Where only some effects of
a crossed design vary, the error that they are tested against is too small for these, the more so the fewer seeds there
are (the other table), and `pocock` spends more on looks with few seeds: crossed designs do better with
`obrien_fleming`.

{errors}

## Seeds

Of {studies} comparisons of an arm with a reference per line, one of a family of {arms} (corrected as if no other had
been decided yet, which is cautious). True effects are multiples of the smallest effect of interest, which here is
{smallest:g} standard deviations of the difference between two runs of a seed. *Found* and *equivalent* are percentages,
*seeds* the mean number until the arm is decided or the plan ends; beside them one test after {last} seeds.

{seeds}
"""


class Statistics(NamedTuple):
    """Of a number of seeds: means, standard errors and degrees of freedom of the effects [effects, studies], and of how
    many effects the error is pooled."""

    mean: Array
    se: Array
    df: Array
    seeds: int
    pooled: int


def paired(design: Design, y: Array, seeds: int) -> Statistics:
    """Of each cell against the first, from outcomes [rows, studies] that are sorted by seed and cell."""
    cells = sorted(design.cells)
    first = cells.index(next(iter(design.cells)))
    by_seed = y[: seeds * len(cells)].reshape(seeds, len(cells), -1)
    differences = np.delete(by_seed, first, axis=1) - by_seed[:, [first]]
    mean, se = differences.mean(0), differences.std(0, ddof=1) / math.sqrt(seeds)
    return Statistics(mean, se, np.full_like(mean, seeds - 1), seeds, 1)


def crossed(design: Design, y: Array, seeds: int) -> Statistics:
    """Of the main effects."""
    frame = design.frame(seeds)
    model = seeds_and_effects(frame, design.cells, design.study.factors)
    stratum = strata_of(model, frame["seed"].to_numpy())[0][0]
    rows = y[: len(frame)]
    square, df = stratum.largest(stratum.squares(rows))
    pooled = stratum.pooled.shape[1] // (seeds - 1)
    return Statistics(stratum.contrasts @ rows, stratum.lengths[:, None] * np.sqrt(square), df, seeds, pooled)


def finds(at: Statistics, look: Look | None) -> Array:
    """Returns the smallest p [studies] after Holm's first step; without a look that of a single t test."""
    look = look or Look(Looks((at.seeds,)), 0, planned=True)
    p = look.p(at.mean, at.se, at.df, at.seeds, at.pooled)
    smallest: Array = p.min(0) * len(p)
    return smallest


def false_findings(plan: Looks, by_seeds: dict[int, Statistics]) -> dict[str, float]:
    """Returns the share of studies with a finding, by how they are looked at."""
    counts = list(plan.counts)
    every = list(range(2, counts[-1] + 1))
    planned = {n: finds(by_seeds[n], Look(plan, k, planned=True)) <= ALPHA for k, n in enumerate(counts)}
    anytime = {n: finds(by_seeds[n], Look(plan, 0, planned=False)) <= ALPHA for n in every}
    shares = {
        "as planned": np.any(list(planned.values()), axis=0),
        "every seed": np.any(list(anytime.values()), axis=0),
    }
    if len(counts) > 1:
        after = {n: finds(by_seeds[n], Look(plan, 1, planned=False)) <= ALPHA for n in every if n > counts[0]}
        then = planned[counts[0]] | np.any(list(after.values()), axis=0)
        promising = finds(by_seeds[counts[0]], Look(plan, 0, planned=True)) <= PROMISING
        shares["planned, then every seed"] = then
        shares["where promising"] = np.where(promising, then, shares["as planned"])
    shares["once"] = finds(by_seeds[counts[-1]], None) <= ALPHA
    shares["naive"] = np.any([finds(by_seeds[n], None) <= ALPHA for n in every], axis=0)
    return {name: float(share.mean()) for name, share in shares.items()}


def conditions() -> Iterator[tuple[Design, float, str]]:
    official, attribution = read_study("from_official"), read_study("attribution")
    one = Design("from_official, one at a time", official, of_study(official))
    three = dict(list(attribution.factors.items())[:3])
    whole = replace(attribution, design="factorial", factors=three)
    for spread in (0.0, 1.0):
        yield one, spread, "all"
    for design in (Design("2^3, whole", whole, of_study(whole)),
                   Design("attribution, 16 of 128 cells", attribution, of_study(attribution))):  # fmt: skip
        for spread in SPREADS:
            yield design, spread, "all"
        yield design, 1.0, "half"
        yield design, 1.0, "one"


def errors(studies: int) -> Iterator[dict[str, Any]]:
    last = max(plan.counts[-1] for plan in PLANS)
    for index, (design, spread, vary) in enumerate(conditions()):
        y = simulated(design, design.frame(last), spread, vary, studies, np.random.default_rng([7, index]))
        statistics = crossed if design.crossed else paired
        by_seeds = {n: statistics(design, y, n) for n in range(2, last + 1)}
        for plan in PLANS:
            words = f"{list(plan.counts)} {plan.spending}" if len(plan.counts) > 1 else f"{plan.counts[0]}"
            varying = {
                "design": design.name,
                "sd between seeds": f"{spread:g}",
                "effects that vary": vary,
                "looks": words,
            }
            yield varying | false_findings(plan, by_seeds)


def percent(share: float) -> str:
    return "-" if math.isnan(share) else f"{100 * share:.1f}"


def table(rows: Sequence[dict[str, Any]]) -> str:
    head = list(dict.fromkeys(name for row in rows for name in row))
    lines = [f"| {' | '.join(head)} |", "|" + "---|" + "---:|" * (len(head) - 1)]
    for row in rows:
        cells = [row.get(name, math.nan) for name in head]
        lines.append(f"| {' | '.join(cell if isinstance(cell, str) else percent(cell) for cell in cells)} |")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--out", type=Path, required=True, help="folder of looks.md")
    parser.add_argument("--studies", type=int, default=10_000, help="of each line")
    arguments = parser.parse_args()
    rows = []
    for row in errors(arguments.studies):
        print(*(f"{key}={value}" for key, value in row.items()), flush=True)
        rows.append(row)
    powers = []
    for size in SIZES:
        line: dict[str, Any] = {"true effect": f"{size:g}"}
        for plan in (*PLANS[:2], Looks((12,))):
            name = plan.spending if len(plan.counts) > 1 else f"once, {plan.counts[0]}"
            result = operating_characteristics(plan, size * SMALLEST, SMALLEST, ALPHA / ARMS, arguments.studies)
            shown = (percent(result.different), percent(result.equivalent), f"{result.seeds:.1f}")
            line |= {
                f"{what} ({name})": text for what, text in zip(("found", "equivalent", "seeds"), shown, strict=True)
            }
        powers.append(line)
    arguments.out.mkdir(parents=True, exist_ok=True)
    text = TEXT.format(
        command=f"python tools/simulate_looks.py {shlex.join(sys.argv[1:])}",
        studies=arguments.studies,
        error=100 * math.sqrt(ALPHA * (1 - ALPHA) / arguments.studies),
        promising=PROMISING,
        errors=table(rows),
        arms=ARMS,
        last=12,
        smallest=SMALLEST,
        seeds=table(powers),
    )
    write_atomically(arguments.out / "looks.md", text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
