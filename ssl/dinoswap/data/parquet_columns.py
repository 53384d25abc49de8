"""Which column of a Parquet file holds the images, which the labels, and what the classes are called."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

_IMAGES = ("image", "img", "images", "picture", "photo", "jpg", "jpeg", "png", "webp")
_LABELS = ("label", "labels", "fine_label", "class", "target", "cls", "category")


@dataclass(frozen=True)
class Columns:
    image: str
    label: str | None
    classes: tuple[str, ...] | None


def find_columns(files: Sequence[Path], image: str | None, label: str | None) -> Columns:
    """Columns of the training files: the named ones, else those that the metadata or their names suggest.

    Raises ValueError when a named column does not exist or several fit equally well.
    """
    schema = pq.read_schema(files[0])
    features = _features(schema)
    image = _choose("image", image, schema, _image_candidates(schema, features), _IMAGES)
    if image is None:
        raise ValueError(f"{files[0]}: no column of encoded images among {schema.names}: set data.image_column")
    label = _choose("label", label, schema, _label_candidates(schema, features), _LABELS)
    names = features.get(label, {}).get("names") if label else None
    if label and not names and not pa.types.is_integer(schema.field(label).type):
        tables = [pq.ParquetFile(file).read([label], use_threads=False) for file in files]
        names = sorted({str(v) for table in tables for v in table[label].to_pylist() if v is not None})
    return Columns(image, label, tuple(names) if names else None)


def _features(schema: Any) -> dict[str, dict[str, Any]]:
    """Column -> its description in the `huggingface` metadata; empty without metadata."""
    text = (schema.metadata or {}).get(b"huggingface")
    features = json.loads(text).get("info", {}).get("features", {}) if text else {}
    return {name: f for name, f in features.items() if isinstance(f, dict)}


def _image_candidates(schema: Any, features: dict[str, dict[str, Any]]) -> list[str]:
    encoded = [f.name for f in schema if _is_encoded(f.type)]
    return [name for name in encoded if features.get(name, {}).get("_type") == "Image"] or encoded


def _is_encoded(kind: Any) -> bool:
    if pa.types.is_struct(kind):
        return bool(kind.get_field_index("bytes") >= 0)
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _label_candidates(schema: Any, features: dict[str, dict[str, Any]]) -> list[str]:
    named = [name for name in schema.names if features.get(name, {}).get("_type") == "ClassLabel"]
    return named or [f.name for f in schema if f.name in _LABELS and _is_label(f.type)]


def _is_label(kind: Any) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_string(kind) or pa.types.is_dictionary(kind))


def _choose(what: str, given: str | None, schema: Any, candidates: list[str], usual: Sequence[str]) -> str | None:
    if given is not None:
        if given not in schema.names:
            raise ValueError(f"data.{what}_column={given}: the columns are {schema.names}")
        return given
    by_name = [name for name in usual if name in candidates]
    if not by_name and len(candidates) > 1:
        raise ValueError(f"columns {candidates} could all be the {what}: set data.{what}_column")
    return next(iter(by_name or candidates), None)
