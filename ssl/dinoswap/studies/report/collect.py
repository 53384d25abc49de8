"""What a report is about: each run that the study asks for, how it ended, and its values.

A completed run whose evaluation says that its features collapsed is `collapsed`. What it says of targets is only shown:
those of a network that has not learnt much yet can look uniform. A metric that a completed run reports as not finite is
an outcome as well, `failed`; one that it does not report at all is `missing`.
"""

import contextlib
import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any, cast

import pandas as pd

from dinoswap.config.configuration import flatten
from dinoswap.config.identity import is_volatile
from dinoswap.studies.costs import COSTS, place_of
from dinoswap.studies.design import Cell, Design, make_design
from dinoswap.studies.ledger import Entry, RunStatus, entries, run_statuses
from dinoswap.studies.looks import recorded_looks, unplanned_counts
from dinoswap.studies.over_training import COLUMNS, shared_evaluations
from dinoswap.studies.runs import read_curves, read_runs
from dinoswap.studies.statistics.outcomes import WITH_VALUE
from dinoswap.studies.study import Metric, Study

NO_CURVES = pd.DataFrame(columns=COLUMNS)
SHOWN = ("eval/rankme", "eval/feature_std", "eval/mean_cosine")
"""The diagnostics of features that are shown of each cell."""
OUTCOMES = ("completed", "collapsed", "diverged", "failed")
FEATURES = ("feature_std", "rankme", "rankme_max", "mean_cosine")
TARGETS = (
    *("target_entropy", "target_entropy_max", "target_information", "target_information_max"),
    "prototype_perplexity",
)
"""The metrics that the verdict on features needs, and that on the targets of one objective."""


@dataclass(frozen=True)
class Run:
    """A run as the report sees it: `status` is the ledger's state or `collapsed`; `note` says what went wrong, or is
    empty."""

    entry: Entry
    ledger: RunStatus
    folder: Path
    status: str
    note: str

    @property
    def record(self) -> Mapping[str, Any]:
        """The run.json of the run, empty without one."""
        return self.ledger.record

    @property
    def ended(self) -> bool:
        """Whether the run has an outcome."""
        return self.status in OUTCOMES

    @property
    def command(self) -> str:
        """The command line that trains this run, here or elsewhere."""
        return shlex.join(["dinoswap-train", *self.entry.overrides])

    def value(self, name: str) -> float:
        """Returns a metric, a cost or the throughput; nan where it is missing or not finite."""
        section, key = place_of(name)
        value = self.record.get(section, {}).get(key)
        return math.nan if value is None else float(value)

    @property
    def commit(self) -> str:
        """The commit of the code, as '8bc6db5' or '8bc6db5 + changes', or an empty text."""
        git = self.record.get("git") or {}
        return f"{str(git.get('sha', ''))[:10]}{' + changes' if git.get('dirty') else ''}"

    @property
    def hardware(self) -> str:
        """The GPUs of the run, or its CPU and threads; an empty text where these are unknown."""
        machine = self.record.get("hardware") or {}
        gpus = ", ".join(map(str, machine.get("gpus") or ()))
        cores = f"{machine.get('threads', machine.get('cores', '?'))} threads of {machine.get('cpu', 'an unknown CPU')}"
        return (gpus or cores) if machine else ""

    @property
    def units(self) -> float:
        """The cores or GPUs whose hours the run's cost counts; nan where they are unknown."""
        machine = self.record.get("hardware") or {}
        counts = [machine.get("ranks"), 1 if machine.get("gpus") else machine.get("threads")]
        known = [count for count in counts if type(count) is int and count > 0]
        return float(math.prod(known)) if len(known) == len(counts) else math.nan

    @property
    def versions(self) -> str:
        """The versions of packages in words."""
        return ", ".join(f"{name} {version}" for name, version in (self.record.get("versions") or {}).items())

    @property
    def wall_hours(self) -> float:
        """Hours from the first start to the end, waiting between restarts included; nan for a run that has not
        ended."""
        started, ended = self.record.get("started"), self.record.get("ended")
        if not (started and ended):
            return math.nan
        return (datetime.fromisoformat(ended) - datetime.fromisoformat(started)).total_seconds() / 3600


