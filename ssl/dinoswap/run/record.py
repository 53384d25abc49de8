"""run.json, the record of a run: its fields and their types, read from whatever state the file is in.

Whoever reads a record gets the fields that are listed here with their types, or without: what is of another type, and
what no run can have (an accuracy of 1e200, a date in words), is left out, and the reason is told. Records of older
versions have fewer, so who needs a field asks whether it is there. Fields that are not listed are as in the file.
"""

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from dinoswap.files.reading import RECORD_BYTES, clean, parse_object, read_small, shortened

MOST = 2000
"""Entries of a section, and letters of a name."""
LARGEST = 1e100
"""Of a number: sums of squares of these are still finite."""
MAX_INT = 2**63

Record = dict[str, Any]


def read_record(path: Path) -> tuple[Record, list[str]]:
    """The fields of a run.json, and why others were left out. OSError where it cannot be read, ValueError where it is
    not JSON or not an object."""
    content = parse_object(read_small(path, RECORD_BYTES))
    record: Record = {name: value for name, value in content.items() if name not in FIELDS}
    faults: list[str] = []
    for name, convert in FIELDS.items():
        if name in content:
            _take(record, name, content[name], convert, faults)
    return record, faults


def number(value: Any) -> float | None:
    """A finite number; None for a missing or infinite one, which a record has as null. ValueError for anything else."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError("not a number")
    if value != value or value in (float("inf"), -float("inf")):
        return None
    if abs(value) > LARGEST:
        raise ValueError("out of range")
    return value


def _take(into: Record, name: str, value: Any, convert: Callable[[Any, list[str]], Any], faults: list[str]) -> None:
    """The converted value; what an entry of a section lacks is among the `faults` with the section's name."""
    try:
        inner: list[str] = []
        into[name] = convert(value, inner)
        faults += [f"{name}.{fault}" for fault in inner]
    except (ValueError, OverflowError) as error:
        faults.append(f"{name} is {shortened(value)}: {error}")


# --- types ------------------------------------------------------------------------------------------------------------


def _text(value: Any, _: list[str]) -> str | None:
    if value is not None and not isinstance(value, str):
        raise ValueError("not text")
    return None if value is None else clean(value)


def _texts(value: Any, faults: list[str]) -> list[str]:
    if not isinstance(value, list) or len(value) > MOST or not all(isinstance(item, str) for item in value):
        raise ValueError("not a list of texts")
    return [clean(item) for item in value]


def _whole(value: Any, _: list[str]) -> int | None:
    if value is not None and not (type(value) is int and 0 <= value < MAX_INT):
        raise ValueError("not a whole number from 0 on")
    return value


def _number(value: Any, _: list[str]) -> float | None:
    return number(value)


def _scalar(value: Any, faults: list[str]) -> Any:
    if isinstance(value, str):
        return clean(value)
    return value if value is None or isinstance(value, bool) else number(value)


def _moment(value: Any, _: list[str]) -> str | None:
    """In UTC, as ISO 8601 has it."""
    if value is None:
        return None
    if not isinstance(value, str):
        raise ValueError("not a date")
    moment = datetime.fromisoformat(value)
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).astimezone(UTC).isoformat()


def _section(of: Callable[[Any, list[str]], Any], **special: Callable[[Any, list[str]], Any]) -> Any:
    """Names with values of one type, but for those of the `special` names."""

    def convert(value: Any, faults: list[str]) -> Record:
        if not isinstance(value, Mapping) or len(value) > MOST or any(len(name) > MOST for name in value):
            raise ValueError("not a section")
        found: Record = {}
        for name, item in value.items():
            _take(found, clean(name), item, special.get(name, of), faults)
        return found

    return convert


def _or_null(convert: Any) -> Any:
    return lambda value, faults: None if value is None else convert(value, faults)


FIELDS: Mapping[str, Any] = {
    **dict.fromkeys(("run_id", "study", "status", "error"), _text),
    **dict.fromkeys(("seed", "steps", "restarts"), _whole),
    **dict.fromkeys(("started", "ended"), _moment),
    **dict.fromkeys(("metrics", "cost", "throughput"), _section(_number)),
    "choices": _section(_text),
    **dict.fromkeys(("overrides", "notes"), _texts),
    "git": _or_null(_section(_scalar)),
    "versions": _section(_scalar),
    "hardware": _section(_scalar, gpus=_or_null(_texts)),
}
"""Name -> what makes it of its type."""
