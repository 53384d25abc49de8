"""What `dinoswap-ablate plan` prints: the cells and where they stand, what they cost, what can be detected, how short
runs may be.
"""

import math
from collections.abc import Iterator, Mapping, Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from dinoswap.studies.design import Design
from dinoswap.studies.forecast import (
    TO_COME,
    Cost,
    Spread,
    comparisons,
    costs,
    crossed,
    detectable,
    hours_left,
    seeds_expected,
    seeds_that_detect,
    spread_of,
)
from dinoswap.studies.ledger import Entry, run_statuses
from dinoswap.studies.shortest import how_short
from dinoswap.studies.status import Row, rows, summary
from dinoswap.studies.study import Metric, Study


def show_plan(
    study: Study, design: Design, entries: Sequence[Entry], console: Console, *, probing: bool, given: Spread | None
) -> None:
    """Prints the plan. With `probing`, cells of which no run has finished are timed; `given` is the spread that power
    is computed from, else that of finished runs."""
    metric = study.metrics[0]
    known = costs(entries, probing)
    table_rows = rows(entries, metric.name)
    console.print(Text(f"{study.name}: {study.question}"), soft_wrap=True)
    console.print(cells_table(entries, table_rows, known))
    for line in [
        *design.notes,
        *cost_words(study, entries, known),
        *power_words(study, design, entries, given),
        *how_short(study, design, entries),
    ]:
        console.print(Text(line), soft_wrap=True)


def cells_table(entries: Sequence[Entry], table_rows: Sequence[Row], known: Mapping[str, Cost]) -> Table:
    """Returns the table of cells with their runs, their states and what a run costs."""
    shown = Table(caption=summary(row.state for row in table_rows))
    for name in ("cell", "run_id", "seeds", "runs", "hours of one"):
        shown.add_column(name)
    for cell in dict.fromkeys(entry.cell for entry in entries):
        runs = [(entry, row) for entry, row in zip(entries, table_rows, strict=True) if entry.cell == cell]
        seeds = " ".join(str(entry.seed) for entry, _ in runs)
        states = summary(row.state for _, row in runs).partition(": ")[2]
        hours = f"{known[cell].hours:.3g} ({known[cell].source})" if cell in known else "?"
        shown.add_row(*map(Text, (cell, runs[0][0].run_id, seeds, states, hours)))
    return shown


def cost_words(study: Study, entries: Sequence[Entry], known: Mapping[str, Cost]) -> Iterator[str]:
    """Yields lines on what the runs to come will cost, and whether the whole study keeps its budget."""
    statuses = run_statuses([entry.folder for entry in entries])
    runs = sum(status.state in TO_COME for status in statuses)
    unknown = sorted({entry.cell for entry in entries} - set(known))
    if not known:
        yield f"{runs} runs to come; of their cost nothing is known, --probe times some steps of each cell"
        return
    unit = "GPU-hours" if next(iter(known.values())).gpu else "core-hours"
    pairs = [(entry, status) for entry, status in zip(entries, statuses, strict=True) if entry.cell in known]
    missing = sum(hours_left(entry, status, known[entry.cell]) for entry, status in pairs)
    yield f"{runs} runs to come, {missing:.3g} {unit}" + (f", and {', '.join(unknown)}" if unknown else "")
    total = sum(known[entry.cell].hours for entry, _ in pairs)
    if study.budget and study.budget.hours and total > study.budget.hours:
        yield f"warning: all runs together take {total:.3g} {unit}, more than the budget of {study.budget.hours:g}"
    steps = sum(entry.config["trainer"]["max_steps"] for entry in entries)
    if study.budget and study.budget.steps and steps > study.budget.steps:
        yield f"warning: all runs together train {steps} steps, more than the budget of {study.budget.steps}"


def power_words(study: Study, design: Design, entries: Sequence[Entry], given: Spread | None) -> Iterator[str]:
    """Yields lines on the smallest detectable difference in the metric that decides, and whether it is small enough."""
    metric, seeds = study.metrics[0], len(study.seeds)
    if seeds < 2:
        yield "warning: with one seed no difference can be told from chance; give more, as in seeds=3"
        return
    spread = given or _measured(study, design, entries)
    count = comparisons(study, design)
    detected = f"smallest detectable difference at 80 % power{f', after Holm over {count},' if count > 1 else ''}"
    if spread is None:
        yield (
            f"{metric.name}: how much it varies is not known yet. With {seeds} seeds the {detected} is "
            f"{_range(detectable(study, design, 1.0))} standard deviations of the difference between two runs of one "
            f"seed{_if_effects_vary(study, design, 1.0)}; --sd gives a guess of it"
        )
        return
    sd, smallest = spread.sd, detectable(study, design, spread.sd)
    more = _if_effects_vary(study, design, sd) if given else ""
    yield (
        f"{metric.name}: with {seeds} seeds the {detected} is {_range(smallest)}{more}, where two runs of one seed "
        f"differ with a standard deviation of {sd:.3g} ({spread.source})"
    )
    yield from looks_words(study, design, sd)
    blind = [name for name, size in smallest.items() if size > metric.smallest_effect]
    if blind:
        yield (
            f"warning: the smallest effect of interest is {metric.smallest_effect:g}: too small to be detected for "
            f"{', '.join(blind)}; {remedy(study, design, metric, sd)}"
        )


def _measured(study: Study, design: Design, entries: Sequence[Entry]) -> Spread | None:
    """Returns the spread of the study's finished runs, None where they do not tell."""
    statuses = run_statuses([entry.folder for entry in entries])
    measured = spread_of(study, design, entries, statuses, study.metrics[0])
    if measured is None:
        return None
    tested = "seed x effect or the residual, " if crossed(study) else ""
    return Spread(measured[0], f"{tested}from {measured[1]} degrees of freedom")


def looks_words(study: Study, design: Design, sd: float) -> Iterator[str]:
    """Yields a line on how many seeds are to be expected where arms stop at planned looks."""
    if study.looks is None or not sd > 0:
        return
    counts = ", ".join(map(str, study.looks.counts))
    if crossed(study):
        yield f"looks after {counts} seeds ({study.looks.spending}): cells go on until every effect is decided"
        return
    expected = seeds_expected(study, design, sd)
    means = ", ".join(f"{seeds:.1f} for a difference of {size:g}" for size, seeds in expected.items())
    yield f"looks after {counts} seeds ({study.looks.spending}); seeds to be expected of an arm: {means}"


def _if_effects_vary(study: Study, design: Design, sd: float) -> str:
    """Returns the range that is detectable if effects vary between seeds, which the cells of a crossed design do not
    average out as they do the noise of runs; an empty text for other designs."""
    if not crossed(study):
        return ""
    larger = detectable(study, design, sd, seed_sd=sd / math.sqrt(2))
    return f" ({_range(larger)} if effects vary between seeds by one standard deviation of a run)"


def remedy(study: Study, design: Design, metric: Metric, sd: float) -> str:
    """Returns in words what it would take to detect the smallest effect of a metric."""
    seeds = seeds_that_detect(study, design, sd, metric.smallest_effect)
    return f"it would take {seeds} seeds" if seeds else "more cells are needed, as some effects cannot be told apart"


def _range(sizes: Mapping[str, float]) -> str:
    """Returns the smallest and the largest of these sizes in words, one number where they are the same."""
    low, high = min(sizes.values()), max(sizes.values())
    return f"{low:.3g}" if math.isclose(low, high, rel_tol=1e-3) else f"{low:.3g} to {high:.3g}"