@dataclass(frozen=True)
class Collected:
    """The runs of a study and what they logged. `unasked` are folders of the study whose config or seed it does not ask
    for now, `passed_over` has a line for each file or folder below `root` that was not read, or not wholly."""

    study: Study
    root: Path
    design: Design
    runs: list[Run]
    unasked: list[str]
    curves: pd.DataFrame  # cell, seed, step, name, value; empty where a report is made again from its rows
    in_loop: pd.DataFrame | None  # of `shared_evaluations`; None where a report.json does not have it
    differing: Mapping[str, Sequence[str]]  # keys of the config that differ between cells: the value in each
    diagnostics: Mapping[str, Mapping[str, float]]  # of each cell those of SHOWN, means over its runs
    images_per_step: Mapping[str, int]  # of each cell; empty where a report.json does not have it
    passed_over: list[str] = field(default_factory=list)
    seen: Mapping[str, Sequence[int]] = field(default_factory=dict)  # cell -> unplanned numbers of seeds, looks.py

    @property
    def ended(self) -> list[Run]:
        """The runs that have an outcome."""
        return [run for run in self.runs if run.ended]

    @property
    def valued(self) -> list[Run]:
        """The runs that trained to their end."""
        return [run for run in self.runs if run.status in WITH_VALUE]

    def outcomes(self, metric: Metric) -> pd.DataFrame:
        """Returns a row per run with the columns cell, seed, status and value."""
        rows = [(run.entry.cell, run.entry.seed, *_outcome(run, metric)) for run in self.runs]
        return pd.DataFrame(rows, columns=["cell", "seed", "status", "value"]).astype({"value": float})

    @property
    def ended_seeds(self) -> dict[str, list[int]]:
        """The seeds of which each cell's runs have ended, by run_id."""
        cells: dict[str, list[int]] = {cell.run_id: [] for cell in self.design.cells}
        for run in self.ended:
            cells[run.entry.run_id].append(run.entry.seed)
        return cells

    def of_cell(self, cell: str) -> list[Run]:
        return [run for run in self.runs if run.entry.cell == cell]


def differing(cells: Sequence[Cell]) -> dict[str, list[str]]:
    """Returns the keys of the config that differ between cells, with the value in each cell, '-' where it has none."""
    configs = [flatten(cell.config) for cell in cells]
    flat = [{key: value for key, value in config.items() if not is_volatile(key)} for config in configs]
    keys = dict.fromkeys(key for config in flat for key in config)
    table = {key: [str(config.get(key, "-")) for config in flat] for key in keys}
    return {key: values for key, values in table.items() if len(set(values)) > 1}


def diagnostics(runs: Sequence[Run]) -> dict[str, dict[str, float]]:
    """Returns, for each cell, the means over its runs of the finite values of SHOWN; nan where there are none."""
    rows = [{"cell": run.entry.cell, **{name: run.value(name) for name in SHOWN}} for run in runs]
    return cast(dict[str, dict[str, float]], pd.DataFrame(rows).groupby("cell", sort=False).mean().to_dict("index"))


