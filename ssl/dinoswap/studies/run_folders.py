"""Reads run folders into rows, whatever state they are in: being written, failed, of another version, foreign."""

import math
import shlex
from pathlib import Path
from typing import Any

import yaml

from dinoswap.config.configuration import flatten
from dinoswap.files.reading import CONFIG_BYTES, clean, read_small, shortened
from dinoswap.run.find_runs import PassedOver, reason_of
from dinoswap.run.record import MOST, Record, read_record


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
            self.passed_over.append(PassedOver(folder, f"run.json: {reason_of(error)}"))
            return None
        except ValueError as error:
            self.passed_over.append(PassedOver(folder, f"run.json: not the record of a run: {error}"))
            return None
        if faults:
            self.passed_over.append(PassedOver(path, f"left out: {'; '.join(faults)}"))
        self.passed_over += [PassedOver(folder / "metrics.jsonl", note) for note in record.get("notes", [])]
        return fields_of(record) | self._numbers(folder / "config.yaml")

    def _numbers(self, path: Path) -> dict[str, float]:
        """Returns the numbers of the config.yaml at `path`, which runs that differ by the seed alone share. One that
        cannot be read has none, and is noted in `passed_over`."""
        try:
            content = read_small(path, CONFIG_BYTES)
            key = b"\n".join(line for line in content.split(b"\n") if not line.startswith(b"seed:"))
            if key not in self._known:
                self._known[key] = _numbers(_parsed_yaml(content))
            return self._known[key]
        except Exception as error:  # YAML's constructors raise what they like
            self.passed_over.append(PassedOver(path, f"its numbers are missing: {reason_of(error)}"))
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
    """Returns a value as a float, NaN for None."""
    return math.nan if value is None else float(value)


def _text(value: Any) -> str | None:
    """Returns a text, None for anything else."""
    return value if isinstance(value, str) else None


# --- config.yaml ------------------------------------------------------------------------------------------------------


def _parsed_yaml(content: bytes) -> Any:
    """Returns the content of a YAML file. Raises ValueError for aliases, which no config.yaml has: a few lines of them
    can stand for billions of values."""
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    if b"*" in content and any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(content, loader)):
        raise ValueError("has YAML aliases")
    return yaml.load(content, loader)


def _numbers(config: Any) -> dict[str, float]:
    """Returns the numbers of a config by `config.` and their key, without the seed. Raises ValueError for a file that
    holds no keys, or too many numbers."""
    if not isinstance(config, dict):
        raise ValueError(f"holds no keys but {shortened(config)}")
    leaves = flatten({str(key): value for key, value in config.items() if key != "seed"})
    numbers = {key: value for key, value in leaves.items() if type(value) in (int, float)}
    if len(numbers) > MOST:
        raise ValueError(f"has {len(numbers)} numbers")
    return {f"config.{clean(key)}": float(value) for key, value in numbers.items()}
