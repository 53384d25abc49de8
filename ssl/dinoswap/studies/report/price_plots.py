"""The plots of what effects and cells cost: effects against time per image, and cells against each cost."""

import itertools
import math
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.text import Text
from matplotlib.ticker import EngFormatter, FuncFormatter, MaxNLocator

from dinoswap.studies.costs import COSTS
from dinoswap.studies.estimates import Percent, percent
from dinoswap.studies.pareto import Standing
from dinoswap.studies.report.canvas import (
    GREY,
    INK,
    PALETTE,
    SIZE,
    WIDTH,
    Box,
    Canvas,
    Plot,
    place_labels,
    shortened,
    styled,
    text_width,
)
from dinoswap.studies.report.collect import Collected
from dinoswap.studies.report.figures import VERDICTS, reach
from dinoswap.studies.report.prices import AXES, PricedEffect, Prices
from dinoswap.studies.report.words import interval, ratio, signed
from dinoswap.studies.statistics import Estimate
from dinoswap.studies.study import Metric

Segment = tuple[float, float, float, float]
"""A line from (x, y) to (x, y), in data."""
BEYOND = 1.2
"""An axis goes on to this many times what is drawn, which leaves room for the names of the quadrants."""
LEAST_PERCENT = 5.0
"""The axis of time per image goes at least as far."""
KEY_WIDTH = 72 * WIDTH - 4 * SIZE
"""Points that the key leaves for a name."""


@styled
def effects_against_time(prices: Prices, than: str) -> Plot | None:
    """Draws each effect on the metric that decides against that on the time per image, with both intervals. `than` says
    what the differences are measured against. Returns None where no effect has both."""
    effects = [effect for effect in prices.effects if effect.is_known]
    if not effects:
        return None
    metric, canvas = prices.metric, Canvas(3.3)
    (axes,) = canvas.axes()
    points = [(percent(effect.log_time), effect.decision.effect) for effect in effects]
    ends = _quadrants(axes, points, metric)
    lines: list[Segment] = [(-ends[0], 0, ends[0], 0), (0, -ends[1], 0, ends[1])]
    for effect, point in zip(effects, points, strict=True):
        lines += _draw(canvas, axes, effect, point, ends)
    axes.set_xlabel(f"time per image, % against {shortened(than, 72 * WIDTH / 2)}")
    axes.set_ylabel(f"{metric.name}, difference")
    _key(canvas, effects)
    canvas.figure.draw_without_rendering()  # which lays the axes out
    numbered = {str(number): (x.mean, y.mean) for number, (x, y) in enumerate(points, start=1)}
    place_labels(axes, numbered, texts=[_extent(corner) for corner in axes.texts], lines=_boxes(axes, lines))
    caption = (
        f"Effects on {metric.name}, and on the time per image, against {than}, with 95 % intervals; an arrow stands "
        f"where one goes on. Grey: below {metric.smallest_effect:g}. Colours and markers are those of the verdicts."
    )
    named = [
        f"{name} {interval(effect.decision.effect)} {effect.decision.kind}, time per image {ratio(effect.log_time)}"
        for effect in effects
        for name in [effect.decision.effect.name]
    ]
    alt = f"Effects on {metric.name} and on the time per image: {'; '.join(named)}."
    return canvas.finish("effects-cost", title="What effects cost", caption=caption, alt=alt)


def _draw(
    canvas: Canvas, axes: Axes, priced: PricedEffect, point: tuple[Percent, Estimate], ends: tuple[float, float]
) -> list[Segment]:
    """Draws an effect with both intervals, cut where the axes end, and returns these."""
    (x, y), (color, marker) = point, VERDICTS[priced.decision.kind]
    segments: list[Segment] = []
    if math.isfinite(priced.log_time.se):
        left, right = (min(max(limit, -ends[0]), ends[0]) for limit in (x.low, x.high))
        segments.append((left, y.mean, right, y.mean))
        beyond = [("<", left, y.mean, x.low < left), (">", right, y.mean, x.high > right)]
        _arrows(axes, beyond, color)
    if math.isfinite(y.se):
        bottom, top = (min(max(limit, -ends[1]), ends[1]) for limit in (y.low, y.high))
        segments.append((x.mean, bottom, x.mean, top))
        _arrows(axes, [("v", x.mean, bottom, y.low < bottom), ("^", x.mean, top, y.high > top)], color)
    for x_from, y_from, x_to, y_to in segments:
        axes.plot([x_from, x_to], [y_from, y_to], color=color, linewidth=1.2, alpha=0.8)
    filled = "none" if priced.decision.kind == "not distinguishable" else "full"
    (dot,) = axes.plot([x.mean], [y.mean], marker=marker, color=color, fillstyle=filled, markersize=7)
    canvas.tip(dot, f"{y.name}: {priced.decision.words}; time per image {ratio(priced.log_time)}")
    return segments


