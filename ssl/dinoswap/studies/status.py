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
from dinoswap.studies.ledger import STATES, Entry, RunStatus, State, run_statuses

REFRESH_SECONDS = 2.0
TAIL_BYTES = 65536
"""Bytes read from the end of a metrics.jsonl: some hundred lines."""
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
"""The style of a run's row by its state, in the order of the rows of a live table."""


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
        """The row on one line, without what is empty."""
        restarts = f"{self.restarts} restarts" if self.restarts else ""
        parts = [self.state, self.step and f"step {self.step}", self.rate and f"{self.rate} images/s"]
        parts += [self.eta and f"ETA {self.eta}", self.metric, restarts, self.note]
        return f"{self.cell} seed {self.seed}: " + " | ".join(part for part in parts if part)


def rows(entries: Sequence[Entry], metric: str) -> list[Row]:
    """Returns a row for every run, as it stands now. `metric` names the one that is shown."""
    statuses = run_statuses([entry.folder for entry in entries])
    return [_row(entry, status, metric) for entry, status in zip(entries, statuses, strict=True)]


def _row(entry: Entry, status: RunStatus, metric: str) -> Row:
    """Returns where a run stands, with its last logged step, speed and metric."""
    lines = tail(entry.folder / "metrics.jsonl") if status.state not in ("missing", "completed") else []
    total, images = entry.config["trainer"]["max_steps"], entry.config["data"]["batch_size"]
    step = _last(lines, "step") or status.record.get("steps") or 0
    rate = _last(lines, "images_per_second") or status.record.get("throughput", {}).get("images_per_second")
    value = status.record.get("metrics", {}).get(metric, _last(lines, metric))
    remaining = _duration((total - step) * images / rate) if rate and status.state == "running" else None
    return Row(
        cell=entry.cell,
        seed=entry.seed,
        state=status.state,
        step=f"{step:g}/{total}" if status.record else "",
        rate=f"{rate:.1f}" if rate else "",
        eta=str(remaining) if remaining is not None else "",
        metric=f"{metric} {value:.4g}" if value is not None else "",
        restarts=str(status.record.get("restarts") or ""),
        note=one_line(status.note),
    )


def _duration(seconds: float) -> timedelta | None:
    """Returns a time of whole seconds, None where it is too long to be one."""
    try:
        return timedelta(seconds=round(seconds))
    except OverflowError:  # at a rate that is no rate
        return None


def tail(path: Path) -> list[dict[str, Any]]:
    """Returns the last lines of a metrics.jsonl that is being written, without those that are cut off, half written or
    damaged, which are reported where the whole file is read."""
    lines = []
    with suppress(OSError):
        for line in read_tail(path, TAIL_BYTES).split(b"\n")[:-1]:
            with suppress(ValueError):
                lines.append(parse_object(line))
    return lines


def _last(lines: Sequence[Mapping[str, Any]], name: str) -> float | None:
    """Returns the last number that is logged under this name, or None."""
    for line in reversed(lines):
        with suppress(ValueError):
            if (value := number(line.get(name))) is not None:
                return value
    return None


def summary(states: Iterable[State]) -> str:
    """Returns the counts of the states in a line: '12 runs: 4 completed, 8 missing'."""
    counts = Counter(states)
    return f"{counts.total()} runs: " + ", ".join(f"{counts[state]} {state}" for state in STATES if counts[state])


def table(table_rows: Sequence[Row], title: str) -> Table:
    """Returns the table of where each run stands."""
    shown = Table(title=f"{title}: {summary(row.state for row in table_rows)}", title_justify="left")
    for name in ("cell", "seed", "state", "step", "images/s", "ETA", "metric", "restarts", "note"):
        shown.add_column(name, justify="right" if name in ("seed", "step", "images/s", "ETA", "restarts") else "left")
    for row in table_rows:
        cells = (row.cell, str(row.seed), row.state, row.step, row.rate, row.eta, row.metric, row.restarts, row.note)
        shown.add_row(*map(Text, cells), style=COLOURS[row.state])
    return shown


def show(read: Callable[[], list[Row]], title: str, *, once: bool, console: Console) -> None:
    """Shows the rows once, or refreshes them until every run has ended or Ctrl-C is pressed. Away from a terminal it
    prints plain lines once."""
    table_rows = read()
    if not console.is_terminal:
        for row in table_rows:
            print(row.line)
        print(summary(row.state for row in table_rows))
        return
    if once:
        console.print(table(table_rows, title))
        return
    with Live(table(by_interest(table_rows), title), console=console, auto_refresh=False) as live:
        while any(row.state in UNFINISHED for row in table_rows):
            time.sleep(REFRESH_SECONDS)
            table_rows = read()
            live.update(table(by_interest(table_rows), title), refresh=True)


def by_interest(table_rows: Sequence[Row]) -> list[Row]:
    """Returns the rows with the most interesting states first: a live table is cut off where the terminal ends."""
    return sorted(table_rows, key=lambda row: [*COLOURS].index(row.state))
