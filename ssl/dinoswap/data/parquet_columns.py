"""Determines which column of a table holds the images, which the labels, and what the classes are called."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from dinoswap.data.table_files import TableFile, is_binary, is_text

_IMAGES = ("image", "img", "images", "picture", "photo", "jpg", "jpeg", "png", "webp")
_PATHS = (*_IMAGES, "image_path", "file_name", "filename", "file_path", "filepath", "path", "file")
_LABELS = ("label", "labels", "fine_label", "class", "target", "cls", "category")

Features = dict[str, dict[str, Any]]


@dataclass(frozen=True)
class Columns:
    """Names the columns of images and labels; `classes` are the names that the metadata gives."""

    image: str
    label: str | None
    classes: tuple[str, ...] | None


def find_columns(tables: Sequence[TableFile], image: str | None, label: str | None, remarks: list[str]) -> Columns:
    """Returns the columns of the training files: those that are given, else those that the metadata or their names
    suggest. With `label` "" there is no column of labels.

    Raises ValueError when a given column does not exist, several columns fit equally well, a file lacks the images, or
    files name the classes differently. Metadata that cannot be read adds a remark.
    """
    schema, features = tables[0].schema, _features(tables[0], remarks)
    image = _choose("image", image, schema, _image_candidates(schema, features), _PATHS)
    if image is None:
        raise ValueError(f"{tables[0].path}: no column of images among {schema.names}: set data.image_column")
    if label != "":
        label = _choose("label", label, schema, _label_candidates(schema, features, image), _LABELS)
    check_images(tables, image)
    return Columns(image, label or None, class_names(tables, label, remarks) if label else None)


def check_images(tables: Sequence[TableFile], image: str) -> None:
    """Raises ValueError, naming the file, for a table whose column `image` is missing or cannot hold images."""
    for table in tables:
        if image not in table.schema.names:
            raise ValueError(
                f"{table.path}: no column {image}, which other files of the set have; it has {table.schema.names}"
            )
        kind = table.schema.field(image).type
        if not _is_encoded(kind) and not is_text(kind):
            raise ValueError(f"{table.path}: column {image} is {kind}, not encoded images or paths of images")


def class_names(tables: Sequence[TableFile], label: str, remarks: list[str]) -> tuple[str, ...] | None:
    """Returns the class names by label from the metadata of the tables, or None when no table has any. Raises
    ValueError when two files number their classes differently."""
    table_of_names: dict[tuple[str, ...], TableFile] = {}
    for table in tables:
        names = _features(table, remarks).get(label, {}).get("names")
        if isinstance(names, list) and names:
            table_of_names.setdefault(tuple(str(name) for name in names), table)
    if len(table_of_names) > 1:
        (names, first), (others, second) = list(table_of_names.items())[:2]
        raise ValueError(
            f"{second.path}: its classes {others[:5]} are not those of {first.path}, {names[:5]}: "
            f"number them alike, or train without labels (data.label_column='')"
        )
    return next(iter(table_of_names), None)


def _features(table: TableFile, remarks: list[str]) -> Features:
    """Returns the description of each column from the `huggingface` metadata, or nothing when there is no metadata that
    can be read."""
    text = (table.schema.metadata or {}).get(b"huggingface")
    if text is None:
        return {}
    try:
        features = json.loads(text)["info"]["features"]
        return {name: feature for name, feature in features.items() if isinstance(feature, dict)}
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        remark = f"{table.path}: its huggingface metadata is no description of columns and is ignored"
        remarks += [] if remark in remarks else [remark]
        return {}


def _image_candidates(schema: Any, features: Features) -> list[str]:
    """Returns the columns of encoded images, or when there are none the text columns with a usual name for paths."""
    encoded = [field.name for field in schema if _is_encoded(field.type) and field.name.lower() not in _LABELS]
    described = [name for name in encoded if features.get(name, {}).get("_type") == "Image"]
    paths = [field.name for field in schema if is_text(field.type) and field.name.lower() in _PATHS]
    return described or encoded or paths


def _is_encoded(kind: Any) -> bool:
    """Tells whether a column holds encoded images: a struct {bytes, path} as on the hub, or plain binary."""
    if pa.types.is_struct(kind):
        return bool(kind.get_field_index("bytes") >= 0)
    return is_binary(kind)


def _label_candidates(schema: Any, features: Features, image: str) -> list[str]:
    """Returns the columns that may hold labels: those that the metadata calls labels, else those with a usual name and
    a type that labels have, else all with a usual name."""
    names = [name for name in schema.names if name != image]
    described = [name for name in names if features.get(name, {}).get("_type") == "ClassLabel"]
    usual = [name for name in names if name.lower() in _LABELS]
    usable = [name for name in usual if not pa.types.is_nested(schema.field(name).type)]
    return described or usable or usual


def _choose(what: str, given: str | None, schema: Any, candidates: list[str], usual: Sequence[str]) -> str | None:
    """Returns the given column, else the candidate with the most usual name, else the only candidate; None when there
    is no candidate. Raises ValueError for a given column that does not exist, and for several candidates of which none
    has a usual name."""
    if given is not None:
        if given not in schema.names:
            raise ValueError(f"data.{what}_column={given}: the columns are {schema.names}")
        return given
    by_name = [name for word in usual for name in candidates if name.lower() == word]
    if not by_name and len(candidates) > 1:
        raise ValueError(f"columns {candidates} could all be the {what}: set data.{what}_column")
    return next(iter(by_name or candidates), None)
