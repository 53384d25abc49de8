"""The files that a run writes for its readers: metrics.jsonl (a line per logged step) and run.json.

Both can be cut back to a step, so that a resumed run repeats no step and leaves no gap.
"""

import json
import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType
from typing import Any

from dinoswap.distributed import is_main
from dinoswap.files.reading import RECORD_BYTES, parse_object, read_small
from dinoswap.files.writing import write_atomically
from dinoswap.run import provenance
from dinoswap.run.record import read_record
from dinoswap.tracker.base import Status


class MetricsLog:
    """Appends to metrics.jsonl: `{"step": n, name: value, ...}`, floats at full precision, non-finite as null."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("a", buffering=1)  # each line reaches the system at once, and survives kill -9
        self.lines = 0
        """Lines that the file should have: those kept by `truncate_from` and those written since."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Appends one line."""
        self.lines += 1
        self._file.write(json.dumps(_finite({"step": step, **values}), allow_nan=False) + "\n")

    def truncate_from(self, step: int) -> None:
        """Drops the lines of `step` and later, and a last line that was cut off: a run resumes by logging `step`."""
        lines = [json.dumps(line) + "\n" for line in read(self.path) if line["step"] < step]
        self.lines = len(lines)
        self._file.close()
        write_atomically(self.path, "".join(lines))
        self._file = self.path.open("a", buffering=1)

    def sync(self) -> None:
        """Waits until the disk has all lines. It is called before a checkpoint is saved, as a power failure could
        otherwise leave a gap before the checkpoint's step."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()


def read(path: Path) -> list[dict[str, Any]]:
    """Returns the lines of a metrics.jsonl, without a last one that was cut off. Raises ValueError for any other bad
    line."""
    lines = []
    for number, text in enumerate(path.read_bytes().split(b"\n")[:-1], start=1):
        try:
            line = parse_object(text)
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: not JSON ({error}); delete this line") from error
        if type(line.get("step")) is not int:
            raise ValueError(f"{path}, line {number}: has no step; delete this line")
        lines.append(line)
    return lines


def lines_up_to(path: Path, step: int) -> int:
    """Returns the number of lines in a metrics.jsonl of `step` and earlier steps; 0 where there is no such file."""
    return sum(line["step"] <= step for line in read(path)) if path.exists() else 0


def _now() -> str:
    """Returns the present time of UTC in ISO 8601, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


@dataclass
class RunRecord:
    """The content of run.json. Set fields and call `write()`, at the end `finish()`. Times are UTC in ISO 8601."""

    path: Path
    run_id: str
    study: str
    seed: int
    choices: dict[str, str]
    overrides: list[str]
    status: Status = "running"
    error: str | None = None
    git: dict[str, str | bool] | None = field(default_factory=provenance.git_state)
    versions: dict[str, str] = field(default_factory=provenance.versions)
    hardware: dict[str, Any] = field(default_factory=provenance.hardware)
    started: str = field(default_factory=_now)
    ended: str | None = None
    data: dict[str, Any] = field(default_factory=dict)
    steps: int = 0
    restarts: int = 0
    throughput: dict[str, float] = field(default_factory=dict)
    cost: dict[str, float] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    origin: list[str] = field(default_factory=list)
    """A line for each network on what it began with, see `SelfDistillation.origin`."""
    notes: list[str] = field(default_factory=list)
    """Sentences on what is wrong with the files of the run, for its readers."""
    identity: dict[str, Any] = field(default_factory=dict)  # what run_id is a hash of

    @classmethod
    def start(
        cls,
        path: Path,
        *,
        run_id: str,
        study: str,
        seed: int,
        choices: Mapping[str, str],
        overrides: list[str],
        identity: Mapping[str, Any] = MappingProxyType({}),
        data: Mapping[str, Any] = MappingProxyType({}),
    ) -> "RunRecord":
        """Writes and returns a new record, or the one at `path` continued: with one more restart, and with what was
        measured so far. Raises ValueError where the file at `path` is no record."""
        record = cls(
            path, run_id, study, seed, dict(choices), list(overrides), identity=dict(identity), data=dict(data)
        )
        if path.exists():
            load_record(path)
            before, _ = read_record(path)
            record.restarts = (before.get("restarts") or 0) + 1
            for name in ("started", "steps", "throughput", "cost", "metrics", "notes"):
                setattr(record, name, before.get(name) or getattr(record, name))
        record.write()
        return record

    def finish(self, status: Status, error: str | None = None) -> None:
        """Sets the status, the error and the time of the end, and writes the record."""
        self.status, self.error, self.ended = status, error, _now()
        self.write()

    def write(self) -> None:
        """Writes run.json. Only the main process does; the records of the other ranks are never read."""
        if not is_main():
            return
        fields = {name: value for name, value in asdict(self).items() if name != "path"}
        write_atomically(self.path, json.dumps(_finite(fields), indent=2, allow_nan=False) + "\n")


def load_record(path: Path) -> dict[str, Any]:
    """Returns the fields of a run.json. Raises ValueError when the file is not the record of a run."""
    try:
        record = parse_object(read_small(path, RECORD_BYTES))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({error}); delete it to start the record anew") from error
    if "run_id" not in record:
        raise ValueError(f"{path} is not the record of a run: it has no run_id; delete it to start the record anew")
    return record


def _finite(value: Any) -> Any:
    """Returns `value` with None for every NaN and infinity, which JSON does not have."""
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
