"""The plots of effects: forest, waterfall of an attribution, values by cell and seed. Text of a row stands above it."""

import math
from collections.abc import Mapping, Sequence

import pandas as pd
from matplotlib.axes import Axes

from dinoswap.studies.estimates import Percent
from dinoswap.studies.report.canvas import (
    GREY,
    INK,
    PALETTE,
    Canvas,
    Plot,
    row_axes,
    row_height,
    row_text,
    styled,
    styles,
)
from dinoswap.studies.report.words import interval
from dinoswap.studies.statistics import Attribution, Decision, Estimate
from dinoswap.studies.study import Metric

BLUE, RED, GREEN, PURPLE = PALETTE[:4]
# By verdict: colour and marker, so that neither is needed to read the other
VERDICTS: Mapping[str, tuple[str, str]] = {
    "better": (BLUE, "o"),
    "better because fewer runs fail": (BLUE, "P"),
    "worse": (RED, "s"),
    "worse because more runs fail": (RED, "X"),
    "equivalent": (GREEN, "D"),
    "not distinguishable": (GREY, "o"),
    "fails": (PURPLE, "X"),
    "not tested": (GREY, "*"),
    "no estimate": (GREY, "x"),
}
FARTHEST = 3.0
"""An axis ends at this many times the largest difference: the intervals of two seeds are ten times as long."""
NAMED_SEEDS = 10
"""Seeds that a legend names at most: with more, it would be larger than the plot."""


@styled
def forest(decisions: Sequence[Decision], metric: Metric, name: str, title: str, than: str) -> Plot:
    """Draws a forest plot: each effect with its interval and verdict. `than` says what the differences are measured
    against."""
    canvas = Canvas(row_height(len(decisions)))
    axes = row_axes(canvas, len(decisions))
    smallest = metric.smallest_effect
    end = reach([decision.effect for decision in decisions], 1.5 * smallest)
    axes.barh(range(len(decisions)), 2 * smallest, left=-smallest, height=0.34, color=GREY, alpha=0.25)
    _zero(axes, len(decisions))
    axes.set_xlim(-end, end)
    for y, decision in enumerate(decisions):
        row_text(canvas, axes, y, decision.effect.name, interval(decision.effect), decision.kind)
        _draw(canvas, axes, y, decision)
    axes.set_xlabel(f"{metric.name}, difference to {than}")
    better = "right" if metric.higher_is_better else "left"
    caption = f"Differences in {metric.name} to {than}. Better is to the {better}; grey: below {smallest:g}."
    named = "; ".join(f"{decision.effect.name} {interval(decision.effect)} {decision.kind}" for decision in decisions)
    return canvas.finish(name, title=title, caption=caption, alt=f"Effects on {metric.name}: {named}.")


@styled
def waterfall(attribution: Attribution, shares: Sequence[Decision], metric: Metric) -> Plot:
    """Draws the attribution as steps from one corner of the design to the other, the largest share first. `shares` are
    the decisions on its values."""
    ordered = sorted(shares, key=lambda share: -abs(share.effect.mean))
    steps = [*(share.effect for share in ordered), attribution.gap]
    starts = [sum(step.mean for step in steps[:y]) for y in range(len(ordered))] + [0.0]
    canvas = Canvas(row_height(len(steps)))
    axes = row_axes(canvas, len(steps))
    _zero(axes, len(steps))
    for y, (step, start) in enumerate(zip(steps, starts, strict=True)):
        color = GREY if step is attribution.gap else BLUE if (step.mean > 0) == metric.higher_is_better else RED
        (bar,) = axes.barh(y, step.mean, left=start, height=0.3, color=color)
        canvas.tip(bar, f"{step.name}: {interval(step)}")
        if math.isfinite(step.se):
            axes.plot([start + step.low, start + step.high], [y, y], color=INK, linewidth=1)
        if y < len(ordered):
            axes.plot([start + step.mean] * 2, [y, y + 1], color=INK, linewidth=0.6, linestyle=":")
        row_text(canvas, axes, y, "the whole gap" if step is attribution.gap else step.name, interval(step))
    low, high = min([*starts, attribution.gap.mean]), max([*starts, attribution.gap.mean])
    beyond = reach(steps, (high - low) / 2)
    axes.set_xlim(max(axes.get_xlim()[0], low - beyond), min(axes.get_xlim()[1], high + beyond))
    axes.set_xlabel(f"{metric.name}, change from the first corner")
    caption = (
        f"The gap in {metric.name} between the two corners, split among the factors (Shapley values), with 95 % "
        f"intervals. Blue is better, red is worse. Of {2 ** len(ordered)} combinations "
        f"{attribution.measured} were measured with every seed; the rest is modelled."
    )
    named = "; ".join(f"{step.name} {interval(step)}" for step in steps)
    return canvas.finish("attribution", title="Where the gap comes from", caption=caption, alt=f"Attribution: {named}.")


