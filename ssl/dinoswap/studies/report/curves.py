"""The plots of what runs did on the way: learning curves, and effects over training."""

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from dinoswap.studies.over_training import Course
from dinoswap.studies.report.canvas import (
    GREY,
    INK,
    SIZE,
    WIDTH,
    Canvas,
    Plot,
    shortened,
    styled,
    styles,
    text_width,
)
from dinoswap.studies.report.collect import Collected
from dinoswap.studies.report.figures import VERDICTS, reach
from dinoswap.studies.report.words import counted, interval

DRAWN = 150
"""Points of a curve; longer ones are thinned."""
COLOURED = 6
"""Cells that have a colour; with more, a reader could not tell them apart."""
NAME_WIDTH = 72 * WIDTH - 6 * SIZE
"""Points that a legend leaves for a name."""


@styled
def learning_curves(collected: Collected, name: str, coloured: Sequence[str], plot: str, title: str) -> Plot | None:
    """Draws the learning curves of what was logged as `name`, with cells that are not `coloured` in grey. Returns None
    where nothing was logged."""
    logged = collected.curves[collected.curves["name"] == name].dropna(subset="value")
    if logged.empty:
        return None
    cells = [cell.name for cell in collected.design.cells if (logged["cell"] == cell.name).any()]
    shown = [cell for cell in cells if cell in coloured][:COLOURED]
    columns = 2 if max(map(text_width, shown), default=0.0) < NAME_WIDTH / 2 else 1
    canvas = Canvas(2.7 + 0.16 * len(shown) / columns)
    (axes,) = canvas.axes()
    for cell in [cell for cell in cells if cell not in shown]:
        _curve(canvas, axes, cell, logged, GREY)
    for index, (cell, (color, marker, _)) in enumerate(zip(shown, styles(len(shown)), strict=True)):
        _curve(canvas, axes, cell, logged, color, marker, first=index / len(shown))
    _broken_off(canvas, axes, collected, logged)
    axes.set_xlabel("step")
    axes.set_ylabel(name)
    canvas.figure.legend(loc="outside upper left", ncols=columns)
    rest = f" Grey: the other {counted(len(cells) - len(shown), 'cell')}." if len(cells) > len(shown) else ""
    caption = f"Mean over seeds, and a band from the lowest to the highest; a cross: a run that broke off.{rest}"
    last = logged.sort_values("step").groupby(["cell", "seed"])["value"].last().groupby("cell").mean()
    means = "; ".join(f"{cell} {last[cell]:.4g}" for cell in cells)
    return canvas.finish(plot, title=title, caption=caption, alt=f"{name} by step. Means of the last values: {means}.")


@styled
def effect_curves(course: Course, than: str, name: str) -> Plot:
    """Draws the effects on a metric at each evaluation in the loop with their intervals, small multiples of one scale.
    `than` says what the differences are measured against."""
    metric, decisions = course.metric, course.end.decisions
    canvas = Canvas(0.6 + 1.1 * math.ceil(len(decisions) / 2))
    effects = [effect for horizon in course.horizons for effect in horizon.effects]
    farthest = reach(effects, 1.5 * metric.smallest_effect)
    for index, (axes, decision) in enumerate(zip(canvas.multiples(len(decisions)), decisions, strict=True)):
        color, marker = VERDICTS[decision.kind]
        of_steps = effects[index :: len(decisions)]
        low, mean, high = np.array([(effect.low, effect.mean, effect.high) for effect in of_steps]).T
        axes.axhspan(-metric.smallest_effect, metric.smallest_effect, color=GREY, alpha=0.2, linewidth=0)
        axes.axhline(0, color=INK, linewidth=0.8)
        axes.fill_between(course.at, low, high, color=color, alpha=0.25, linewidth=0)
        axes.vlines(course.at, low, high, color=color, linewidth=0.6)
        (line,) = axes.plot(course.at, mean, color=color, linewidth=1.4, marker=marker, markersize=4)
        canvas.tip(line, f"{decision.effect.name}, after step {course.end.step}: {decision.words}")
        step = course.appears(index)
        if step is not None:
            axes.axvline(step, color=INK, linewidth=0.8, linestyle=":")
        fitted = shortened(decision.effect.name, NAME_WIDTH if len(decisions) == 1 else NAME_WIDTH / 2 - SIZE)
        canvas.tip(axes.set_title(fitted, fontsize=SIZE, loc="left"), decision.effect.name)
        axes.set_ylim(-farthest, farthest)
    canvas.figure.supxlabel("step", fontsize=SIZE)
    better = "up" if metric.higher_is_better else "down"
    caption = (
        f"Differences in {metric.name} to {than} at each evaluation in the loop, with 95 % intervals. Better is "
        f"{better}; grey: below {metric.smallest_effect:g}; dotted: from there to the end the interval leaves out 0. "
        "Colours and markers are those of the verdict at the last of them."
    )
    named = "; ".join(f"{decision.effect.name} {interval(decision.effect)} {decision.kind}" for decision in decisions)
    alt = f"Effects on {metric.name} by step. After step {course.end.step}: {named}."
    return canvas.finish(name, title=f"Effects on {metric.name} over training", caption=caption, alt=alt)


def _curve(
    canvas: Canvas, axes: Axes, cell: str, logged: pd.DataFrame, color: str, marker: str = "", first: float = 0.0
) -> None:
    """Draws the mean curve of a cell and, with a marker, the band over its seeds. `first` is where its markers begin,
    as a share of their distance from 0 to 1, so that those of several cells do not coincide."""
    steps = logged[logged["cell"] == cell].groupby("step")["value"].agg(["mean", "min", "max"])
    steps = steps.iloc[np.unique(np.linspace(0, len(steps) - 1, DRAWN).round().astype(int))]
    (line,) = axes.plot(steps.index, steps["mean"], color=color, linewidth=1.4 if marker else 0.7)
    canvas.tip(line, f"{cell}: {steps['mean'].iloc[-1]:.4g} after step {steps.index[-1]}")
    if marker:
        axes.fill_between(steps.index, steps["min"], steps["max"], color=color, alpha=0.12, linewidth=0)
        every = max(len(steps) // 6, 1)
        line.set(label=shortened(cell, NAME_WIDTH), marker=marker, markersize=5, markevery=(int(first * every), every))


def _broken_off(canvas: Canvas, axes: Axes, collected: Collected, logged: pd.DataFrame) -> None:
    """Marks the last value of each diverged or failed run with a cross."""
    for run in collected.runs:
        if run.status not in ("diverged", "failed"):
            continue
        rows = logged[(logged["cell"] == run.entry.cell) & (logged["seed"] == run.entry.seed)]
        if len(rows):
            last = rows.loc[rows["step"].idxmax()]
            (cross,) = axes.plot([last["step"]], [last["value"]], marker="X", markersize=7, color=INK)
            canvas.tip(cross, f"{run.entry.name} {run.status}: {run.note}")
