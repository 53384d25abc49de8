"""What the page of all runs shows of each: from its run.json, the evaluations in metrics.jsonl, the folder of pictures.

What was read is known again: a folder is looked into when its run.json has changed, or its metrics.jsonl while it runs,
of which only what it has gained is read.
"""

import json
import math
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from dinoswap.config.configuration import config_dir
from dinoswap.config.identity import ROOT, defaults
from dinoswap.files.lock import holder
from dinoswap.files.reading import parse_object, read_on
from dinoswap.run.earlier_runs import STEPS
from dinoswap.run.find_runs import SETTLED_NS, Stamp, reason_of
from dinoswap.run.points import points_of
from dinoswap.run.record import MAX_INT, Record, read_record
from dinoswap.run.title import title_of

RUNNING, UNREADABLE, SILENT = "running", "unreadable", "silent"
"""The status of a run that is under way; of one whose run.json is not the record of a run; and of one that says that it
is running, while nothing else does."""
QUIET_MINUTES = 10
"""How long a run may write nothing before it is asked for: an evaluation of many images, or steps of a large network,
take minutes."""
MOST_BYTES = 2**25
"""Bytes from the end of a metrics.jsonl that are read at once: those of 100,000 lines."""
MOST_POINTS = 128
"""Points of a curve: there is room for one per pixel."""
MOST_LETTERS = 500
"""Letters of a name or an error; all of it is in the run's folder."""
PICTURE = "pca.png"
"""The picture that is shown if a run has it."""

Points = list[tuple[int, float]]


@dataclass(frozen=True)
class Row:
    """A run as it is shown. What is not known is None, or empty. `path` is that of its folder from the root, `heard`
    the time of its last sign of life in seconds since 1970, `points` are step and value of `metric`."""

    path: str
    study: str
    run_id: str
    seed: int | None = None
    name: str = ""
    status: str = UNREADABLE
    note: str = ""
    heard: float = 0.0
    step: int | None = None
    max_steps: int | None = None
    metric: str = ""
    value: float | None = None
    points: Points = field(default_factory=list)
    images_per_second: float | None = None
    hours: float | None = None
    started: str = ""
    ended: str = ""
    picture: str = ""


@dataclass(frozen=True)
class Known:
    """A row and what it was read from: the stamps of run.json and metrics.jsonl, None where these had not settled or
    could not be read, and how many bytes of metrics.jsonl."""

    row: Row
    stamps: list[int] | None
    read: int


def look(root: Path, path: str, stamp: Stamp, before: Known | None, now_ns: int) -> Known:
    """Returns the row of the run at `path` below `root`, whose run.json has this stamp: `before`, which was known of it
    earlier, where that is up to date."""
    folder, stamps = root / path, [*stamp]
    if before is not None and before.row.status != RUNNING and before.stamps and before.stamps[:2] == stamps:
        return before
    stamps += _stamp(folder / "metrics.jsonl")
    if before is not None and before.stamps == stamps:
        return before
    row, read = _read(folder, path, before)
    latest = max(stamps[::2])
    complete = row.status != UNREADABLE and (read or not stamps[-1])
    return Known(replace(row, heard=latest / 1e9), stamps if complete and latest < now_ns - SETTLED_NS else None, read)


def _stamp(path: Path) -> Stamp:
    """Returns time and size of a file, zeros where there is none."""
    try:
        stat = path.stat()
    except OSError:
        return 0, 0
    return stat.st_mtime_ns, stat.st_size


def with_liveness(root: Path, row: Row, now_ns: int) -> Row:
    """Returns the row with the status `SILENT` where a run says that it is running, has written nothing for
    `QUIET_MINUTES`, and no process is seen to hold the lock of its folder."""
    minutes = (now_ns / 1e9 - row.heard) / 60
    if row.status != RUNNING or minutes < QUIET_MINUTES:
        return row
    with suppress(OSError):
        if holder(root / row.path) is not None:
            return row
    return replace(row, status=SILENT, note=f"no sign of life for {_duration(minutes)}")


