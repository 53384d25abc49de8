"""Finding run folders and reading them, whatever state they are in: being written, failed, of another version, foreign.

A folder that holds run.json is a run, and nothing below it is looked at. Links are followed, and a folder is looked at
once, however many lead to it. What cannot be read is passed over, with the reason.
"""

import math
import os
import shlex
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from dinoswap.config.configuration import flatten
from dinoswap.files.reading import CONFIG_BYTES, clean, one_line, parse_object, read_lines, read_small, shortened
from dinoswap.run.record import MAX_INT, MOST, Record, number, read_record
from dinoswap.run.run_folder import POINTER

DEEPEST = 4
"""Folders from the root to a run: results/ has runs/<study>/<run_id>/seed<k>."""
Stamp = tuple[int, int]
"""Time of the last change, in ns, and size of a run.json."""


@dataclass(frozen=True)
class PassedOver:
    """A file or folder that was not read, or not wholly."""

    path: Path
    reason: str

    @property
    def line(self) -> str:
        return one_line(f"{self.path}: {self.reason}")


def find_run_folders(root: Path) -> tuple[dict[str, Stamp], list[PassedOver]]:
    """Returns the stamps of the folders with a run.json, by path from the root, and the innermost folders without
    one."""
    stamps: dict[str, Stamp] = {}
    passed_over: list[PassedOver] = []
    pending, links = [(root, 0)], list[tuple[Path, int]]()
    seen: dict[tuple[int, int], Path] = {}
    while pending or links:
        folder, depth = pending.pop() if pending else links.pop()  # links last: a run is where it lies
        try:
            stat, entries = folder.stat(), sorted(os.scandir(folder), key=lambda entry: entry.name)
            first = seen.setdefault((stat.st_dev, stat.st_ino), folder)
            if first != folder:
                passed_over.append(PassedOver(folder, f"is {first} again"))
                continue
            stamp = _stamp(folder, entries)
        except (OSError, ValueError) as error:
            passed_over.append(PassedOver(folder, _reason(error)))
            continue
        if stamp is not None:
            stamps[str(folder.relative_to(root))] = stamp
            continue
        if any(entry.name == POINTER for entry in entries):  # what was asked for here has a folder of its own
            continue
        below = [Path(entry) for entry in entries if _is_folder(entry) and not entry.name.startswith(".")]
        if depth == DEEPEST or not below:
            passed_over.append(PassedOver(folder, "no run.json" if entries else "empty"))
        else:
            for path in below:
                (links if path.is_symlink() else pending).append((path, depth + 1))
    return dict(sorted(stamps.items())), sorted(passed_over, key=lambda skipped: skipped.path)


def _stamp(folder: Path, entries: list["os.DirEntry[str]"]) -> Stamp | None:
    """Returns the stamp of the run.json, or None without one. Raises ValueError for a run whose path no table can
    hold."""
    record = next((entry for entry in entries if entry.name == "run.json"), None)
    if record is None:
        return None
    if str(folder) != clean(str(folder)):
        raise ValueError("its name is not UTF-8; rename the folder")
    stat = record.stat()
    return stat.st_mtime_ns, stat.st_size


def _is_folder(entry: "os.DirEntry[str]") -> bool:
    try:
        return entry.is_dir()
    except OSError:  # of what a link leads to
        return False


