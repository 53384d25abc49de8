"""How early the verdicts on collapse say that a run is lost, and how often they say so of a sound one.

    dinoswap-ablate run collapse hydra.launcher.processes=2
    python tools/validate_verdicts.py -o results/reference/verdicts

Verdicts read no labels, so the truth is what labels say: a run is lost when, from its initial weights to its end, it
gains less than half of the k-NN accuracy that the reference of the same seed gains, or when it does not come to its
end. Other runs are sound. What was measured in the loop is read from the run folders; nothing is trained here.

Beside the thresholds of the product stand thresholds that half of the recipes choose at the first evaluation, each
midway between the sound runs of that half and the nearest lost one beyond them, and that are reported on the other
half; then the halves change places. So no run is judged by a threshold that a run of its recipe has chosen.
"""

import argparse
import math
import shlex
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from scipy.stats import binomtest, mannwhitneyu

from dinoswap.files.writing import write_atomically
from dinoswap.metric.correspondence import NEAR_CHANCE
from dinoswap.metric.diagnostics import CONSTANT, FEW_STEPS, LOW_RANK, UNIFORM
from dinoswap.run.metrics import read
from dinoswap.studies.design import make_design
from dinoswap.studies.ledger import Entry, RunStatus, entries, run_statuses
from dinoswap.studies.report.markup import Table, markdown
from dinoswap.studies.study import read_study

ACCURACY = "eval/knn_top1"
OBJECTIVES = ("dino", "ibot")
LOST = 0.5
"""A run that gains less than this share of what the reference gains is lost."""

Values = Mapping[str, float]


@dataclass(frozen=True)
class Signal:
    """A number that tells of a collapse. `value` takes an evaluation and that of the initial weights; `sign` is 1 where
    large values are bad and -1 where small ones are; `threshold` is the product's, None where no verdict reads it."""

    value: Callable[[Values, Values], float]
    sign: int
    threshold: float | None = None


def worst_share(number: str, worst: Callable[..., float]) -> Callable[[Values, Values], float]:
    """Returns the function that gives the worst share of its maximum which a diagnostic has among the objectives."""

    def value(at: Values, start: Values) -> float:
        shares = (at[f"eval/{name}/{number}"] / at[f"eval/{name}/{number}_max"] for name in OBJECTIVES)
        return worst(shares)

    return value


SIGNALS: Mapping[str, Signal] = {
    "targets are uniform: entropy / its maximum": Signal(worst_share("target_entropy", max), 1, UNIFORM),
    "targets are constant: information / its maximum": Signal(worst_share("target_information", min), -1, CONSTANT),
    "features: RankMe / the larger of 2 and 2 % of dimensions": Signal(
        lambda at, _: at["eval/rankme"] / max(2.0, LOW_RANK * at["eval/rankme_max"]), -1, 1.0
    ),
    "patches: correspondence / chance": Signal(
        lambda at, _: at["eval/correspondence"] / at["eval/correspondence_chance"], -1, NEAR_CHANCE
    ),
    "RankMe / that of the initial weights": Signal(lambda at, start: at["eval/rankme"] / start["eval/rankme"], -1),
    "deviation of features (feature_std)": Signal(lambda at, _: at["eval/feature_std"], -1),
    "mean cosine of features": Signal(lambda at, _: at["eval/mean_cosine"], 1),
}


@dataclass(frozen=True)
class Judged:
    """A run: its recipe, what it gained, whether it is lost, and the value of each signal by step."""

    recipe: str
    seed: int
    gain: float
    lost: bool
    signals: Mapping[int, Mapping[str, float]]

    def warned(self, step: int, thresholds: Mapping[str, float]) -> list[str]:
        """Returns the signals that are beyond their thresholds at a step, or not finite. A run that ended before it
        has warned."""
        if step not in self.signals:
            return ["ended"]
        values = self.signals[step]
        return [name for name, limit in thresholds.items() if is_beyond(values[name], limit, SIGNALS[name].sign)]


def is_beyond(value: float, threshold: float, sign: int) -> bool:
    """Tells whether a value is worse than its threshold, as one that is not finite is."""
    return not math.isfinite(value) or sign * (value - threshold) > 0


