"""What a report is about: each run that the study asks for, how it ended, and its values.

A completed run whose evaluation says that its features collapsed is `collapsed`. What it says of targets is only shown:
those of a network that has not learnt much yet can look uniform. A metric that a completed run reports as not finite is
an outcome as well, `failed`; one that it does not report at all is `missing`.
"""

import contextlib
import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import pandas as pd

from dinoswap.config.configuration import flatten
from dinoswap.config.identity import is_volatile
from dinoswap.studies.design import Cell, Design, make_design
from dinoswap.studies.ledger import Entry, RunStatus, entries, run_statuses
from dinoswap.studies.runs import read_curves, read_runs
from dinoswap.studies.study import Metric, Study

NO_CURVES = pd.DataFrame(columns=["cell", "seed", "step", "name", "value"])
SHOWN = ("eval/rankme", "eval/feature_std", "eval/mean_cosine")
"""What is said of the features of a cell's runs."""
OUTCOMES = ("completed", "collapsed", "diverged", "failed")
FEATURES = ("feature_std", "rankme", "rankme_max", "mean_cosine")
TARGETS = (
    *("target_entropy", "target_entropy_max", "target_information", "target_information_max"),
    "prototype_perplexity",
)
"""What the verdict needs, of features and of the targets of one objective."""


@dataclass(frozen=True)
class Run:
    """`status` is the ledger's state, or collapsed. `note` says what went wrong, or nothing."""

    entry: Entry
    found: RunStatus
    folder: Path
    status: str
    note: str

    @property
    def record(self) -> Mapping[str, Any]:
        """run.json, or empty."""
        return self.found.record

    @property
    def ended(self) -> bool:
        return self.status in OUTCOMES

    @property
    def command(self) -> str:
        """Runs it, or runs it again elsewhere."""
        return shlex.join(["dinoswap-train", *self.entry.overrides])

    def value(self, name: str) -> float:
        """A metric, a cost or the throughput; nan where it is missing or not finite."""
        section, key = "metrics", name
        if name == "images_per_second":
            section = "throughput"
        elif name.startswith("cost."):
            section, key = "cost", name.removeprefix("cost.")
        value = self.record.get(section, {}).get(key)
        return math.nan if value is None else float(value)

    @property
    def commit(self) -> str:
        """'8bc6db5', '8bc6db5 + changes' or nothing."""
        git = self.record.get("git") or {}
        return f"{str(git.get('sha', ''))[:10]}{' + changes' if git.get('dirty') else ''}"

    @property
    def hardware(self) -> str:
        machine = self.record.get("hardware") or {}
        gpus = ", ".join(map(str, machine.get("gpus") or ()))
        cores = f"{machine.get('threads', machine.get('cores', '?'))} threads of {machine.get('cpu', 'an unknown CPU')}"
        return (gpus or cores) if machine else ""

    @property
    def versions(self) -> str:
        return ", ".join(f"{name} {version}" for name, version in (self.record.get("versions") or {}).items())

    @property
    def wall_hours(self) -> float:
        """From its first start to its end, waiting between restarts included."""
        started, ended = self.record.get("started"), self.record.get("ended")
        if not (started and ended):
            return math.nan
        return (datetime.fromisoformat(ended) - datetime.fromisoformat(started)).total_seconds() / 3600


@dataclass(frozen=True)
class Collected:
    """`unasked`: folders of the study whose config or seed it does not ask for now. `passed_over`: a line for each file
    or folder below `root` that was not read, or not wholly."""

    study: Study
    root: Path
    design: Design
    runs: list[Run]
    unasked: list[str]
    curves: pd.DataFrame  # cell, seed, step, name, value; empty where a report is made again from its rows
    differing: Mapping[str, Sequence[str]]  # keys of the config that differ between cells: the value in each
    diagnostics: Mapping[str, Mapping[str, float]]  # of each cell those of SHOWN, means over its runs
    passed_over: list[str] = field(default_factory=list)

    @property
    def ended(self) -> list[Run]:
        return [run for run in self.runs if run.ended]

    def outcomes(self, metric: Metric) -> pd.DataFrame:
        """Cell, seed, status and value, a row per run."""
        rows = [(run.entry.cell, run.entry.seed, *_outcome(run, metric)) for run in self.runs]
        return pd.DataFrame(rows, columns=["cell", "seed", "status", "value"]).astype({"value": float})

    def of_cell(self, cell: str) -> list[Run]:
        return [run for run in self.runs if run.entry.cell == cell]


