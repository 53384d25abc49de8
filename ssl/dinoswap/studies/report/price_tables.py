"""The tables of what effects and cells cost (prices.py)."""

import math
from collections.abc import Mapping

import pandas as pd

from dinoswap.studies.costs import COSTS
from dinoswap.studies.over_training import side
from dinoswap.studies.pareto import Standing
from dinoswap.studies.report.analysis import Analysis
from dinoswap.studies.report.markup import Table
from dinoswap.studies.report.prices import RATE, Prices
from dinoswap.studies.report.words import interval, number, ratio
from dinoswap.studies.statistics import Estimate
from dinoswap.studies.time_to_value import CellHours

SIDES = {-1: "cheaper", 0: "not distinguishable", 1: "dearer"}


def of_prices(analysis: Analysis, prices: Prices) -> list[Table]:
    """Returns the tables of a study's prices, without empty ones."""
    chosen = [effects_and_prices(prices, analysis.reference), cells(analysis), hours(prices)]
    return [table for table in chosen if table.rows]


def effects_and_prices(prices: Prices, than: str) -> Table:
    """Returns the table of the effects on the metric that decides beside those on the time per image; `than` is what
    they are measured against."""
    name = prices.metric.name
    rows = [
        [
            effect.name,
            interval(effect) or "-",
            priced.decision.kind,
            ratio(priced.log_time) or "-",
            cost_side(priced.log_time),
        ]
        for priced in prices.effects
        for effect in [priced.decision.effect]
    ]
    columns = ["effect", f"difference in {name}", "verdict", "time per image", "cost"]
    caption = f"Effects on {name} and on the time per image, against {than}, with 95 % intervals"
    return Table("effects and prices", caption, columns, rows, ["effect", "verdict", "cost"])


def cost_side(log_time: Estimate) -> str:
    """Returns whether the interval of an effect on the time per image says that it costs more or less; '-' without an
    interval."""
    return SIDES[side(log_time)] if math.isfinite(log_time.se) else "-"


def cells(analysis: Analysis) -> Table:
    """Returns the table of the cells: runs, means of metrics and costs, and which are on the front."""
    metrics = [metric.name for metric in analysis.study.metrics]
    costs = {name: cost for name, cost in COSTS.items() if name not in metrics}
    front = analysis.prices.fronts[RATE] if analysis.prices else {}
    rows = []
    for index, cell in enumerate(analysis.collected.design.cells, start=1):
        runs = analysis.collected.of_cell(cell.name)
        ended = [run for run in runs if run.ended]
        measured = pd.DataFrame({name: [run.value(name) for run in ended] for name in (*metrics, *costs)}, dtype=float)
        mean, sd = measured.mean(), measured.std()
        values = [number(mean[name]) + (f" ± {number(sd[name], 2)}" if pd.notna(sd[name]) else "") for name in metrics]
        spent = [number(mean[name] / cost.unit, 3) for name, cost in costs.items()]
        place = [str(index), cell.name, f"{len(ended)}/{len(runs)}", _standing(front, cell.name)]
        rows.append([*place, *values, *spent])
    columns = ["#", "cell", "runs", "on the front", *metrics, *(cost.title for cost in costs.values())]
    caption = (
        "Cells: mean and standard deviation over seeds, what a run costs (core- or GPU-hours), and whether a cell is "
        f"on the front of {metrics[0]} and images per second, with the share of resamples of the seeds in which it is"
    )
    return Table("cells", caption, columns, rows, ["cell"])


def _standing(front: Mapping[str, Standing], cell: str) -> str:
    """Returns where a cell stands as '84% (yes)', or '-' for one that is no candidate."""
    if cell not in front:
        return "-"
    on_front, share = front[cell]
    answer = "yes" if on_front else "no"
    return f"{share:.0%} ({answer})" if math.isfinite(share) else answer


def hours(prices: Prices) -> Table:
    """Returns the table of the hours of training until the runs of each cell have a value."""
    names = dict.fromkeys(cell.cell for _, cells_of in prices.hours for cell in cells_of)
    columns, rows = ["cell"], [[name] for name in names]
    for target, cells_of in prices.hours:
        shown, by_name = number(target.mean), {cell.cell: cell for cell in cells_of}
        columns += [f"hours to {shown}", f"hours to {shown}, against the reference"]
        for row in rows:
            cell = by_name.get(row[0])
            row += [_hours(cell), ratio(cell.log_ratio) or "-"] if cell else ["-", "-"]
    values = "; ".join(f"{number(target.mean)}: {target.words}" for target, _ in prices.hours)
    caption = (
        f"Core- or GPU-hours of training until a run has a value of {prices.metric.name}, median over seeds. {values}"
    )
    return Table("hours", caption, columns, rows, ["cell"])


def _hours(cell: CellHours) -> str:
    """Returns the hours of a cell as '0.12', '0.12 (2 of 3 runs)' or 'not in 0.3 h (1 of 3 runs)'."""
    runs = f" ({cell.reached} of {cell.runs} runs)"
    if cell.hours == math.inf:
        return f"not in {number(cell.within, 2)} h{runs}"
    return f"{number(cell.hours, 2)}{runs if cell.reached < cell.runs else ''}"
