"""The page of arms that are compared at the reference's weights: sentences, heat maps, tables, numbers as JSON."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import fmean, median
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm
from matplotlib.patches import Rectangle
from scipy.stats import permutation_test, rankdata

from dinoswap.config.schema import ConfigError
from dinoswap.files.writing import write_atomically
from dinoswap.studies.report.canvas import GREY, Canvas, Plot, row_axes, row_height, row_text, styled
from dinoswap.studies.report.markup import Table
from dinoswap.studies.report.page import Page, Section
from dinoswap.studies.report.words import between, counted, listed, number, signed
from dinoswap.studies.report.write import FIGURES, as_html, as_markdown
from dinoswap.studies.twins.compare import BACKBONE, Apart, Comparison, Measure, Turn

SAME = 0.01
"""Angles below so many degrees are those of rounding."""
LEAST, MOST = 0.1, 90.0
"""The ends of the colour scale, in degrees."""
DEFINITIONS = {
    "Angle": "between two gradients as vectors over all parameters of a part that both arms have: 0 degrees where they "
    "point the same way, 90 where they have nothing in common.",
    "Floor": "the angle between the reference's own mean gradient on these batches and on as many others. An angle "
    "below it is hidden by the noise of one step, and yet points the same way at every step, while that of batches "
    "averages out.",
    "Update": "by how much parameters change in as many steps of training as there are batches, from fresh moments of "
    "the optimiser: learning rates, weight decay, clipping and what is frozen count in it, which a gradient knows "
    "nothing of. AdamW's first steps follow the signs of a gradient, so that small components count as much as large.",
    "Targets apart": "the mean total variation between the targets of the same rows: 0 equal, 1 without any overlap.",
}


def write_page(comparison: Comparison, page: Page, facts: Mapping[str, Any], out: Path) -> Path:
    """Writes twins.html, twins.md, its figures and twins.json into the folder `out`, and returns the path of the
    first. `facts` stand in the JSON beside the numbers."""
    (out / FIGURES).mkdir(parents=True, exist_ok=True)
    for plot in page.plots:
        write_atomically(out / FIGURES / f"{plot.name}.png", plot.png)
    content = {"study": page.study, **facts, **_finite(asdict(comparison))}
    write_atomically(out / "twins.json", json.dumps(content, allow_nan=False) + "\n")
    write_atomically(out / "twins.md", as_markdown(page, DEFINITIONS))
    write_atomically(out / "twins.html", as_html(page, DEFINITIONS))
    return out / "twins.html"


def read_comparison(path: Path) -> Comparison:
    """Returns the comparison that a twins.json was written of. Raises ConfigError for a file that is none."""
    try:
        content = json.loads(path.read_text())
        turns = [Turn(**_with_nan(turn)) for turn in content["turns"]]
        targets, terms = ([Apart(**apart) for apart in content[key]] for key in ("targets", "terms"))
        others = {key: content[key] for key in ("steps", "arms", "batches", "own", "fresh", "refused")}
        return Comparison(turns=turns, targets=targets, terms=terms, **others)
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise ConfigError(f"{path}: is no twins.json ({type(error).__name__}: {error})") from error


def make_page(study: str, comparison: Comparison, source: str, report: Path | None = None) -> Page:
    """Returns the page. `source` says in words which run is the trajectory; `report` is a report.json of the same
    study, whose effects stand beside the angles. Raises ConfigError where it is none."""
    sections = [
        Section(
            "arms", "What each arm changes", [source], [heat_map(comparison, "gradient")], [_summary(comparison)],
            items=[describe(comparison, arm) for arm in comparison.arms],
        ),
        Section("updates", "In steps of the optimiser", plots=[heat_map(comparison, "update")]),
        Section("losses", "Targets and losses", tables=[_targets(comparison), _terms(comparison)]),
    ]  # fmt: skip
    if report is not None:
        sections.append(_prediction(comparison, report))
    question = f"What would each arm of {study} do at the reference's weights?"
    return Page(study, question, answer(comparison), "", sections=sections)


def answer(comparison: Comparison) -> str:
    """Returns in a sentence which arms turn the backbone's gradient most and which leave it."""
    turning = {arm: comparison.middle(arm, "gradient") for arm in comparison.arms}
    by_angle = sorted((arm for arm in turning if turning[arm] >= SAME), key=lambda arm: -turning[arm])
    clauses = [f"{arm} by {number(turning[arm], 2)} degrees" for arm in by_angle]
    left = [arm for arm in turning if turning[arm] < SAME]
    floor = median([turn.floor for arm in turning for turn in comparison.angles(arm, "gradient")] or [math.nan])
    sentences = [f"The backbone's gradient is turned by {listed(clauses)}" if clauses else "No arm turns the gradient"]
    sentences[0] += f" (other batches of the reference: {number(floor, 2)}), the middle of {_points(comparison)}."
    if left:
        sentences.append(f"{listed(left)} {'leaves' if len(left) == 1 else 'leave'} it as it is.")
    return " ".join(sentences)


