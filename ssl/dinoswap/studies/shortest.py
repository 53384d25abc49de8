"""How short the runs of a study may be, as far as finished runs that evaluated on the way can tell before it is run."""

import itertools
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pandas as pd

from dinoswap.config.identity import is_volatile
from dinoswap.config.typed_paths import key_of
from dinoswap.run.points import read_points
from dinoswap.studies.costs import COSTS
from dinoswap.studies.design import Design
from dinoswap.studies.ledger import Entry, record_of
from dinoswap.studies.over_training import COLUMNS, Run, course, shared_evaluations
from dinoswap.studies.study import Metric, Study

LENGTH = "trainer.max_steps"


def how_short(study: Study, design: Design, entries: Sequence[Entry]) -> list[str]:
    """Returns a sentence on the share of a run from which its effects on the metric that decides are those of the end,
    none where nothing is known.

    The source are finished runs of the same configs and seeds, in this study or another; where they do not tell, those
    of this study's folder that differ in their number of steps alone.
    """
    sources = () if study.metrics[0].name in COSTS else (finished, of_another_length)
    sentences = (_sentence(study, design, entries, source(entries)) for source in sources)
    return list(itertools.islice(filter(None, sentences), 1))


def _sentence(study: Study, design: Design, entries: Sequence[Entry], folders: Mapping[Run, Path]) -> str:
    """Returns what the runs in these folders tell, an empty text where they tell nothing."""
    metric, ends = study.metrics[0], {run: record_of(folder)[0].get("steps") or 0 for run, folder in folders.items()}
    logged = [(run, point) for run, folder in folders.items() for point in _logged(folder, metric)]
    rows = [(*run, step, metric.name, value) for run, (step, value) in logged]
    shared = shared_evaluations(pd.DataFrame(rows, columns=COLUMNS), ends, {metric.name})
    statuses = {(entry.cell, entry.seed): "completed" if _run(entry) in folders else "missing" for entry in entries}
    cells = {cell.name: cell.levels for cell in design.cells}
    known = course(study, cells, statuses, shared, metric, min(ends.values(), default=0))
    if known is None or not known.how_short:
        return ""
    names = sorted({folder.parents[1].name for folder in folders.values()})
    source = f"{len(folders)} finished runs of {', '.join(names)}"
    return (
        f"{metric.name}: {known.how_short}; the source is {source}, and a run that is planned short has other schedules"
    )


def finished(entries: Sequence[Entry]) -> dict[Run, Path]:
    """Returns the folder of a finished run of the config and seed of each entry that has one, in its own study or in
    another."""
    folder_of: dict[Run, Path] = {}
    for entry in entries:
        elsewhere = sorted(entry.folder.parents[2].glob(f"*/{entry.run_id}/seed{entry.seed}"))
        folders = [folder for folder in (entry.folder, *elsewhere) if _completed(folder)]
        if folders:
            folder_of[_run(entry)] = folders[0]
    return folder_of


def of_another_length(entries: Sequence[Entry]) -> Mapping[Run, Path]:
    """Returns the folder of a finished run of the study that has the overrides of each entry but for the number of
    steps: of the number that most of them have, the larger of two."""
    run_of: dict[Any, Run] = {(entry.seed, _decisive(entry.overrides)): _run(entry) for entry in entries}
    by_length: dict[int, dict[Run, Path]] = {}
    for path in sorted(entries[0].folder.parents[1].glob("*/seed*/run.json")):
        record = _completed(path.parent)
        run = run_of.get((record.get("seed"), _decisive(record.get("overrides", ()))))
        if run and record.get("steps"):
            by_length.setdefault(record["steps"], {})[run] = path.parent
    return max(by_length.items(), key=lambda item: (len(item[1]), item[0]), default=(0, {}))[1]


def _run(entry: Entry) -> Run:
    """Returns the cell and the seed of an entry."""
    return entry.cell, entry.seed


def _completed(folder: Path) -> Mapping[str, Any]:
    """Returns the record of a completed run, empty of any other."""
    record, _ = record_of(folder)
    return record if record.get("status") == "completed" else {}


def _decisive(overrides: Collection[str]) -> frozenset[str]:
    """Returns the overrides that change the result of a run, but for its number of steps."""
    return frozenset(line for line in overrides if key_of(line) != LENGTH and not is_volatile(key_of(line)))


def _logged(folder: Path, metric: Metric) -> Iterator[tuple[int, float]]:
    """Yields step and value of what a run measured, as far as its log can be read."""
    with suppress(OSError, ValueError):
        for step, _, value in read_points(folder / "metrics.jsonl", {metric.name}):
            yield step, value
