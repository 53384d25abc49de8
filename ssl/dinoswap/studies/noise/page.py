"""The page of a noise budget: sentences, bars, tables."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from dinoswap.files.writing import write_atomically
from dinoswap.studies.noise.array import NoiseDesign
from dinoswap.studies.noise.budget import Budget, Pairing
from dinoswap.studies.noise.components import Quantity
from dinoswap.studies.noise.numbers import Noise
from dinoswap.studies.report.canvas import INK, PALETTE, Canvas, Plot, row_axes, row_height, row_text, styled
from dinoswap.studies.report.markup import Table
from dinoswap.studies.report.page import Page, Section
from dinoswap.studies.report.words import listed, number
from dinoswap.studies.report.write import FIGURES, as_html, as_markdown

INTERACTIONS, THREADS = "(interactions)", "(threads)"
"""The rows that are no stream."""
DEFINITIONS = {
    "First order": "what a stream's seed does to a run whatever the seeds of the others are, as a share of the "
    "variance of runs in which all streams vary (Sobol 1993). From an orthogonal array, in which all vary at once.",
    "Interactions": "the rest of that variance: what depends on how the seeds of two streams or more meet. Where "
    "training amplifies any small change, nearly all of it is here.",
    "Alone": "the variance of runs in which this stream's seed alone changes, as a share of the same variance: its "
    "first order and all interactions that it takes part in (Sobol's total index). These shares may add up to more "
    "than the whole. That one source by itself makes about as much as all together is what Summers and Dinneen (2021, "
    "Nondeterminism and Instability in Neural Network Optimization) report of supervised networks.",
    "Threads": "the variance between runs of the same seeds whose sums were rounded by another number of threads.",
    "Saved by sharing": "twice the covariance that a stream gives the runs of two arms, as a share of the variance "
    "that their difference has where nothing is shared. Sharing all streams shares their interactions too.",
    "Intervals": "95 %, generalised (Weerahandi 1993), which take effects to be normal. Their ends, and estimates, are "
    "kept between 0 and 100 %, and between -100 and 100 % of what is saved.",
}


def write_page(page: Page, numbers: str, out: Path) -> Path:
    """Writes noise.html, noise.md, its figures and noise.json, whose text is `numbers`, into the folder `out`, and
    returns the path of the first."""
    (out / FIGURES).mkdir(parents=True, exist_ok=True)
    for plot in page.plots:
        write_atomically(out / FIGURES / f"{plot.name}.png", plot.png)
    write_atomically(out / "noise.json", numbers)
    write_atomically(out / "noise.md", as_markdown(page, DEFINITIONS))
    write_atomically(out / "noise.html", as_html(page, DEFINITIONS))
    return out / "noise.html"


def make_page(study: str, design: NoiseDesign, results: Sequence[Noise], unused: Sequence[str]) -> Page:
    """Returns the page of the noise in each metric, the deciding one first. `unused` are streams that the reference
    draws nothing from."""
    crossed = f"{design.levels**2} runs of each arm, in which {listed(design.streams)} have {design.levels} seeds each"
    reference = results[0].budgets[0].arm
    alone = f", and runs of {reference} in which one of them varies alone" if design.bases else ""
    nothing = (
        f" {reference} draws nothing from {listed(unused)}: another seed gives the same numbers." if unused else ""
    )
    sections = [
        _section(noise, index, answer(noise) if index else f"From {crossed}{alone}.{nothing}")
        for index, noise in enumerate(results)
    ]
    question = f"What makes two runs of {study} differ, and what does pairing take away?"
    return Page(study, question, answer(results[0]), "", sections=sections)


def _section(noise: Noise, index: int, text: str) -> Section:
    plots = [shares_plot(noise.budgets[0], noise.metric, f"noise{index}")]
    tables = [_budget_table(budget, noise.metric) for budget in noise.budgets]
    if noise.pairing:
        plots.append(saved_plot(noise.pairing, noise.metric, f"pairing{index}"))
        tables.append(_pairing_table(noise.pairing, noise.metric))
    return Section(f"metric{index}", noise.metric, [text], plots, tables)


# --- sentences --------------------------------------------------------------------------------------------------------


def answer(noise: Noise) -> str:
    """Returns in sentences how large the noise is, what makes it, and which streams pairing should share."""
    reference = noise.budgets[0]
    if not reference.sd.value > 0:
        return f"All runs of {reference.arm} have one {noise.metric}: there is no noise to divide."
    by_share = sorted(reference.first_order, key=lambda stream: -reference.first_order[stream].value)
    first = listed([f"{stream} {percent(reference.first_order[stream])}" for stream in by_share])
    sentences = [
        f"A run of {reference.arm} has a standard deviation of {number(reference.sd.value, 3)} in {noise.metric}.",
        f"Of its variance, by themselves: {first}; how they meet: {percent(reference.interactions)}.",
    ]
    if reference.total:
        alone = listed([f"{stream} {share.value:.0%}".replace("%", " %") for stream, share in reference.total.items()])
        sentences.append(f"Varied alone: {alone}.")
    if reference.threads:
        sentences.append(f"Of sums rounded by other threads: {percent(reference.threads)}.")
    return " ".join([*sentences, *_advice(noise.pairing)])


def _advice(pairing: Pairing | None) -> list[str]:
    """Returns sentences on which streams two arms should share."""
    if pairing is None:
        return ["What pairing by each of them takes from a difference, --arm CELL says."]
    sentences = [
        f"Sharing all streams takes {percent(pairing.saved_by_all)} from the variance of the difference between "
        f"{pairing.arm} and {pairing.reference}."
    ]
    if pairing.helpful:
        sentences.append(f"Share {listed(pairing.helpful)}, whose pairing by itself clearly takes variance away.")
    if pairing.harmful:
        sentences.append(f"Do not share {listed(pairing.harmful)}, whose pairing adds variance.")
    if unclear := [stream for stream in pairing.saved if stream not in (*pairing.helpful, *pairing.harmful)]:
        sentences.append(
            f"Of {listed(unclear)} these runs do not tell whether pairing by one of them takes or adds any."
        )
    return sentences


def percent(share: Quantity) -> str:
    """Returns a share with its interval, as in '12 % [0, 45]'; '-' where there is none."""
    if not math.isfinite(share.value):
        return "-"
    low, high = (number(round(100 * end), 4) for end in (share.low, share.high))
    return f"{number(round(100 * share.value), 4)} % [{low}, {high}]"


# --- figures ----------------------------------------------------------------------------------------------------------


@styled
def shares_plot(budget: Budget, metric: str, name: str) -> Plot:
    """Draws the shares of the variance of a run: by themselves as bars, and above them where a stream varies alone."""
    first = budget.first_order | {INTERACTIONS: budget.interactions}
    alone = budget.total | ({THREADS: budget.threads} if budget.threads else {})
    rows = list(dict.fromkeys([*first, *alone]))
    canvas = Canvas(row_height(len(rows)) + 0.35)
    axes = row_axes(canvas, len(rows))
    kinds = (("by itself", first, PALETTE[0], 0.12), ("where it alone varies", alone, PALETTE[1], -0.04))
    for label, shares, color, offset in kinds:
        _bars(canvas, {row: (rows.index(row) + offset, share) for row, share in shares.items()}, label, color)
    for y, row in enumerate(rows):
        row_text(canvas, axes, y, row, percent((alone | first)[row]))
    axes.set_xlim(0, 1)
    axes.xaxis.set_major_formatter("{x:.0%}")
    axes.set_xlabel(f"share of the variance of {metric}")
    if budget.sd.value > 0:
        canvas.figure.legend(loc="outside lower center", ncols=2, fontsize=8)
    caption = (
        f"What the variance of {metric} between runs of {budget.arm} is made of, with 95 % intervals. Blue: by itself, "
        "which adds up to the whole with the interactions. Orange: where this stream alone varies, with the "
        "interactions that it takes part in."
    )
    named = "; ".join(f"{row} {percent(share)}" for row, share in first.items())
    return canvas.finish(name, title="What makes runs differ", caption=caption, alt=f"Shares of the variance: {named}.")


@styled
def saved_plot(pairing: Pairing, metric: str, name: str) -> Plot:
    """Draws what sharing each stream, and all of them, takes from the variance of a difference."""
    saved = pairing.saved | {"all streams": pairing.saved_by_all}
    canvas = Canvas(row_height(len(saved)))
    axes = row_axes(canvas, len(saved))
    _bars(canvas, {row: (y, share) for y, (row, share) in enumerate(saved.items())}, "", PALETTE[2])
    for y, (row, share) in enumerate(saved.items()):
        row_text(canvas, axes, y, row, percent(share))
    axes.set_xlim(-1, 1)
    axes.xaxis.set_major_formatter("{x:.0%}")
    axes.set_xlabel("share of the variance of the difference that is saved")
    caption = (
        f"What pairing {pairing.arm} and {pairing.reference} by a stream takes from the variance of their difference "
        f"in {metric}, with 95 % intervals; to the left of 0 it adds some."
    )
    named = "; ".join(f"{row} {percent(share)}" for row, share in saved.items())
    return canvas.finish(name, title="What pairing saves", caption=caption, alt=f"Saved by sharing: {named}.")


def _bars(canvas: Canvas, rows: Mapping[str, tuple[float, Quantity]], label: str, color: str) -> None:
    """Draws a bar with its interval for each row at its y."""
    (axes,) = canvas.figure.axes
    for y, share in rows.values():
        if not math.isfinite(share.value):
            continue
        (bar,) = axes.barh(y, share.value, height=0.15, color=color, label=label)
        label = ""
        axes.plot([share.low, share.high], [y, y], color=INK, linewidth=1)
        canvas.tip(bar, percent(share))


# --- tables -----------------------------------------------------------------------------------------------------------


def _budget_table(budget: Budget, metric: str) -> Table:
    rows = [
        [stream, percent(share), percent(budget.total[stream]) if stream in budget.total else "-"]
        for stream, share in budget.first_order.items()
    ]
    rows.append([INTERACTIONS, percent(budget.interactions), "-"])
    if budget.threads:
        rows.append([THREADS, "-", percent(budget.threads)])
    sd = budget.sd
    spread = f"{number(sd.value, 3)} [{number(sd.low, 3)}, {number(sd.high, 3)}]"
    caption = (
        f"{metric} of {budget.arm}: mean {number(budget.mean)}, standard deviation of a run {spread}; its variance"
    )
    return Table(f"noise {metric} {budget.arm}", caption, ["stream", "first order", "alone"], rows, ["stream"])


def _pairing_table(pairing: Pairing, metric: str) -> Table:
    saved = pairing.saved | {"all streams": pairing.saved_by_all}
    rows = [[stream, percent(share)] for stream, share in saved.items()]
    caption = (
        f"{metric}, {pairing.arm} less {pairing.reference}: standard deviation of the difference "
        f"{number(pairing.sd.value, 3)} where all streams are shared, {number(pairing.unpaired_sd.value, 3)} where "
        "none is"
    )
    return Table(f"pairing {metric}", caption, ["stream", "saved by sharing"], rows, ["stream"])