def _arrows(axes: Axes, ends: Sequence[tuple[str, float, float, bool]], color: str) -> None:
    """Draws an arrow (marker, x, y) at each end of an interval that goes on."""
    for marker, x, y, goes_on in ends:
        if goes_on:
            axes.plot([x], [y], marker=marker, color=color, markersize=5)


def _quadrants(axes: Axes, points: Sequence[tuple[Percent, Estimate]], metric: Metric) -> tuple[float, float]:
    """Prepares axes around zero with a name in each corner, and returns how far points and intervals may go in x and in
    y."""
    smallest = metric.smallest_effect
    ends = reach([x for x, _ in points], LEAST_PERCENT), reach([y for _, y in points], 1.5 * smallest)
    axes.set_xlim(-BEYOND * ends[0], BEYOND * ends[0])
    axes.set_ylim(-BEYOND * ends[1], BEYOND * ends[1])
    axes.axhspan(-smallest, smallest, color=GREY, alpha=0.2, linewidth=0)
    axes.axhline(0, color=INK, linewidth=0.8)
    axes.axvline(0, color=INK, linewidth=0.8)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: signed(value)))
    above, below = ("better", "worse") if metric.higher_is_better else ("worse", "better")
    for y, quality, edge in ((0.99, above, "top"), (0.01, below, "bottom")):
        for x, price, side in ((0.01, "cheaper", "left"), (0.99, "dearer", "right")):
            corner = axes.text(x, y, f"{quality}, {price}", ha=side, va=edge, transform=axes.transAxes)
            corner.set(color=GREY, fontsize=8)
    return ends


def _key(canvas: Canvas, effects: Sequence[PricedEffect]) -> None:
    """Writes the names of the numbered effects below the axes, in two columns where they are short, and makes the
    figure higher by as much."""
    names = [f"{number}  {effect.decision.effect.name}" for number, effect in enumerate(effects, start=1)]
    columns = 2 if len(names) > 1 and max(map(text_width, names)) < KEY_WIDTH / 2 - SIZE / 2 else 1
    handles = []
    for effect in effects:
        color, marker = VERDICTS[effect.decision.kind]
        handle = Line2D([], [], color=color, marker=marker, linestyle="none", markersize=6)
        handle.set_fillstyle("none" if effect.decision.kind == "not distinguishable" else "full")
        handles.append(handle)
    labels = [shortened(name, KEY_WIDTH / columns) for name in names]
    canvas.figure.set_figheight(canvas.figure.get_figheight() + 0.19 * math.ceil(len(names) / columns))
    canvas.figure.legend(handles, labels, loc="outside lower left", ncols=columns, handlelength=1, columnspacing=1)


def _boxes(axes: Axes, segments: Sequence[Segment]) -> list[Box]:
    """Returns the rectangles of lines in pixels, two pixels wide where they are upright or level."""
    corners = [axes.transData.transform([segment[:2], segment[2:]]) for segment in segments]
    return [(*(pair.min(axis=0) - 1), *(pair.max(axis=0) + 1)) for pair in corners]


def _extent(text: Text) -> Box:
    """Returns the rectangle of a text in pixels."""
    left, bottom, right, top = text.get_window_extent().extents
    return float(left), float(bottom), float(right), float(top)


# --- cells ------------------------------------------------------------------------------------------------------------

Point = tuple[int, str, float, float, float]
"""The number and the name of a cell, its mean cost, and the metric's mean and standard deviation over seeds."""


