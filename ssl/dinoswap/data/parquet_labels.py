"""Reads labels from a column of tables, of every Arrow type in which labels are written."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dinoswap.data.images import numbered
from dinoswap.data.labels import Named, complete, from_numbers
from dinoswap.data.table_files import TableFile, is_binary, is_text

_REMEDY = "choose another one as data.label_column, or train without labels: data.label_column=''"


def read_labels(
    tables: Sequence[TableFile], column: str, classes: Sequence[str] | None, names: Sequence[str], remarks: list[str]
) -> Named:
    """Returns int64 labels [rows], or None unless every row has a label, with the class names where they are known.

    Whole numbers of any type are labels as they are (negative or null: none, as on the hub); texts are numbered in the
    order of `classes`, else sorted. `names` are those of the tables' files. Raises ValueError, naming the file, for a
    column of another type or content, files whose types do not fit each other, and classes that are not known.
    """
    without = next((table for table in tables if column not in table.schema.names), None)
    if without is not None:
        remarks.append(f"labels are not used, because {without.path} has no column {column}")
        return None, None
    parts = [_plain(table, column) for table in tables]
    kind = _common_kind(tables, parts, column)
    if kind is None:
        remarks.append(f"no labels: column {column} of {tables[0].path} holds none")
        return None, None
    values = pa.chunked_array([chunk.cast(kind) for part in parts for chunk in part.chunks], kind)
    lacking = pc.is_null(values) if is_text(kind) else pc.or_kleene(pc.is_null(values), pc.less(values, 0))
    ends = np.cumsum([len(part) for part in parts])

    def name(row: int) -> str:
        file = int(ends.searchsorted(row, side="right"))
        return f"{names[file]}#{row - (int(ends[file - 1]) if file else 0)}"

    if not complete(lacking.to_numpy(), name, remarks):
        return None, None
    where = str(tables[0].path.parent)
    if is_text(kind):
        return numbered(values.to_pylist(), classes, where)
    return from_numbers(values.to_numpy(), classes, where)


def check_alike(tables: Sequence[TableFile], column: str) -> None:
    """Raises ValueError, naming the file, when some tables have texts as labels and others whole numbers."""
    labelled = [table for table in tables if column in table.schema.names]
    _common_kind(labelled, [_plain(table, column) for table in labelled], column)


def _common_kind(tables: Sequence[TableFile], parts: Sequence[Any], column: str) -> Any:
    """Returns the Arrow type of `parts`, except those without a single label; None when no part has one. Raises
    ValueError, naming the file, when the types differ."""
    known = [(table, part.type) for table, part in zip(tables, parts, strict=True) if part.null_count < len(part)]
    different = next((table for table, kind in known if kind != known[0][1]), None)
    if different is not None:
        raise ValueError(
            f"{different.path}: column {column} is {different.schema.field(column).type}, but {known[0][0].path} has "
            f"{known[0][0].schema.field(column).type}: write texts or whole numbers in all files; {_REMEDY}"
        )
    return known[0][1] if known else None


def _plain(table: TableFile, column: str) -> Any:
    """Returns a column as int64 or string, or as null when it has no values. Raises ValueError, naming the file, for a
    type or values that labels cannot be made of."""
    values = table.column(column)
    kind = values.type
    try:
        if pa.types.is_dictionary(kind):
            values, kind = values.cast(kind.value_type), kind.value_type
        if pa.types.is_null(kind):
            return values
        if is_text(kind) or is_binary(kind):
            return values.cast(pa.binary()).cast(pa.string())
        if pa.types.is_floating(kind):
            values = pc.if_else(pc.is_nan(values), None, values)  # pandas writes NaN where a number is missing
        if (pa.types.is_primitive(kind) and not pa.types.is_temporal(kind)) or pa.types.is_decimal(kind):
            return values.cast(pa.int64())
    except pa.ArrowException as error:
        if isinstance(error, MemoryError):
            raise
        raise ValueError(f"{table.path}: column {column} ({kind}) holds no labels: {error}; {_REMEDY}") from error
    raise ValueError(f"{table.path}: column {column} is {kind}, which labels cannot be made of; {_REMEDY}")