def judged_runs(runs: Sequence[Entry], statuses: Sequence[RunStatus], reference: str) -> list[Judged]:
    """Returns the runs that have ended, judged against the reference of their seed."""
    evaluations = {
        (entry.cell, entry.seed): {row["step"]: row for row in read(entry.folder / "metrics.jsonl") if ACCURACY in row}
        for entry, status in zip(runs, statuses, strict=True)
        if status.state in ("completed", "diverged")
    }
    last = {entry.seed: int(entry.config["trainer"]["max_steps"]) for entry in runs}

    def gain(cell: str, seed: int) -> float:
        by_step = evaluations[cell, seed]
        return by_step[last[seed]][ACCURACY] - by_step[0][ACCURACY] if last[seed] in by_step else math.nan

    judged = []
    for (cell, seed), by_step in evaluations.items():
        signals = {
            step: {name: signal.value(row, by_step[0]) for name, signal in SIGNALS.items()}
            for step, row in by_step.items()
            if step
        }
        gained = gain(cell, seed)
        lost = not gained >= LOST * gain(reference, seed)
        judged.append(Judged(cell.removeprefix("recipe="), seed, gained, lost, signals))
    return judged


def chosen_thresholds(runs: Collection[Judged], step: int) -> dict[str, float]:
    """Returns a threshold for each signal by which lost runs can be told: midway between the worst of the sound runs
    and the nearest lost one beyond. Other signals have none."""
    thresholds = {}
    for name, signal in SIGNALS.items():
        values = [(signal.sign * run.signals[step][name], run.lost) for run in runs if step in run.signals]
        worst_sound = max((value for value, lost in values if not lost), default=math.inf)
        beyond = [value for value, lost in values if lost and value > worst_sound]
        if beyond:
            thresholds[name] = signal.sign * (worst_sound + min(beyond)) / 2
    return thresholds


def share(count: int, of: int) -> str:
    """Returns a share in per cent with its 95 % interval (Clopper and Pearson 1934), as in '50% (1 of 2; 1 to 99)'."""
    if not of:
        return "-"
    low, high = binomtest(count, of).proportion_ci()
    return f"{count / of:.0%} ({count} of {of}; {100 * low:.0f} to {100 * high:.0f})"


def recipes_table(runs: Sequence[Judged], step: int, thresholds: Mapping[str, float]) -> str:
    """Returns the table of what the runs of a recipe gained, and what they were warned of."""
    rows = []
    for recipe in dict.fromkeys(run.recipe for run in runs):
        own = [run for run in runs if run.recipe == recipe]
        signals = list(dict.fromkeys(name for run in own for name in run.warned(step, thresholds)))
        gains = ", ".join(f"{run.gain:+.1f}" for run in own)
        warned = sum(bool(run.warned(step, thresholds)) for run in own)
        lost = sum(run.lost for run in own)
        rows.append([recipe, gains, f"{lost} of {len(own)}", f"{warned} of {len(own)}", "; ".join(signals) or "-"])
    columns = ["recipe", "gain of k-NN", "lost", f"warned at step {step}", "signals"]
    return markdown(Table("recipes", "", columns, rows, ["recipe", "signals"]))


def course_table(runs: Sequence[Judged], steps: Sequence[int], thresholds: Mapping[str, float]) -> str:
    """Returns the table of the shares of lost and of sound runs that are warned of, by step."""
    lost, sound = ([run for run in runs if run.lost is kind] for kind in (True, False))
    rows = []
    for step in steps:
        warned = [[run for run in part if run.warned(step, thresholds)] for part in (lost, sound)]
        told = [share(len(part), len(of)) for part, of in zip(warned, (lost, sound), strict=True)]
        rows.append([str(step), f"{step / steps[-1]:.0%}", *told])
    columns = ["step", "of the run", "lost runs that are warned of", "sound runs that are"]
    return markdown(Table("course", "", columns, rows))