def _reason(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "nested too deep"
    return (error.strerror if isinstance(error, OSError) else None) or " ".join(str(error).split())


class RunReader:
    """Reads what a row of `load_runs` is made of, and collects what it passed over.

    It keeps the numbers of each config.yaml: seeds of one experiment differ in one line of it, and YAML is slow to
    read.
    """

    def __init__(self) -> None:
        self.passed_over: list[PassedOver] = []
        self._known: dict[bytes, dict[str, float]] = {}

    def read(self, folder: Path) -> dict[str, Any] | None:
        """Returns the row of a run folder: None where the record cannot be read, without `config.` where the config
        cannot."""
        path = folder / "run.json"
        try:
            record, faults = read_record(path)
            missing = next((name for name in ("run_id", "seed", "status") if record.get(name) is None), None)
            if missing is not None:
                raise ValueError(next((fault for fault in faults if fault.startswith(missing)), f"{missing} is None"))
        except OSError as error:
            self.passed_over.append(PassedOver(folder, f"run.json: {_reason(error)}"))
            return None
        except ValueError as error:
            self.passed_over.append(PassedOver(folder, f"run.json: not the record of a run: {error}"))
            return None
        if faults:
            self.passed_over.append(PassedOver(path, f"left out: {'; '.join(faults)}"))
        self.passed_over += [PassedOver(folder / "metrics.jsonl", note) for note in record.get("notes", [])]
        return fields_of(record) | self._numbers(folder / "config.yaml")

    def _numbers(self, path: Path) -> dict[str, float]:
        try:
            content = read_small(path, CONFIG_BYTES)
            key = b"\n".join(line for line in content.split(b"\n") if not line.startswith(b"seed:"))
            if key not in self._known:
                self._known[key] = _numbers(_parsed_yaml(content))
            return self._known[key]
        except Exception as error:  # YAML's constructors raise what they like
            self.passed_over.append(PassedOver(path, f"its numbers are missing: {_reason(error)}"))
            return {}


def fields_of(record: Record) -> dict[str, Any]:
    """Returns a record as column -> value. A field that it lacks is None or NaN; unknown fields are left out."""
    hardware, git = record.get("hardware") or {}, record.get("git") or {}
    row: dict[str, Any] = {name: record.get(name) for name in ("run_id", "status", "started", "ended", "error")}
    row |= {f"choice.{group}": option for group, option in record.get("choices", {}).items()}
    for name in ("metrics", "cost"):
        row |= {f"{name.removesuffix('s')}.{key}": _float(value) for key, value in record.get(name, {}).items()}
    return row | {
        "study": record.get("study") or "single",
        "seed": record["seed"],
        **{name: record.get(name) for name in ("steps", "restarts")},
        "images_per_second": _float(record.get("throughput", {}).get("images_per_second")),
        "commit": _text(git.get("sha")),
        "dirty": git.get("dirty") if isinstance(git.get("dirty"), bool) else None,
        "hardware": ", ".join(hardware.get("gpus") or ()) or _text(hardware.get("cpu")),
        "overrides": shlex.join(record["overrides"]) if "overrides" in record else None,
    }


def _float(value: float | None) -> float:
    return math.nan if value is None else float(value)


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None


# --- metrics.jsonl ----------------------------------------------------------------------------------------------------


def read_points(path: Path, names: Collection[str] | None) -> Iterator[tuple[int, str, float]]:
    """Yields step, name and value of each point of a metrics.jsonl. Raises ValueError after the last point if a line
    could not be read; a last line without its end is still being written."""
    bad = 0
    for line in read_lines(path):
        try:
            points = _points(parse_object(line), names)
        except ValueError:
            bad += 1
            continue
        yield from points
    if bad:
        raise ValueError(f"{bad} line{'s' * (bad > 1)} cannot be read")


def _points(values: Mapping[str, Any], names: Collection[str] | None) -> list[tuple[int, str, float]]:
    """Returns the points of one line. Raises ValueError for a line without a step and for a value that is no number."""
    step = values.get("step")
    if type(step) is not int or not 0 <= step < MAX_INT or len(values) > MOST:
        raise ValueError("not a step")
    wanted = {name: value for name, value in values.items() if name != "step" and (names is None or name in names)}
    return [(step, clean(name), _float(number(value))) for name, value in wanted.items()]


# --- config.yaml ------------------------------------------------------------------------------------------------------


def _parsed_yaml(content: bytes) -> Any:
    """Returns the content of a YAML file. Raises ValueError for aliases, which no config.yaml has: a few lines of them
    can stand for billions of values."""
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    if b"*" in content and any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(content, loader)):
        raise ValueError("has YAML aliases")
    return yaml.load(content, loader)


def _numbers(config: Any) -> dict[str, float]:
    if not isinstance(config, dict):
        raise ValueError(f"holds no keys but {shortened(config)}")
    leaves = flatten({str(key): value for key, value in config.items() if key != "seed"})
    numbers = {key: value for key, value in leaves.items() if type(value) in (int, float)}
    if len(numbers) > MOST:
        raise ValueError(f"has {len(numbers)} numbers")
    return {f"config.{clean(key)}": float(value) for key, value in numbers.items()}
