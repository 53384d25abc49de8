"""Reads the curves of a run, the points of its metrics.jsonl, whatever state the file is in."""

import math
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from dinoswap.files.reading import clean, parse_object, read_lines
from dinoswap.run.record import MAX_INT, MOST, number


def read_points(path: Path, names: Collection[str] | None) -> Iterator[tuple[int, str, float]]:
    """Yields step, name and value of each point of a metrics.jsonl. Raises ValueError after the last point if a line
    could not be read; a last line without its end is still being written."""
    invalid = 0
    for line in read_lines(path):
        try:
            points = points_of(parse_object(line), names)
        except ValueError:
            invalid += 1
            continue
        yield from points
    if invalid:
        raise ValueError(f"{invalid} line{'s' * (invalid > 1)} cannot be read")


def points_of(values: Mapping[str, Any], names: Collection[str] | None) -> list[tuple[int, str, float]]:
    """Returns the points of one line. Raises ValueError for a line without a step and for a value that is no number."""
    step = values.get("step")
    if type(step) is not int or not 0 <= step < MAX_INT or len(values) > MOST:
        raise ValueError("not a step")
    selected = {
        name: number(value) for name, value in values.items() if name != "step" and (names is None or name in names)
    }
    return [(step, clean(name), math.nan if value is None else float(value)) for name, value in selected.items()]