def _duration(minutes: float) -> str:
    """Returns a number of minutes in words, in the largest unit of which there are two."""
    for size, unit in ((1440, "days"), (60, "hours")):
        if minutes >= 2 * size:
            return f"{minutes / size:.0f} {unit}"
    return f"{minutes:.0f} minutes"


# --- a folder ---------------------------------------------------------------------------------------------------------


def _read(folder: Path, path: str, before: Known | None) -> tuple[Row, int]:
    """Returns a row, and how many bytes of metrics.jsonl it is from."""
    study, run_id = [*Path(path).parts, ""][0], Path(path).parent.name
    try:
        record, faults = read_record(folder / "run.json")
    except (OSError, ValueError) as error:
        return Row(path, study, run_id, note=f"run.json: {reason_of(error)}"), 0
    metrics = record.get("metrics", {})
    metric = next(iter(metrics), "")
    points, step, read = _curve(folder / "metrics.jsonl", metric, before)
    status = record.get("status") or UNREADABLE
    row = Row(
        path=path,
        study=record.get("study") or study,
        run_id=record.get("run_id") or run_id,
        seed=record.get("seed"),
        name=title_of(record.get("choices", {}), record.get("overrides", []))[:MOST_LETTERS],
        status=status,
        note="\n".join([*filter(None, [record.get("error")]), *(f"run.json: {fault}" for fault in faults)])[
            :MOST_LETTERS
        ],
        step=max(record.get("steps") or 0, step if status == RUNNING else 0),
        max_steps=_max_steps(record),
        metric=metric,
        value=metrics.get(metric),
        points=points,
        images_per_second=record.get("throughput", {}).get("images_per_second"),
        hours=record.get("cost", {}).get("core_or_gpu_hours"),
        started=record.get("started") or "",
        ended=(record.get("ended") or "") if status != RUNNING else "",
        picture=_picture(folder / "pictures"),
    )
    return row, read


def _max_steps(record: Record) -> int | None:
    """Returns the number of steps that the run is to have: its identity lacks it where it is the default."""
    identity = record.get("identity")
    if not isinstance(identity, Mapping) or not identity:
        return None
    steps = identity.get(STEPS, defaults(config_dir() / "identity.json")[ROOT].get(STEPS))
    return steps if type(steps) is int and 0 < steps < MAX_INT else None


def _curve(path: Path, metric: str, before: Known | None) -> tuple[Points, int, int]:
    """Returns the points of a metric, the last step that was logged, and how many bytes of metrics.jsonl have been
    read."""
    known = before if before is not None and before.row.metric == metric else None
    try:
        begin, content = read_on(path, known.read if known else 0, MOST_BYTES)
    except OSError:
        return [], 0, 0
    if known and begin < known.read:
        known = None
    *lines, rest = content.split(b"\n")
    points: Points = list(known.row.points) if known else []
    key = json.dumps(metric).encode()
    for line in lines:
        if metric and key in line:
            points += [(step, value) for step, _, value in _points(line, metric) if math.isfinite(value)]
    while len(points) > MOST_POINTS:
        points = [*points[:-1:2], points[-1]]
    step = max((_step(line) for line in lines[-1:]), default=known.row.step or 0 if known else 0)
    return points, step, begin + len(content) - len(rest)


def _points(line: bytes, metric: str) -> list[tuple[int, str, float]]:
    """Returns the points of the metric in a line of metrics.jsonl; none where it cannot be read."""
    with suppress(ValueError):
        return points_of(parse_object(line), [metric])
    return []


def _step(line: bytes) -> int:
    """Returns the step of a line of metrics.jsonl; 0 where it has none that can be read."""
    with suppress(ValueError):
        step: Any = parse_object(line).get("step")
        return step if type(step) is int and 0 <= step < MAX_INT else 0
    return 0


def _picture(folder: Path) -> str:
    """Returns the name of the picture that is shown of a run, "" where it has none."""
    try:
        names = sorted(path.name for path in folder.iterdir() if path.suffix == ".png" and path.name.isprintable())
    except OSError:
        return ""
    return PICTURE if PICTURE in names else next(iter(names), "")
