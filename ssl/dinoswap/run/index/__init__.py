"""index.html in the folder of all runs: where each of them stands, written as they go.

Every run renews it at its start, after each evaluation and at its end; `python -m dinoswap.run.index` does it by hand.
Runs that do so at the same time need no lock, as each reads all folders: the last writer wins, and what it has not seen
is there with the next renewal. Beside it lies what is known of each folder, so that only what has changed is read.
"""

import hashlib
import json
import logging
import time
from collections import Counter
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

from dinoswap.files.reading import parse_object, read_small
from dinoswap.files.writing import write_atomically
from dinoswap.run.find_runs import find_run_folders, reason_of
from dinoswap.run.index.rows import RUNNING, Known, Row, look, with_liveness
from dinoswap.web import rendered

if TYPE_CHECKING:
    from dinoswap.run.metrics import RunRecord  # it imports torch, which no page needs

PAGE, KNOWN = "index.html", ".index.json"
FORMAT = b"1"
"""The version of known rows: counts up when they change."""
KNOWN_BYTES = 2**28
"""The largest size of the file of known rows, which has a kilobyte or two for each."""
RELOAD_SECONDS = 60
"""How often an open page is loaded again while something runs."""

_log = logging.getLogger(__name__)
_warned: set[Path] = set()


def renew_above(record: "RunRecord") -> None:
    """Renews the page that lists the run of a record; there is none where a user has chosen the run's folder. Whatever
    goes wrong costs the run nothing, and is logged once."""
    folder = record.path.parent
    if folder.parts[-3:] != (record.study, record.run_id, f"seed{record.seed}"):
        return
    root = folder.parents[2]
    try:
        renew(root)
    except Exception as error:  # of other runs' folders, or of the disk
        if root not in _warned:
            _warned.add(root)
            _log.warning("%s is not brought up to date: %s", root / PAGE, reason_of(error))


def renew(root: Path) -> Path:
    """Writes the page of all runs below `root`, and returns its path. Raises OSError where it cannot be written."""
    now = time.time_ns()
    stamps, passed_over = find_run_folders(root)
    before = _read_known(root / KNOWN)
    known = {path: look(root, path, stamp, before.get(path), now) for path, stamp in stamps.items()}
    rows = [with_liveness(root, entry.row, now) for entry in known.values()]
    rows.sort(key=lambda row: (row.started, row.heard), reverse=True)
    page = rendered(
        Path(__file__).with_name("index.html.jinja"),
        rows=rows,
        counts=Counter(row.status for row in rows),
        passed_over=[skipped.line for skipped in passed_over],
        made=datetime.fromtimestamp(now / 1e9, UTC).isoformat(timespec="seconds"),
        reload=RELOAD_SECONDS if any(row.status == RUNNING for row in rows) else 0,
        link=quote,
        curve=curve,
        number=number,
        minute=minute,
    )
    write_atomically(root / PAGE, page)
    if known != before:
        _write_known(root / KNOWN, known)
    return root / PAGE


def number(value: float | None) -> str:
    """Returns a number in four digits, "" for None."""
    return "" if value is None else f"{value:.4g}"


def minute(moment: str) -> str:
    """Returns a date of ISO 8601 to the minute, with a space for the T."""
    return moment[:16].replace("T", " ")


def curve(row: Row, width: int, height: int) -> list[str]:
    """Returns the points of a run's curve as "x,y" in an SVG of this size: from left to right all steps that it is to
    have, from the bottom to the top the values that it had."""
    last = max(row.max_steps or 0, row.points[-1][0], 1)
    low, high = (bound(value for _, value in row.points) for bound in (min, max))
    scale = height / (high - low) if high > low else 0.0
    return [f"{width * step / last:.1f},{height - scale * (value - low):.1f}" for step, value in row.points]


# --- what is known already --------------------------------------------------------------------------------------------


def _read_known(path: Path) -> dict[str, Known]:
    """Returns what was known of each folder by its path; nothing where the file is not as it was written."""
    try:
        digest, _, content = read_small(path, KNOWN_BYTES).partition(b"\n")
        if digest == _digest(content):
            entries = parse_object(content)
            return {folder: Known(Row(**row), stamps, read) for folder, (row, stamps, read) in entries.items()}
    except (OSError, ValueError, TypeError):
        pass
    return {}


def _write_known(path: Path, known: Mapping[str, Known]) -> None:
    """Writes the known rows with a digest, by which a reader sees that they are whole."""
    entries = {folder: [vars(entry.row), entry.stamps, entry.read] for folder, entry in known.items()}
    content = json.dumps(entries).encode()
    write_atomically(path, _digest(content) + b"\n" + content)


def _digest(content: bytes) -> bytes:
    """Returns what a file of known rows begins with, if it is whole and of this format."""
    return hashlib.sha256(FORMAT + content).hexdigest().encode()