def describe(comparison: Comparison, arm: str) -> str:
    """Returns in a sentence or two what an arm changes, from which step on, and what could not be compared."""
    sentences = [f"{arm} {_turning(comparison, arm)}."]
    if own := comparison.own.get(arm):
        shown = listed([*own[:3], f"{len(own) - 3} more"]) if len(own) > 3 else listed(own)
        sentences.append(f"Not compared, as the reference has no such parameters: {shown}.")
    if fresh := comparison.fresh.get(arm):
        sentences.append(f"With initial weights at each checkpoint: {listed(fresh)}.")
    if reason := comparison.refused.get(arm):
        sentences.append(f"It was compared at initial weights alone, as it cannot begin from the reference's: {reason}")
    return " ".join(sentences)


def _turning(comparison: Comparison, arm: str) -> str:
    gradients, updates = comparison.angles(arm, "gradient"), comparison.angles(arm, "update")
    known = [turn for turn in gradients if math.isfinite(turn.angle)]
    turned = [turn for turn in known if turn.angle >= SAME]
    if turned:
        angles = [turn.angle for turn in turned]
        since = f" from step {turned[0].step} on" if turned[0].step != known[0].step else ""
        blocks = {part: fmean(row) for part, row in _by_part(comparison, arm).items() if part.startswith("block")}
        most = max(blocks, key=lambda part: blocks[part]) if blocks else BACKBONE
        ratio = number(median(turn.ratio for turn in turned), 2)
        longer = f", and makes it {ratio} times as long" if ratio != "1" else ""
        of_updates = _span([turn.angle for turn in updates if math.isfinite(turn.angle)])
        return (
            f"turns the backbone's gradient by {_span(angles)}{since}, most in {most}{longer}; "
            f"its updates are turned by {of_updates}"
        )
    moved = [turn for turn in comparison.turns if turn.arm == arm and turn.angle >= SAME]
    if not moved:
        return "changes neither gradients nor updates"
    largest = max(moved, key=lambda turn: turn.angle)
    return (
        f"leaves the backbone's gradient as it is; most changed is the {largest.measure} of {largest.part}, by "
        f"{number(largest.angle, 2)} degrees at step {largest.step}"
    )


def _by_part(comparison: Comparison, arm: str) -> dict[str, list[float]]:
    parts: dict[str, list[float]] = {}
    for turn in comparison.turns:
        if turn.arm == arm and turn.measure == "gradient" and math.isfinite(turn.angle):
            parts.setdefault(turn.part, []).append(turn.angle)
    return parts


def _span(angles: Sequence[float]) -> str:
    if not angles:
        return "an unknown angle"
    low, high = number(min(angles), 2), number(max(angles), 2)
    return f"{low} degrees" if low == high else f"{low} to {high} degrees"


def _points(comparison: Comparison) -> str:
    return f"{counted(len(comparison.steps), 'point')} of the run"


# --- figures ----------------------------------------------------------------------------------------------------------


@styled
def heat_map(comparison: Comparison, measure: Measure) -> Plot:
    """Draws the angles of one measure: a row for each arm, in it a group of cells for each checkpoint, in the group a
    cell for each part from the embedding to the heads."""
    parts = [part for part in dict.fromkeys(turn.part for turn in comparison.turns) if part != BACKBONE]
    canvas = Canvas(row_height(len(comparison.arms)) + 0.6)
    axes = row_axes(canvas, len(comparison.arms))
    norm, colours = LogNorm(LEAST, MOST), colormaps["viridis"]
    width = len(parts) + 1
    for turn in comparison.turns:
        if turn.measure != measure or turn.part == BACKBONE or not math.isfinite(turn.angle):
            continue
        place = comparison.steps.index(turn.step) * width + parts.index(turn.part)
        colour = colours(norm(turn.angle)) if turn.angle >= LEAST else GREY + "40"
        cell = Rectangle((place, comparison.arms.index(turn.arm) - 0.15), 1, 0.42, color=colour, linewidth=0)
        axes.add_patch(cell)
        against = (
            f"{number(turn.angle, 3)} degrees (floor {number(turn.floor, 2)}), {number(turn.ratio, 3)} times as long"
        )
        canvas.tip(cell, f"{turn.arm}, {turn.part}, step {turn.step}: {against}")
    for y, arm in enumerate(comparison.arms):
        row_text(canvas, axes, y, arm, f"{number(comparison.middle(arm, measure), 2)}\N{DEGREE SIGN}")
    axes.set_xlim(0, len(comparison.steps) * width - 1)
    axes.set_xticks(
        [(index + 0.5) * width - 0.5 for index in range(len(comparison.steps))], list(map(str, comparison.steps))
    )
    axes.set_xlabel("step of the reference")
    scale = ScalarMappable(norm, colours)
    canvas.figure.colorbar(
        scale, ax=axes, orientation="horizontal", label="degrees", aspect=40, ticks=[0.1, 1, 10, 90], format="%g"
    )
    of = "gradients" if measure == "gradient" else f"updates over {counted(comparison.batches, 'step')}"
    caption = (
        f"Angles between the {of} of each arm and of the reference, at the same weights and on the same images; on the "
        "right the middle over the run, of the whole backbone. Cells of a step, from the left: "
        f"{', '.join(parts)}. Grey: below a tenth of a degree; empty: not comparable."
    )
    return canvas.finish(f"twins_{measure}", title=f"By how much {of} are turned", caption=caption, alt=caption)


