"""A report made again from its own report.json: the rows of its runs judged by the statistics of today.

The run folders are not needed. Of what runs logged on the way the file has the evaluations in the loop that all of
them share; one of before 2026-11-30 has neither these nor how many images a step has. Figures of learning curves beside
it stay as they were drawn. A report.json of before 2026-11-29 lacks the keys that `read_rows` names.
"""

import html
import json
import math
import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from dinoswap.config.schema import ConfigError
from dinoswap.studies.costs import COSTS, place_of
from dinoswap.studies.design import Cell, Design
from dinoswap.studies.ledger import STATES, Entry, RunStatus, State
from dinoswap.studies.looks import Looks
from dinoswap.studies.over_training import COLUMNS
from dinoswap.studies.report.canvas import Plot, inline
from dinoswap.studies.report.collect import NO_CURVES, Collected, Run
from dinoswap.studies.study import Metric, Study

NEEDED = (
    *("study", "file", "question", "command_line", "base", "seeds", "design", "factors", "cells", "notes"),
    *("results", "differing", "runs", "unasked"),
)
RECORD_FIELDS = ("git", "versions", "hardware", "started", "ended", "steps", "restarts")


def read_rows(path: Path) -> Collected:
    """Returns the runs and the study that a report.json is about. Raises ConfigError for a file that is none, or lacks
    what a report needs."""
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from error
    absent = [key for key in NEEDED if not isinstance(content, dict) or key not in content]
    if absent:
        raise ConfigError(f"{path}: has no {', '.join(absent)}; only a report.json of this version can be made again")
    if not content["results"]:
        raise ConfigError(f"{path}: no run had ended, so that there is nothing to judge again")
    try:
        return _collected(content)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ConfigError(f"{path}: is not what a report writes: {type(error).__name__}: {error}") from error


def _collected(content: Mapping[str, Any]) -> Collected:
    """Returns the study with its runs and diagnostics as a report.json holds them, without curves."""
    study = _study(content)
    cells = [Cell(cell["name"], cell["levels"], run_id=cell["run_id"]) for cell in content["cells"]]
    root = Path("results/runs") / study.name
    runs = [_run(row, root, {metric.name for metric in study.metrics}) for row in content["runs"]]
    return Collected(
        study=study,
        root=root,
        design=Design(cells, content["notes"]),
        runs=runs,
        unasked=content["unasked"],
        curves=NO_CURVES,
        in_loop=_in_loop(content),
        differing=content["differing"],
        diagnostics={cell["name"]: cell["diagnostics"] for cell in content["cells"]},
        images_per_step={
            cell["name"]: int(cell["images_per_step"]) for cell in content["cells"] if "images_per_step" in cell
        },
        passed_over=content.get("passed_over", []),
        seen=content.get("seen", {}),
    )


def _study(content: Mapping[str, Any]) -> Study:
    """Returns the study as far as a report shows it: which cells were left out, and why, is in the notes."""
    file, looks = Path(content["file"]), content.get("looks")
    return Study(
        name=content["study"],
        path=file if file.suffix else Path("ablations") / f"{file}.yaml",
        question=content["question"],
        command_line=content["command_line"],
        base=content["base"],
        seeds=content["seeds"],
        looks=Looks(tuple(looks["counts"]), looks["spending"]) if looks else None,
        budget=None,
        launcher=[],
        factors=content["factors"],
        design=content["design"],
        metrics=[Metric(**result["metric"]) for result in content["results"]],
        exclude=[],
        invalid="error",
        runs=None,
        generators={},
        interactions=False,
        cells={},
    )


def _in_loop(content: Mapping[str, Any]) -> pd.DataFrame | None:
    """Returns what runs measured in the loop, None of a report.json that does not say it."""
    if not any("over_training" in result for result in content["results"]):
        return None
    rows = [
        (run["cell"], run["seed"], step, name, math.nan if value is None else float(value))
        for result in content["results"]
        for name, steps in [(result["metric"]["name"], (result["over_training"] or {}).get("steps", []))]
        for run in content["runs"]
        if name in run["in_loop"]
        for step, value in zip(steps, run["in_loop"][name], strict=True)
    ]
    return pd.DataFrame(rows, columns=COLUMNS)


def _run(row: Mapping[str, Any], root: Path, metrics: set[str]) -> Run:
    """Returns the run in a row of report.json. What its run.json held is as far as the report has it."""
    overrides = shlex.split(row["command"])[1:]
    folder = root / row["run_id"] / f"seed{row['seed']}"
    entry = Entry(cell=row["cell"], seed=row["seed"], overrides=overrides, config={}, folder=folder)
    started = any(row[name] is not None for name in RECORD_FIELDS)
    record: dict[str, Any] = {name: row[name] for name in RECORD_FIELDS} if started else {}
    if started:
        record["metrics"] = {name: row[name] for name in metrics - set(COSTS) if name in row}
        for name in COSTS:
            section, key = place_of(name)
            record.setdefault(section, {})[key] = row[name]
    state: State = row["status"] if row["status"] in STATES else "completed"  # collapsed runs are completed ones
    return Run(entry, RunStatus(state, row["note"], record), folder, row["status"], row["note"])


def drawn_before(folder: Path) -> dict[str, Plot]:
    """Returns the figures of a report in `folder`, by name, with the captions of its report.md."""
    try:
        text = (folder / "report.md").read_text()
    except OSError:
        return {}
    plots = {}
    for alt, name, caption in re.findall(r"!\[(.*)\]\(figures/([\w-]+)\.png\)\n\n\*(.*)\*", text):
        svg, png = (folder / "figures" / f"{name}.{kind}" for kind in ("svg", "png"))
        if svg.is_file() and png.is_file():
            figure, words = svg.read_text(), _plain(alt)
            plots[name] = Plot(name, "", _plain(caption), words, figure, inline(figure, name, words), png.read_bytes())
    return plots


def _plain(text: str) -> str:
    """Undoes `markdown_text`."""
    return html.unescape(re.sub(r"\\(.)", r"\1", text))