def signals_table(runs: Sequence[Judged], step: int, halves: Sequence[Collection[Judged]]) -> str:
    """Returns the table of how well each signal tells lost runs from sound ones at a step, and of its thresholds."""
    here = [run for run in runs if step in run.signals]
    chosen = [chosen_thresholds(half, step) for half in halves]
    rows = []
    for name, signal in SIGNALS.items():
        of = {
            kind: [signal.sign * run.signals[step][name] for run in here if run.lost is kind] for kind in (True, False)
        }
        area = mannwhitneyu(of[True], of[False]).statistic / (len(of[True]) * len(of[False]))
        limits = [f"{part[name]:.3g}" if name in part else "none" for part in chosen]
        shipped = "-" if signal.threshold is None else f"{signal.threshold:g}"
        rows.append([name, f"{area:.2f}", shipped, *limits])
    columns = ["signal", "area under ROC", "threshold", "chosen by one half", "by the other"]
    return markdown(Table("signals", "", columns, rows, ["signal"]))


def across_halves(halves: Sequence[Collection[Judged]], step: int) -> str:
    """Returns the table of the shares that thresholds of one half of the recipes reach on the other."""
    rows = []
    for chooses, reports, words in ((0, 1, "one half"), (1, 0, "the other")):
        thresholds = chosen_thresholds(halves[chooses], step)
        cells = []
        for kind in (True, False):
            part = [run for run in halves[reports] if run.lost is kind]
            cells.append(share(sum(bool(run.warned(step, thresholds)) for run in part), len(part)))
        rows.append([words, *cells])
    columns = ["thresholds chosen by", "lost runs of the rest that are warned of", "sound runs that are"]
    return markdown(Table("halves", "", columns, rows, columns[:1]))


TEXT = """# Verdicts on collapse, validated

{runs} runs of `ablations/collapse.yaml`, {recipes} recipes with {seeds} seeds, {steps} steps of `recipe=demo` on the
texture tiles: {sound} are sound and {lost} are lost, which is to say gain less than half of the k-NN accuracy that the
official recipe gains with the same seed, or diverge. Verdicts read no labels.

## Recipe by recipe, at a tenth of the run

By the thresholds of the product, which are as they were before these runs. A run itself shows warnings after its
warm-up and step {few} only; here they are read at any step.

{by_recipe}
## Over the run

{course}
Shares have Clopper-Pearson intervals of 95 %, in which three runs of one recipe count as three.

## Signal by signal, at step {first}

The area under ROC is the share of pairs of a lost and a sound run in which the lost one looks worse: 0.5 by chance.

{signals}
Any of these thresholds, chosen by half of the recipes so that none of its sound runs is beyond, and reported on the
other half:

{across}
Command: `{command}`, on runs of `dinoswap-ablate run collapse` at commit {commits}.
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overrides", nargs="*", help="those that the study was run with")
    parser.add_argument("-o", "--out", type=Path, required=True, help="folder of collapse.md")
    arguments = parser.parse_args()
    study = read_study("collapse", arguments.overrides)
    design = make_design(study)
    planned = entries(study, design.cells)
    statuses = run_statuses([entry.folder for entry in planned])
    runs = judged_runs(planned, statuses, design.reference.name)
    steps = sorted({step for run in runs for step in run.signals})
    shipped = {name: signal.threshold for name, signal in SIGNALS.items() if signal.threshold is not None}
    recipes = list(dict.fromkeys(run.recipe for run in runs))
    halves = [[run for run in runs if recipes.index(run.recipe) % 2 == half] for half in (0, 1)]
    text = TEXT.format(
        runs=len(runs),
        recipes=len(recipes),
        seeds=len(study.seeds),
        steps=steps[-1],
        sound=sum(not run.lost for run in runs),
        lost=sum(run.lost for run in runs),
        few=FEW_STEPS,
        by_recipe=recipes_table(runs, steps[0], shipped),
        course=course_table(runs, steps, shipped),
        first=steps[0],
        signals=signals_table(runs, steps[0], halves),
        across=across_halves(halves, steps[0]),
        command=f"python tools/validate_verdicts.py {shlex.join(sys.argv[1:])}",
        commits=", ".join(sorted({str(status.record.get("git", {}).get("sha", "?"))[:10] for status in statuses})),
    )
    arguments.out.mkdir(parents=True, exist_ok=True)
    write_atomically(arguments.out / "collapse.md", text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