# --- tables -----------------------------------------------------------------------------------------------------------


def _summary(comparison: Comparison) -> Table:
    rows = []
    for arm in comparison.arms:
        gradients = comparison.angles(arm, "gradient")
        of_batches = median([turn.floor for turn in gradients] or [math.nan])
        ratio = median([turn.ratio for turn in gradients] or [math.nan])
        figures = (comparison.middle(arm, "gradient"), of_batches, ratio, comparison.middle(arm, "update"))
        rows.append([arm, *(number(figure, 3) for figure in figures), str(len(gradients))])
    columns = ["arm", "gradient, degrees", "floor, degrees", "ratio of norms", "update, degrees", "points"]
    return Table("arms", f"The whole backbone, middle of {_points(comparison)}", columns, rows, ["arm"])


def _targets(comparison: Comparison) -> Table:
    rows = [
        [apart.arm, apart.name, str(apart.step), number(apart.value, 3)]
        for apart in comparison.targets
        if apart.value is None or apart.value > 0
    ]
    caption = "Targets apart; those that are equal are left out, '-' where their rows are not the same"
    return Table("targets", caption, ["arm", "objective", "step", "total variation"], rows, ["arm", "objective"])


def _terms(comparison: Comparison) -> Table:
    rows = [
        [apart.arm, apart.name, str(apart.step), number(apart.reference), number(apart.value)]
        for apart in comparison.terms
        if apart.reference != apart.value
    ]
    columns = ["arm", "term", "step", "reference", "arm's"]
    return Table("terms", "Loss terms that differ", columns, rows, ["arm", "term"])


# --- does it predict the effect? --------------------------------------------------------------------------------------


def _prediction(comparison: Comparison, report: Path) -> Section:
    metric, effects = next(iter(measured_effects(report).items()))
    both = [arm for arm in comparison.arms if arm in effects]
    angles = {arm: comparison.middle(arm, "gradient") for arm in both}
    updates = {arm: comparison.middle(arm, "update") for arm in both}
    sentence = f"Of {counted(len(both), 'arm')} that {report} has an effect of on {metric}"
    if len(both) < 3:
        sentence += ", too few to say whether the angle predicts it."
    else:
        sizes = [abs(effects[arm]["mean"]) for arm in both]
        rho, p = rank_correlation([angles[arm] for arm in both], sizes)
        of_updates, p_updates = rank_correlation([updates[arm] for arm in both], sizes)
        sentence += (
            f", the rank correlation between the size of the effect and the angle is {signed(rho)} (p = "
            f"{number(p, 2)}, by permutations) for gradients and {signed(of_updates)} (p = {number(p_updates, 2)}) for "
            "updates."
        )
    rows = [
        [arm, number(angles[arm], 3), number(updates[arm], 3), signed(effects[arm]["mean"]),
         between(effects[arm]["low"], effects[arm]["high"])]
        for arm in both
    ]  # fmt: skip
    columns = ["arm", "gradient, degrees", "update, degrees", f"effect on {metric}", "interval"]
    table = Table("prediction", "Angles beside measured effects", columns, rows, ["arm"])
    return Section("prediction", "Does the angle predict the effect?", [sentence], tables=[table])


def rank_correlation(first: Sequence[float], second: Sequence[float]) -> tuple[float, float]:
    """Returns Spearman's rank correlation of two sequences [n], and its two-sided p by permutations of one of them: all
    up to n = 7, 9999 drawn ones beyond. The p that is usual for many values is 0 for three in the same order."""
    ranks = rankdata(second)
    test = permutation_test(
        (rankdata(first),),
        lambda permuted: np.corrcoef(permuted, ranks)[0, 1],
        permutation_type="pairings",
        vectorized=False,
        random_state=0,
    )
    return float(test.statistic), float(test.pvalue)


def measured_effects(report: Path) -> dict[str, dict[str, dict[str, float]]]:
    """Returns by metric, in the order of a report.json, and by arm the mean, low and high of its effect; arms
    without a mean are left out. Raises ConfigError for a file that is none."""
    try:
        found = {
            str(result["metric"]["name"]): {
                effect["name"]: {
                    key: math.nan if effect[key] is None else float(effect[key]) for key in ("mean", "low", "high")
                }
                for effect in result["effects"]
                if effect["mean"] is not None
            }
            for result in json.loads(report.read_text())["results"]
        }
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise ConfigError(f"{report}: is no report.json with effects ({type(error).__name__}: {error})") from error
    if not found:
        raise ConfigError(f"{report}: has no metric, so no effect to compare with angles")
    return found


def _finite(value: Any) -> Any:
    """Returns the value with None for numbers that are not finite, which JSON has no word for."""
    if isinstance(value, dict):
        return {key: _finite(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _with_nan(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {name: math.nan if value is None else value for name, value in fields.items()}