def collect(study: Study, root: Path) -> Collected:
    """Returns the runs of `study` below `root`, results/runs/<study>, which need not exist. Raises ConfigError for a
    study whose cells do not compose."""
    design = make_design(study, check=False)
    planned = entries(study, design.cells)
    folders = [root / entry.run_id / f"seed{entry.seed}" for entry in planned]
    triples = zip(planned, run_statuses(folders), folders, strict=True)
    runs = [_run(entry, status, folder) for entry, status, folder in triples]
    names = {metric.name for metric in study.metrics} | {"loss"}
    images_per_step = {cell.name: int(cell.config["data"]["batch_size"]) for cell in design.cells}
    known = differing(design.cells), diagnostics(runs), images_per_step
    if not root.is_dir():
        return Collected(study, root, design, runs, [], NO_CURVES, NO_CURVES, *known)
    loaded = read_runs(root)
    frame = loaded.frame
    cell_of = {(run.entry.run_id, run.entry.seed): run.entry.cell for run in runs}
    keys = pd.Series(list(zip(frame["run_id"].astype(str), frame["seed"].astype(int), strict=True)), index=frame.index)
    is_planned = keys.isin(cell_of.keys())
    logged = read_curves(frame[is_planned], names)
    curves = logged.frame
    passed_over = [skipped.line for skipped in loaded.passed_over + logged.passed_over]
    cells = [cell_of[key] for key in zip(curves["run_id"].astype(str), curves["seed"], strict=True)]
    unasked = [str(Path(path).relative_to(root)) for path in frame.loc[~is_planned, "path"]]
    curves = curves.assign(cell=cells).drop(columns="run_id")
    ends = {(run.entry.cell, run.entry.seed): run.record.get("steps") for run in runs if run.status in WITH_VALUE}
    in_loop = shared_evaluations(curves, ends, names - {"loss", *COSTS})
    collected = Collected(study, root, design, runs, unasked, curves, in_loop, *known, passed_over)
    return replace(collected, seen=_seen(collected))


def _seen(collected: Collected) -> dict[str, list[int]]:
    """Returns, for the effect of each cell against the first, and in a crossed design for all effects under the name of
    the first, the numbers of seeds at which it was seen without a plan, now or before."""
    study, cells = collected.study, collected.design.cells
    looks = [*recorded_looks(collected.root), (study.plan, collected.ended_seeds)]
    if study.design in ("factorial", "fractional"):
        compared = {cells[0].name: [cell.run_id for cell in cells]}
    else:
        compared = {cell.name: [cells[0].run_id, cell.run_id] for cell in cells[1:]}
    counts = {name: unplanned_counts(looks, study.plan, ids, study.seeds) for name, ids in compared.items()}
    return {name: count for name, count in counts.items() if count}


def _run(entry: Entry, status: RunStatus, folder: Path) -> Run:
    """Returns the run of an entry with its outcome, in which a completed run may have collapsed."""
    if status.state != "completed":
        return Run(entry, status, folder, status.state, status.note)
    collapsed, note = diagnose(status.record.get("metrics") or {})
    return Run(entry, status, folder, "collapsed" if collapsed else "completed", note)


def diagnose(metrics: Mapping[str, float | None]) -> tuple[bool, str]:
    """Returns whether the features of the final evaluation have collapsed, and the verdicts on them and on the targets
    in words."""
    from dinoswap.metric.diagnostics import verdict  # imports torch

    verdicts: dict[str, str | None] = {}
    for where in dict.fromkeys(name.rpartition("/")[0] for name in metrics):
        needed = FEATURES if where == "eval" else TARGETS
        values = {key: metrics[f"{where}/{key}"] for key in needed if f"{where}/{key}" in metrics}
        if len(values) == len(needed):
            known = {key: math.nan if value is None else value for key, value in values.items()}
            with contextlib.suppress(ArithmeticError):  # of values that no evaluation gives
                verdicts[where] = verdict(known, f"{where.removeprefix('eval/')}'s teacher targets")
    return bool(verdicts.get("eval")), "; ".join(sentence for sentence in verdicts.values() if sentence)


def _outcome(run: Run, metric: Metric) -> tuple[str, float]:
    """Returns the status of a run with regard to one metric, and its value, nan without one."""
    if run.status == "queued":
        return "running", math.nan
    if run.status not in ("completed", "collapsed"):
        return run.status, math.nan
    value = run.value(metric.name)
    if math.isfinite(value):
        return run.status, value
    reported = metric.name in (run.record.get("metrics") or {}) or run.status == "collapsed"
    return ("failed" if reported else "missing"), math.nan
