"""Where the samples of a tar shard are, so that a reader fetches one by its offset and skips the rest.

A sample is all members that share a path up to the first dot of the file name (the WebDataset convention); its
image is the member jpg, jpeg, png or webp, its label the text of `cls`, the field `label` of `json`, or of `txt`
when that is a whole number (otherwise it is a caption). The index is kept beside the shard, or in the user's cache
folder where that cannot be written, and is rebuilt when the shard's size or time of change differs.
"""

import hashlib
import io
import json
import os
import re
import tarfile
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dinoswap.files import write_atomically

_IMAGES = ("jpg", "jpeg", "png", "webp")
_LABELS = ("cls", "json", "txt")
_VERSION = 1


class TarIndex(NamedTuple):
    """Samples in the order of the shard."""

    keys: NDArray[np.bytes_]  # utf-8
    offsets: NDArray[np.int64]  # bytes from the start of the shard to the encoded image
    sizes: NDArray[np.int64]  # bytes of it
    labels: NDArray[np.bytes_]  # as written, utf-8; empty: none


def tar_index(shard: Path) -> TarIndex:
    """The index of an uncompressed tar file, from its cache when that is up to date.

    Raises ValueError when the file is no plain tar or cut short.
    """
    status = shard.stat()
    stamp = np.array([_VERSION, status.st_size, status.st_mtime_ns])
    places = _cache_places(shard)
    for place in places:
        index = _read(place, stamp)
        if index is not None:
            return index
    index = _build(shard)
    buffer = io.BytesIO()
    np.savez(buffer, stamp=stamp, **index._asdict())
    for place in places:
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(place, buffer.getvalue())
            break
        except OSError:  # read-only or full: the next place, or no cache
            continue
    return index


def _cache_places(shard: Path) -> list[Path]:
    name = hashlib.blake2b(str(shard.resolve()).encode(), digest_size=16).hexdigest()
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return [shard.with_name(f"{shard.name}.index.npz"), cache / "dinoswap" / f"{name}.index.npz"]


def _read(place: Path, stamp: NDArray[np.int64]) -> TarIndex | None:
    """The index at `place`; None when it is absent, damaged or of another state of the shard."""
    try:
        with np.load(place, allow_pickle=False) as file:
            if not np.array_equal(file["stamp"], stamp):
                return None
            return TarIndex(file["keys"], file["offsets"], file["sizes"], file["labels"])
    except (OSError, ValueError, KeyError, zipfile.BadZipFile):
        return None


def _build(shard: Path) -> TarIndex:
    samples: dict[str, dict[str, Any]] = {}
    try:
        with tarfile.open(shard, "r:") as tar:
            for member in tar:
                folder, _, name = member.name.rpartition("/")
                stem, _, kind = name.partition(".")
                if member.isfile() and stem and kind:
                    sample = samples.setdefault(f"{folder}/{stem}" if folder else stem, {})
                    _take(sample, kind.lower(), tar, member)
    except (tarfile.TarError, json.JSONDecodeError) as error:
        raise ValueError(f"{shard}: {error}; it must be a complete, uncompressed tar with valid json") from error
    found = [(key, *_chosen(sample)) for key, sample in samples.items() if not sample.keys().isdisjoint(_IMAGES)]
    keys, offsets, sizes, labels = zip(*found, strict=True) if found else ((), (), (), ())
    return TarIndex(
        np.array([key.encode() for key in keys], dtype=np.bytes_),
        np.array(offsets, dtype=np.int64),
        np.array(sizes, dtype=np.int64),
        np.array([label.encode() for label in labels], dtype=np.bytes_),
    )


def _take(sample: dict[str, Any], kind: str, tar: tarfile.TarFile, member: tarfile.TarInfo) -> None:
    if kind in _IMAGES:
        sample[kind] = (member.offset_data, member.size)
    elif kind in _LABELS:
        file = tar.extractfile(member)
        sample[kind] = _label(kind, file.read()) if file else ""


def _chosen(sample: dict[str, Any]) -> tuple[int, int, str]:
    """Offset and size of the image, and the label."""
    offset, size = next(sample[kind] for kind in _IMAGES if kind in sample)
    return offset, size, next((sample[kind] for kind in _LABELS if sample.get(kind)), "")


def _label(kind: str, data: bytes) -> str:
    text = data.decode("utf-8", errors="replace").strip()
    if kind == "json":
        value = json.loads(text)
        return str(value["label"]) if isinstance(value, dict) and value.get("label") is not None else ""
    return text if kind == "cls" or re.fullmatch(r"\d+", text) else ""
