"""What a search has found so far, as Markdown: how its trials ended, the best of them (the Pareto front with several
objectives), and what the winners are worth with fresh seeds, against the base, with intervals and a verdict.

The best of many trials looks better than it is: it was chosen for its luck too. Only the fresh seeds tell.
"""

import itertools
import shlex
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import optuna
import pandas as pd
from optuna.trial import FrozenTrial, TrialState

from dinoswap.config.configuration import flatten
from dinoswap.files.writing import write_atomically
from dinoswap.studies.csv_text import as_csv
from dinoswap.studies.ledger import RunStatus, run_statuses
from dinoswap.studies.overrides import Scalar, as_text
from dinoswap.studies.statistics import family, paired_effect
from dinoswap.studies.tuning.definition import Tuning
from dinoswap.studies.tuning.training import measured
from dinoswap.studies.tuning.trials import current, error_of, winners
from dinoswap.studies.tuning.worker import BASE, arms

SHOWN = 10
"""Rows of the table of best trials for a single objective."""


def write_report(study: optuna.Study, tuning: Tuning) -> str:
    """Writes report.md and, with all trials, trials.csv into the search's folder; returns the text of report.md."""
    text = report(study, tuning)
    write_atomically(tuning.folder / "report.md", text)
    write_atomically(tuning.folder / "trials.csv", as_csv(study.trials_dataframe()))
    return text


def report(study: optuna.Study, tuning: Tuning) -> str:
    """Returns the report of a search as Markdown."""
    trials = current(study.get_trials(deepcopy=False))
    several = len(tuning.objectives) > 1
    best = winners(study, len(trials) if several else SHOWN)
    parts = [f"# {tuning.name}", tuning.question, progress(trials, tuning)]
    if best:
        parts += [f"## {'Pareto front' if several else 'Best trials'}, of one seed", best_table(best, tuning)]
    return "\n\n".join([*parts, *losses(trials), *confirmed(study, tuning)]) + "\n"


def progress(trials: Sequence[FrozenTrial], tuning: Tuning) -> str:
    """Returns in a sentence how many trials there are, and how they ended."""
    counts = Counter(ending(trial) for trial in trials)
    words = ", ".join(f"{count} {state}" for state, count in counts.most_common())
    return f"{len(trials)} of {tuning.trials} trials{f': {words}' if words else ''}."


def ending(trial: FrozenTrial) -> str:
    """Returns in a word how a trial ended, or where it stands."""
    if trial.state == TrialState.PRUNED:
        return str(trial.user_attrs.get("status", "pruned"))  # or diverged
    return {"COMPLETE": "completed", "FAIL": "failed"}.get(trial.state.name, trial.state.name.lower())


def best_table(trials: Iterable[FrozenTrial], tuning: Tuning) -> str:
    """Returns the table of these trials: what they reached, and their parameters."""
    header = ["trial", *(objective.name for objective in tuning.objectives), *tuning.parameters]
    rows = [[str(trial.number), *map(shown, trial.values), *cells(trial.params, tuning)] for trial in trials]
    return table(header, rows)


def cells(values: Mapping[str, Any], tuning: Tuning) -> list[str]:
    """Returns a row's entries in the columns of parameters. An entry is empty for a group that the values do not
    choose."""
    values = flatten(tuning.config()) | dict(values)
    return [shown(values[key]) if key in values else "" for key in tuning.parameters]


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Returns a table in Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', '&#124;') for cell in line)} |" for line in lines)


def shown(value: Scalar) -> str:
    """Returns a value as a cell of a table has it."""
    if isinstance(value, float):
        return f"{value:.4g}"
    return value if isinstance(value, str) else as_text(value)


def losses(trials: Iterable[FrozenTrial]) -> list[str]:
    """Returns a section on the trials that failed or diverged, each with its error; nothing where there are none."""
    lost = [trial for trial in trials if ending(trial) in ("failed", "diverged")]
    lines = [f"- trial {trial.number} {ending(trial)}: {error_of(trial)}" for trial in lost]
    return ["## Failed and diverged", "\n".join(lines)] if lines else []


# --- fresh seeds ------------------------------------------------------------------------------------------------------


def confirmed(study: optuna.Study, tuning: Tuning) -> list[str]:
    """Returns a section on the winners beside the base: a table of means, a verdict on each, and the commands that
    repeat them; nothing where there are no winners."""
    compared = arms(study, tuning)
    if not compared:
        return []
    folders = {arm: [tuning.run_folder(values, seed) for seed in tuning.seeds] for arm, values in compared.items()}
    statuses = {arm: run_statuses(run_folders) for arm, run_folders in folders.items()}
    frames = {arm: outcomes(tuning, arm, runs) for arm, runs in statuses.items()}
    notes = [
        f"- {arm}, seed {seed}: {run.words}"
        for arm, runs in statuses.items()
        for seed, run in zip(tuning.seeds, runs, strict=True)
        if run.state != "completed"
    ]
    names = [objective.name for objective in tuning.objectives]
    rows = [
        [arm, *(shown(float(frames[arm][name]["value"].mean())) for name in names), *cells(values, tuning)]
        for arm, values in compared.items()
    ]
    commands = [f"    dinoswap-train {shlex.join(tuning.overrides(values))} seed=..." for values in compared.values()]
    return [
        f"## The winners against the base, with the fresh seeds {', '.join(map(str, tuning.seeds))}",
        table(["mean of the seeds", *names, *tuning.parameters], rows),
        "\n".join([*verdicts(tuning, frames), *notes]),
        "The difference is paired by seed; its interval is that of a paired t test. To repeat a row:",
        "\n".join(commands),
    ]


def verdicts(tuning: Tuning, frames: Mapping[str, Mapping[str, pd.DataFrame]]) -> list[str]:
    """Returns the verdicts, a line each, on every winner and objective, which are one family."""
    pairs = list(itertools.product([arm for arm in frames if arm != BASE], tuning.objectives))
    effects = [
        paired_effect(
            frames[BASE][objective.name],
            frames[arm][objective.name],
            name=f"{arm}, {objective.name}",
            smallest_effect=objective.smallest_effect,
            higher_is_better=objective.direction == "maximize",
        )
        for arm, objective in pairs
    ]
    return [f"- {decision.effect.name}: {decision.words}" for decision in family(effects)]


def outcomes(tuning: Tuning, arm: str, runs: Sequence[RunStatus]) -> dict[str, pd.DataFrame]:
    """Returns, by objective, the outcomes of one arm in the columns that `statistics` reads."""
    frames = {}
    for objective in tuning.objectives:
        metrics = [measured(run.record).get(objective.name) for run in runs]
        statuses = ["missing" if run.state == "queued" else run.state for run in runs]
        for index, metric in enumerate(metrics):
            if statuses[index] == "completed" and metric is None:
                statuses[index] = "failed"  # to the end, but what it learnt cannot be measured
        frames[objective.name] = pd.DataFrame({"cell": arm, "seed": tuning.seeds, "status": statuses, "value": metrics})
    return frames
