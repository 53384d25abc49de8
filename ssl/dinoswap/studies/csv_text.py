"""Tables as CSV whose text is read again as text.

CSV has no types: readers guess. A run_id of 12345678e9 becomes a number, 0012345678 loses its zeros, a study called
null is missing, and a spreadsheet computes what begins with an equals sign (an error message may hold any text). So
text that is taken for something else is written with an apostrophe before it, as spreadsheets do, and so is text that
begins with one. To undo it, take one apostrophe off the beginning: `frame["run_id"].str.removeprefix("'")`.
"""

import re
from typing import Any

import pandas as pd

_TAKEN_FOR_ANOTHER_TYPE = re.compile(
    r"[=+\-@\t\r\n'].*"  # formulas, in any spreadsheet
    r"|\s*(\d+\.?\d*|\.\d+)(e[+-]?\d+)?\s*|0x[0-9a-f]+|inf|infinity"  # numbers
    r"|true|false"
    r"|na|nan|n/a|null|none|<na>|#n?/?a.*|1\.#.*",  # what pandas takes for missing
    re.IGNORECASE | re.DOTALL,
)


def as_csv(frame: pd.DataFrame) -> str:
    """Returns the frame as CSV without its index; text that readers would take for another type has an apostrophe."""
    marked = {name: marked for name in frame if (marked := _marked(frame[name])) is not None}
    return str(frame.assign(**{str(name): column for name, column in marked.items()}).to_csv(index=False))


def _marked(column: Any) -> Any:
    """Returns the column with apostrophes before such texts, or None where it has none."""
    if pd.api.types.is_numeric_dtype(column) or pd.api.types.is_datetime64_any_dtype(column):
        return None
    texts = {value for value in column if isinstance(value, str)}
    changed = {text for text in texts if _TAKEN_FOR_ANOTHER_TYPE.fullmatch(text)}
    if not changed:
        return None
    return column.map(lambda value: f"'{value}" if isinstance(value, str) and value in changed else value)