@styled
def paired_seeds(outcomes: pd.DataFrame, cells: Sequence[str], metric: Metric) -> Plot:
    """Draws the values by cell (rows), with the runs of one seed joined. Runs that did not complete are counted at the
    end of the row."""
    canvas = Canvas(row_height(len(cells)) + 0.35)
    axes = row_axes(canvas, len(cells))
    table = outcomes.pivot(index="cell", columns="seed", values="value").reindex(index=list(cells))
    for seed, style in zip(table.columns, styles(len(table.columns)), strict=True):
        color, marker, dash = style
        axes.plot(table[seed], range(len(cells)), linewidth=0.8, color=color, linestyle=dash)
        for y, (cell, value) in enumerate(table[seed].items()):
            (dot,) = axes.plot([value], [y], linestyle="none", marker=marker, markersize=5, color=color)
            canvas.tip(dot, f"{cell}, seed {seed}: {value:.4g}")
            if y == 0 and len(table.columns) <= NAMED_SEEDS:
                dot.set_label(f"seed {seed}")
    for y, cell in enumerate(cells):
        axes.plot([table.loc[cell].mean()], [y], marker="|", markersize=11, color=INK, markeredgewidth=1.4)
        row_text(canvas, axes, y, f"{y + 1}. {cell}", _ends(outcomes[outcomes["cell"] == cell]))
    axes.set_xlabel(metric.name)
    if len(table.columns) <= NAMED_SEEDS:
        canvas.figure.legend(loc="outside lower center", ncols=min(len(table.columns), 5), fontsize=8)
    caption = (
        f"{metric.name} of each run. A line joins the runs of one seed, which share data order, crops, masks and "
        "initial weights as far as the cells allow: parallel lines mean that pairing by seed takes noise away. "
        "The bar is the mean of the runs that have a value."
    )
    means = "; ".join(f"{cell} {table.loc[cell].mean():.4g}" for cell in cells)
    alt = f"{metric.name} by cell and seed. Means: {means}."
    return canvas.finish("seeds", title="Every run", caption=caption, alt=alt)


def _zero(axes: Axes, rows: int) -> None:
    """Draws a line at a difference of zero, interrupted where the rows have text."""
    axes.vlines(
        [0.0] * rows, [y - 0.17 for y in range(rows)], [y + 0.17 for y in range(rows)], color=INK, linewidth=0.8
    )


def _draw(canvas: Canvas, axes: Axes, y: int, decision: Decision) -> None:
    """Draws a point with its interval, which is cut at the limits of the axis; nothing where the mean is not finite."""
    effect, (color, marker) = decision.effect, VERDICTS[decision.kind]
    if not math.isfinite(effect.mean):
        return
    low, high = axes.get_xlim()
    if math.isfinite(effect.se):
        ends = [min(max(end, low), high) for end in (effect.low, effect.high)]
        (line,) = axes.plot(ends, [y, y], color=color, linewidth=2.2)
        canvas.tip(line, f"{effect.name}: {decision.words}")
        for end, arrow in ((effect.low, "<"), (effect.high, ">")):
            if not low <= end <= high:
                axes.plot([low if end < low else high], [y], marker=arrow, color=color, markersize=6, clip_on=False)
    filled = "none" if decision.kind == "not distinguishable" else "full"
    (point,) = axes.plot([effect.mean], [y], marker=marker, color=color, fillstyle=filled, markersize=7)
    canvas.tip(point, f"{effect.name}: {decision.words}")


def reach(estimates: Sequence[Estimate | Percent], least: float) -> float:
    """Returns how far from zero an axis goes on either side, at least `least`."""
    means = [abs(estimate.mean) for estimate in estimates if math.isfinite(estimate.mean)]
    limits = [limit for estimate in estimates for limit in (estimate.low, estimate.high)]
    ends = [abs(limit) for limit in limits if math.isfinite(limit)]
    needed = max([least, *means])
    return 1.08 * max(needed, min(max([0.0, *ends]), FARTHEST * needed))


def _ends(runs: pd.DataFrame) -> str:
    """Returns what did not complete, as in '2 diverged, 1 missing', or an empty text."""
    counts = runs["status"].value_counts()
    return ", ".join(f"{count} {status}" for status, count in counts.items() if status != "completed")
