"""Where the runs of a study stand: a live table on a terminal, plain lines elsewhere. Read from the run folders."""

import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from dinoswap.files.reading import one_line, parse_object, read_tail
from dinoswap.run.record import number
from dinoswap.studies.ledger import STATES, Entry, Found, State, find

REFRESH_SECONDS = 2.0
TAIL_BYTES = 65536
"""Of metrics.jsonl: some hundred lines."""
UNFINISHED: tuple[State, ...] = ("missing", "queued", "running", "preempted")

COLOURS: Mapping[State, str] = {
    "running": "bold green",
    "queued": "cyan",
    "failed": "red",
    "diverged": "red",
    "killed": "red",
    "preempted": "yellow",
    "missing": "dim",
    "completed": "green",
}
"""In the order of a live table."""


@dataclass(frozen=True)
class Row:
    """What is shown of one run; empty where there is nothing to show."""

    cell: str
    seed: int
    state: State
    step: str
    rate: str
    eta: str
    metric: str
    restarts: str
    note: str

    @property
    def line(self) -> str:
        restarts = f"{self.restarts} restarts" if self.restarts else ""
        parts = [self.state, self.step and f"step {self.step}", self.rate and f"{self.rate} images/s"]
        parts += [self.eta and f"ETA {self.eta}", self.metric, restarts, self.note]
        return f"{self.cell} seed {self.seed}: " + " | ".join(part for part in parts if part)


def rows(entries: Sequence[Entry], metric: str) -> list[Row]:
    """Of every run, as it stands now. `metric`: the name of the one that is shown."""
    found = find([entry.folder for entry in entries])
    return [_row(entry, at, metric) for entry, at in zip(entries, found, strict=True)]


def _row(entry: Entry, at: Found, metric: str) -> Row:
    lines = tail(entry.folder / "metrics.jsonl") if at.state not in ("missing", "completed") else []
    total, images = entry.config["trainer"]["max_steps"], entry.config["data"]["batch_size"]
    step = _last(lines, "step") or at.record.get("steps") or 0
    rate = _last(lines, "images_per_second") or at.record.get("throughput", {}).get("images_per_second")
    value = at.record.get("metrics", {}).get(metric, _last(lines, metric))
    left = _duration((total - step) * images / rate) if rate and at.state == "running" else None
    return Row(
        cell=entry.cell,
        seed=entry.seed,
        state=at.state,
        step=f"{step:g}/{total}" if at.record else "",
        rate=f"{rate:.1f}" if rate else "",
        eta=str(left) if left is not None else "",
        metric=f"{metric} {value:.4g}" if value is not None else "",
        restarts=str(at.record.get("restarts") or ""),
        note=one_line(at.note),
    )


def _duration(seconds: float) -> timedelta | None:
    try:
        return timedelta(seconds=round(seconds))
    except OverflowError:  # at a rate that is no rate
        return None


def tail(path: Path) -> list[dict[str, Any]]:
    """The last lines of a metrics.jsonl that is being written; without those that are cut here, overwritten at this
    moment, or damaged: whoever needs it whole will say so."""
    found = []
    with suppress(OSError):
        for line in read_tail(path, TAIL_BYTES).split(b"\n")[:-1]:
            with suppress(ValueError):
                found.append(parse_object(line))
    return found


def _last(lines: Sequence[Mapping[str, Any]], name: str) -> float | None:
    """The last number of this name."""
    for line in reversed(lines):
        with suppress(ValueError):
            if (value := number(line.get(name))) is not None:
                return value
    return None


def summary(states: Iterable[State]) -> str:
    """'12 runs: 4 completed, 8 missing'"""
    counts = Counter(states)
    return f"{counts.total()} runs: " + ", ".join(f"{counts[state]} {state}" for state in STATES if counts[state])


def table(found: Sequence[Row], title: str) -> Table:
    shown = Table(title=f"{title}: {summary(row.state for row in found)}", title_justify="left")
    for name in ("cell", "seed", "state", "step", "images/s", "ETA", "metric", "restarts", "note"):
        shown.add_column(name, justify="right" if name in ("seed", "step", "images/s", "ETA", "restarts") else "left")
    for row in found:
        cells = (row.cell, str(row.seed), row.state, row.step, row.rate, row.eta, row.metric, row.restarts, row.note)
        shown.add_row(*map(Text, cells), style=COLOURS[row.state])
    return shown


def show(read: Callable[[], list[Row]], title: str, *, once: bool, console: Console) -> None:
    """Once, or until every run has ended; Ctrl-C ends it. Away from a terminal always once, in plain lines."""
    found = read()
    if not console.is_terminal:
        for row in found:
            print(row.line)
        print(summary(row.state for row in found))
        return
    if once:
        console.print(table(found, title))
        return
    with Live(table(by_interest(found), title), console=console, auto_refresh=False) as live:
        while any(row.state in UNFINISHED for row in found):
            time.sleep(REFRESH_SECONDS)
            found = read()
            live.update(table(by_interest(found), title), refresh=True)


def by_interest(found: Sequence[Row]) -> list[Row]:
    """A live table is cut off where the terminal ends."""
    return sorted(found, key=lambda row: [*COLOURS].index(row.state))