def differing(cells: Sequence[Cell]) -> dict[str, list[str]]:
    """Keys of the config that are not the same in all cells, with the value in each, '-' where there is none."""
    whole = [flatten(cell.config) for cell in cells]
    flat = [{key: value for key, value in config.items() if not is_volatile(key)} for config in whole]
    keys = dict.fromkeys(key for config in flat for key in config)
    table = {key: [str(config.get(key, "-")) for config in flat] for key in keys}
    return {key: values for key, values in table.items() if len(set(values)) > 1}


def diagnostics(runs: Sequence[Run]) -> dict[str, dict[str, float]]:
    """Of each cell the means of what is known."""
    found: dict[str, dict[str, float]] = {}
    for cell in dict.fromkeys(run.entry.cell for run in runs):
        own = [run for run in runs if run.entry.cell == cell]
        values = {name: [run.value(name) for run in own] for name in SHOWN}
        known = {name: [value for value in each if math.isfinite(value)] for name, each in values.items()}
        found[cell] = {name: sum(each) / len(each) if each else math.nan for name, each in known.items()}
    return found


def collect(study: Study, root: Path) -> Collected:
    """The runs of `study` below `root`, results/runs/<study>, which need not exist."""
    design = make_design(study, check=False)
    asked = entries(study, design.cells)
    folders = [root / entry.run_id / f"seed{entry.seed}" for entry in asked]
    runs = [_run(*each) for each in zip(asked, run_statuses(folders), folders, strict=True)]
    names = {metric.name for metric in study.metrics} | {"loss"}
    if not root.is_dir():
        return Collected(study, root, design, runs, [], NO_CURVES, differing(design.cells), diagnostics(runs))
    loaded = read_runs(root)
    frame = loaded.frame
    places = {(run.entry.run_id, run.entry.seed): run.entry.cell for run in runs}
    keys = pd.Series(list(zip(frame["run_id"].astype(str), frame["seed"].astype(int), strict=True)), index=frame.index)
    ours = keys.isin(places.keys())
    read = read_curves(frame[ours], names)
    curves = read.frame
    passed_over = [each.line for each in loaded.passed_over + read.passed_over]
    cells = [places[key] for key in zip(curves["run_id"].astype(str), curves["seed"], strict=True)]
    unasked = [str(Path(path).relative_to(root)) for path in frame.loc[~ours, "path"]]
    curves = curves.assign(cell=cells).drop(columns="run_id")
    known = differing(design.cells), diagnostics(runs)
    return Collected(study, root, design, runs, unasked, curves, *known, passed_over)


def _run(entry: Entry, found: RunStatus, folder: Path) -> Run:
    if found.state != "completed":
        return Run(entry, found, folder, found.state, found.note)
    collapsed, said = diagnose(found.record.get("metrics") or {})
    return Run(entry, found, folder, "collapsed" if collapsed else "completed", said)


def diagnose(metrics: Mapping[str, float | None]) -> tuple[bool, str]:
    """Whether the features of the final evaluation have collapsed, and what is said of them and of the targets."""
    from dinoswap.evaluation.diagnostics import verdict  # imports torch

    said: dict[str, str | None] = {}
    for where in dict.fromkeys(name.rpartition("/")[0] for name in metrics):
        needed = FEATURES if where == "eval" else TARGETS
        values = {key: metrics[f"{where}/{key}"] for key in needed if f"{where}/{key}" in metrics}
        if len(values) == len(needed):
            known = {key: math.nan if value is None else value for key, value in values.items()}
            with contextlib.suppress(ArithmeticError):  # of values that no evaluation gives
                said[where] = verdict(known, f"{where.removeprefix('eval/')}'s teacher targets")
    return bool(said.get("eval")), "; ".join(sentence for sentence in said.values() if sentence)


def _outcome(run: Run, metric: Metric) -> tuple[str, float]:
    if run.status == "queued":
        return "running", math.nan
    if run.status not in ("completed", "collapsed"):
        return run.status, math.nan
    value = run.value(metric.name)
    if math.isfinite(value):
        return run.status, value
    reported = metric.name in (run.record.get("metrics") or {}) or run.status == "collapsed"
    return ("failed" if reported else "missing"), math.nan
