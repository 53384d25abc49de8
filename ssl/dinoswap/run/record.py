"""Reads run.json, the record of a run, and checks the types of its fields, whatever state the file is in.

A field that is listed here is returned with its type or not at all: a value of another type, or one that no run can
have (an accuracy of 1e200, a date in words), is left out with a reason. Records of older versions have fewer fields, so
a caller checks whether a field is there. Fields that are not listed are returned as in the file.
"""

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from dinoswap.files.reading import RECORD_BYTES, clean, parse_object, read_small, shortened

MOST = 2000
"""Limit of the entries of a section and of the letters of a name."""
LARGEST = 1e100
"""Largest absolute value of a number: sums of squares are still finite."""
MAX_INT = 2**63

Record = dict[str, Any]


def read_record(path: Path) -> tuple[Record, list[str]]:
    """Returns the fields of a run.json, and a sentence for each field that was left out. Raises OSError where the file
    cannot be read, ValueError where it is not a JSON object."""
    content = parse_object(read_small(path, RECORD_BYTES))
    record: Record = {name: value for name, value in content.items() if name not in FIELDS}
    faults: list[str] = []
    for name, convert in FIELDS.items():
        if name in content:
            _take(record, name, content[name], convert, faults)
    return record, faults


def number(value: Any) -> float | None:
    """Returns a finite number, or None for a missing, NaN or infinite one. Raises ValueError for anything else."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError("not a number")
    if value != value or value in (float("inf"), -float("inf")):
        return None
    if abs(value) > LARGEST:
        raise ValueError("out of range")
    return value


def _take(record: Record, name: str, value: Any, convert: Callable[[Any, list[str]], Any], faults: list[str]) -> None:
    """Sets `record[name]` to the converted value, or adds to `faults` why it or an entry of it was left out."""
    try:
        inner: list[str] = []
        record[name] = convert(value, inner)
        faults += [f"{name}.{fault}" for fault in inner]
    except (ValueError, OverflowError) as error:
        faults.append(f"{name} is {shortened(value)}: {error}")


# --- types ------------------------------------------------------------------------------------------------------------


def _text(value: Any, _: list[str]) -> str | None:
    """Returns a text that can be written to a file, or None. Raises ValueError for anything else."""
    if value is not None and not isinstance(value, str):
        raise ValueError("not text")
    return None if value is None else clean(value)


def _texts(value: Any, faults: list[str]) -> list[str]:
    """Returns a list of texts that can be written to a file. Raises ValueError for anything else."""
    if not isinstance(value, list) or len(value) > MOST or not all(isinstance(item, str) for item in value):
        raise ValueError("not a list of texts")
    return [clean(item) for item in value]


def _whole(value: Any, _: list[str]) -> int | None:
    """Returns a whole number from 0 on, or None. Raises ValueError for anything else."""
    if value is not None and not (type(value) is int and 0 <= value < MAX_INT):
        raise ValueError("not a whole number from 0 on")
    return value


def _number(value: Any, _: list[str]) -> float | None:
    """Returns a finite number, or None for a missing, NaN or infinite one. Raises ValueError for anything else."""
    return number(value)


def _scalar(value: Any, faults: list[str]) -> Any:
    """Returns a text that can be written to a file, a truth value, a number, or None. Raises ValueError for anything
    else."""
    if isinstance(value, str):
        return clean(value)
    return value if value is None or isinstance(value, bool) else number(value)


def _moment(value: Any, _: list[str]) -> str | None:
    """Returns a date in UTC, in ISO 8601. Raises ValueError for anything else than such a date or None."""
    if value is None:
        return None
    if not isinstance(value, str):
        raise ValueError("not a date")
    moment = datetime.fromisoformat(value)
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).astimezone(UTC).isoformat()


def _section(convert_value: Callable[[Any, list[str]], Any], **special: Callable[[Any, list[str]], Any]) -> Any:
    """Returns a converter for a section: its values are converted by `convert_value`, those of the `special` names by
    their own converters."""

    def convert(value: Any, faults: list[str]) -> Record:
        if not isinstance(value, Mapping) or len(value) > MOST or any(len(name) > MOST for name in value):
            raise ValueError("not a section")
        section: Record = {}
        for name, item in value.items():
            _take(section, clean(name), item, special.get(name, convert_value), faults)
        return section

    return convert


def _or_null(convert: Any) -> Any:
    """Returns a converter that keeps None and converts anything else by `convert`."""
    return lambda value, faults: None if value is None else convert(value, faults)


FIELDS: Mapping[str, Any] = {
    **dict.fromkeys(("run_id", "study", "status", "error"), _text),
    **dict.fromkeys(("seed", "steps", "restarts"), _whole),
    **dict.fromkeys(("started", "ended"), _moment),
    **dict.fromkeys(("metrics", "cost", "throughput"), _section(_number)),
    "choices": _section(_text),
    **dict.fromkeys(("overrides", "notes", "origin"), _texts),
    "git": _or_null(_section(_scalar)),
    "versions": _section(_scalar),
    "hardware": _section(_scalar, gpus=_or_null(_texts)),
}
"""Name of a field -> the function (value, faults) that returns it with its type or raises ValueError."""
