"""Finding run folders and reading them, whatever state they are in: being written, failed, of another version, foreign.

A folder that holds run.json is a run, and nothing below it is looked at; links are followed. What cannot be read is
passed over, with the reason.
"""

import json
import math
import os
import shlex
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from dinoswap.configuration import flatten

DEEPEST = 4
"""Folders from the root to a run: results/ has runs/<study>/<run_id>/seed<k>."""
MAX_INT = 2**63
Stamp = tuple[int, int]
"""Time of the last change, in ns, and size of a run.json."""


@dataclass(frozen=True)
class PassedOver:
    """A file or folder that was not read, or not wholly."""

    path: Path
    reason: str


def find(root: Path) -> tuple[dict[str, Stamp], list[PassedOver]]:
    """The folders with a run.json, by their path from the root; and the innermost folders that have none."""
    found: dict[str, Stamp] = {}
    passed_over: list[PassedOver] = []
    pending = [(root, 0)]
    while pending:
        folder, depth = pending.pop()
        try:
            entries = list(os.scandir(folder))
            record = next((entry for entry in entries if entry.name == "run.json"), None)
            if record is not None:
                stat = record.stat()
                found[str(folder.relative_to(root))] = stat.st_mtime_ns, stat.st_size
                continue
        except OSError as error:
            passed_over.append(PassedOver(folder, error.strerror or str(error)))
            continue
        below = [Path(entry) for entry in entries if entry.is_dir() and not entry.name.startswith(".")]
        if depth == DEEPEST or not below:
            passed_over.append(PassedOver(folder, "no run.json" if entries else "empty"))
        else:
            pending += [(path, depth + 1) for path in below]
    return dict(sorted(found.items())), sorted(passed_over, key=lambda each: each.path)


class RunReader:
    """Reads what a row of `load_runs` is made of. Remembers what it passed over, and the numbers of each config.yaml:
    seeds of one experiment differ in one line of it, and YAML is slow to read."""

    def __init__(self) -> None:
        self.passed_over: list[PassedOver] = []
        self._known: dict[bytes, dict[str, float]] = {}

    def read(self, folder: Path) -> dict[str, Any] | None:
        """None where the record cannot be read; without `config.` where the config cannot."""
        try:
            record = read_record(folder / "run.json")
            row = fields_of(record)
        except OSError as error:
            self.passed_over.append(PassedOver(folder, error.strerror or str(error)))
            return None
        except (ValueError, OverflowError) as error:  # json's errors and those of the encoding are ValueErrors
            self.passed_over.append(PassedOver(folder, f"run.json: {error}"))
            return None
        for note in notes if isinstance(notes := record.get("notes"), list) else []:
            self.passed_over.append(PassedOver(folder / "metrics.jsonl", str(note)))
        return row | self._numbers(folder / "config.yaml")

    def _numbers(self, path: Path) -> dict[str, float]:
        try:
            content = path.read_bytes()
            key = b"\n".join(line for line in content.split(b"\n") if not line.startswith(b"seed:"))
            if key not in self._known:
                self._known[key] = _numbers(yaml.load(content, getattr(yaml, "CSafeLoader", yaml.SafeLoader)))
            return self._known[key]
        except (OSError, ValueError, OverflowError, yaml.YAMLError) as error:
            self.passed_over.append(PassedOver(path, f"its numbers are missing: {' '.join(str(error).split())}"))
            return {}


def read_record(path: Path) -> dict[str, Any]:
    """A run.json of any version. ValueError where it is none, OSError where there is none."""
    record = json.loads(path.read_bytes())
    if not isinstance(record, dict):
        raise ValueError("not the record of a run")
    for name, kind in (("run_id", str), ("seed", int), ("status", str)):
        if type(record.get(name)) is not kind or (name == "seed" and not 0 <= record[name] < MAX_INT):
            raise ValueError(f"not the record of a run: {name} is {record.get(name)!r}")
    return record


def fields_of(record: Mapping[str, Any]) -> dict[str, Any]:
    """Column -> value. A field that a record of its version lacks is None or NaN, one that is unknown is left."""

    def section(name: str) -> Mapping[str, Any]:
        value = record.get(name)
        return value if isinstance(value, Mapping) else {}

    overrides, gpus = record.get("overrides"), section("hardware").get("gpus")
    row: dict[str, Any] = {name: _text(record.get(name)) for name in ("run_id", "status", "started", "ended", "error")}
    row |= {f"choice.{_text(str(group))}": _text(str(option)) for group, option in section("choices").items()}
    for name in ("metrics", "cost"):
        row |= {f"{name.removesuffix('s')}.{_text(key)}": _number(value) for key, value in section(name).items()}
    return row | {
        "study": _text(record.get("study")) or "single",
        "seed": record["seed"],
        **{name: record.get(name) if type(record.get(name)) is int else None for name in ("steps", "restarts")},
        "images_per_second": _number(section("throughput").get("images_per_second")),
        "commit": _text(section("git").get("sha")),
        "dirty": section("git").get("dirty") if isinstance(section("git").get("dirty"), bool) else None,
        "hardware": _text(", ".join(map(str, gpus)) if gpus else section("hardware").get("cpu")),
        "overrides": _text(shlex.join(map(str, overrides))) if isinstance(overrides, list) else None,
    }


def read_points(path: Path, names: Collection[str] | None) -> Iterator[tuple[int, str, float]]:
    """Step, name, value of a metrics.jsonl. Raises ValueError after the last point if a line could not be read; a last
    line without its end is still being written."""
    bad = 0
    for line in path.read_bytes().split(b"\n")[:-1]:
        values = _parsed(line)
        step = values.pop("step", None)
        if type(step) is not int:
            bad += 1
            continue
        for name, value in values.items():
            if names is None or name in names:
                yield step, name, _number(value)
    if bad:
        raise ValueError(f"{bad} line{'s' * (bad > 1)} cannot be read")


def _parsed(line: bytes) -> dict[str, Any]:
    """A JSON object, or nothing where there is none."""
    try:
        values = json.loads(line)
    except ValueError:
        return {}
    return values if isinstance(values, dict) else {}


def _numbers(config: Any) -> dict[str, float]:
    if not isinstance(config, dict):
        raise ValueError("holds no keys")
    leaves = flatten({str(key): value for key, value in config.items() if key != "seed"})
    return {f"config.{key}": float(value) for key, value in leaves.items() if _is_number(value)}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _number(value: Any) -> float:
    """NaN for what is missing, no number, or not finite, which a record has as null."""
    return float(value) if _is_number(value) and math.isfinite(value) else math.nan


def _text(value: Any) -> str | None:
    """Without halves of characters, which messages about files with odd names have and Parquet cannot hold."""
    return value.encode(errors="replace").decode() if isinstance(value, str) else None