@styled
def cells_against_costs(collected: Collected, prices: Prices) -> Plot | None:
    """Draws the metric that decides against each cost, means by cell, numbered in the order of the design, with the
    front. Returns None where no run has both a value and a cost."""
    canvas, metric = Canvas(5.4), prices.metric
    bars = dict[Axes, list[Segment]]()
    labels = dict[Axes, dict[str, tuple[float, float]]]()
    for axes, (name, label) in zip(canvas.axes(len(AXES)), AXES.items(), strict=True):
        points = _points(collected, metric, name)
        _scatter(canvas, axes, points, prices.fronts[name])
        bars[axes] = [(x, y - spread, x, y + spread) for _, _, x, y, spread in points]
        bars[axes] += _front(axes, points, prices.fronts[name], COSTS[name].more_is_cheaper)
        axes.set_xlabel(label)
        axes.set_ylabel(metric.name)
        labels[axes] = {str(number): (x, y) for number, _, x, y, _ in points}
    if not any(labels.values()):
        return None
    canvas.figure.draw_without_rendering()  # which lays the axes out
    for axes, points_of in labels.items():
        place_labels(axes, points_of, lines=_boxes(axes, bars[axes]))
    failing = " Crosses: cells of which a run failed, no candidates." if prices.no_candidates else ""
    caption = (
        f"{metric.name} against what it costs, means over the seeds; vertical lines: one standard deviation between "
        f"seeds. Filled, and joined by the dotted line: the front, cells that no other beats in both.{failing} Numbers "
        "are those of the table of cells. Images per second compare on the same hardware only; FLOPs are counted, and "
        "the same everywhere."
    )
    alt = f"{metric.name} by cell against images per second and FLOPs per image; the numbers are in the table of cells."
    return canvas.finish("cost", title="Quality against cost", caption=caption, alt=alt)


def _points(collected: Collected, metric: Metric, cost: str) -> list[Point]:
    """Returns a point for each cell with values."""
    points = []
    for number, cell in enumerate(collected.design.cells, start=1):
        pairs = [(run.value(cost), run.value(metric.name)) for run in collected.of_cell(cell.name) if run.ended]
        known = np.array([pair for pair in pairs if all(map(math.isfinite, pair))])
        if len(known):
            spread = float(known[:, 1].std(ddof=1)) if len(known) > 1 else 0.0
            points.append((number, cell.name, float(known[:, 0].mean()), float(known[:, 1].mean()), spread))
    return points


def _scatter(canvas: Canvas, axes: Axes, points: Sequence[Point], front: Mapping[str, Standing]) -> None:
    """Draws a numbered point for each cell at its cost, with a bar of one standard deviation."""
    for number, cell, cost, value, spread in points:
        axes.plot([cost, cost], [value - spread, value + spread], color=GREY, linewidth=0.8, zorder=1)
        marker = "o" if cell in front else "X"
        filled = "full" if cell in front and front[cell].on_front else "none"
        (dot,) = axes.plot([cost], [value], marker=marker, markersize=5, color=PALETTE[0], fillstyle=filled)
        canvas.tip(dot, f"{number}. {cell}: {value:.4g} at {cost:.4g}")
    axes.margins(x=0.06)
    axes.xaxis.set_major_locator(MaxNLocator(6))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))


def _front(axes: Axes, points: Sequence[Point], front: Mapping[str, Standing], more_is_cheaper: bool) -> list[Segment]:
    """Draws the front as steps, what is behind them being beaten, and returns these."""
    on_it = sorted({(x, y) for _, cell, x, y, _ in points if cell in front and front[cell].on_front})
    segments: list[Segment] = []
    for (x_from, y_from), (x_to, y_to) in itertools.pairwise(on_it):
        corner = (x_from, y_to) if more_is_cheaper else (x_to, y_from)
        segments += [(x_from, y_from, *corner), (*corner, x_to, y_to)]
    for x_from, y_from, x_to, y_to in segments:
        axes.plot([x_from, x_to], [y_from, y_to], color=INK, linewidth=0.9, linestyle=":", zorder=1)
    return segments
