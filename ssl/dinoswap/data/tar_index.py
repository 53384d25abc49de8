"""Indexes the samples of a tar shard, so that a reader fetches one by its offset and skips the rest.

The index is kept beside the shard, or in the user's cache folder where that cannot be written. It is built again when
the shard's size or modification time differs, when it is damaged in any way (it begins with a digest of itself), and
when this Pillow decodes other kinds of images.
"""

import hashlib
import io
import json
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dinoswap.data.tar_samples import Sample, image_kinds, read_samples
from dinoswap.files.writing import write_atomically

_VERSION = 2
_DIGEST_SIZE = 32


@dataclass(frozen=True)
class Texts:
    """Stores byte strings one after the other, in as few bytes as they have together, also when one of them is very
    long."""

    data: NDArray[np.uint8]
    ends: NDArray[np.int64]

    @classmethod
    def of(cls, texts: Sequence[bytes]) -> "Texts":
        """Returns the given byte strings, stored."""
        ends = np.cumsum([len(text) for text in texts], dtype=np.int64)
        return cls(np.frombuffer(b"".join(texts), dtype=np.uint8), ends)

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, row: int) -> bytes:
        start = int(self.ends[row - 1]) if row else 0
        return self.data[start : int(self.ends[row])].tobytes()


@dataclass(frozen=True)
class TarIndex:
    """Holds the samples of a shard, in its order."""

    keys: Texts  # paths up to the first dot of the file name, as in the shard
    offsets: NDArray[np.int64]  # bytes from the start of the shard to the encoded image
    sizes: NDArray[np.int64]  # bytes of it
    labels: Texts  # the different ones, as written, utf-8, sorted
    codes: NDArray[np.int32]  # which of `labels` each sample has; -1: none
    ignored: Counter[str]  # what was left out -> how many

    def digest(self) -> str:
        """Returns a hexadecimal digest of the samples."""
        texts = (self.keys.data, self.keys.ends, self.labels.data, self.labels.ends)
        arrays: tuple[NDArray[Any], ...] = (*texts, self.offsets, self.sizes, self.codes)
        return hashlib.sha256(b"".join(array.tobytes() for array in arrays)).hexdigest()


def tar_index(shard: Path) -> TarIndex:
    """Returns the index of an uncompressed tar file, from its cache when that is up to date. Raises Unreadable, naming
    the shard, when it is no plain tar, cut short or damaged."""
    status = shard.stat()
    stamp = repr((_VERSION, status.st_size, status.st_mtime_ns, sorted(image_kinds())))
    places = _cache_places(shard)
    for place in places:
        index = _read(place, stamp)
        if index is not None:
            return index
    index = _index(*read_samples(shard))
    content = _packed(index, stamp)
    for place in places:
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(place, content)
            break
        except OSError:  # read-only or full: the next place, or no cache
            continue
    return index


def _index(samples: Sequence[Sample], ignored: Counter[str]) -> TarIndex:
    different = sorted({sample.label for sample in samples if sample.label})
    codes = {label: code for code, label in enumerate(different)}
    return TarIndex(
        Texts.of([sample.key for sample in samples]),
        np.array([sample.offset for sample in samples], dtype=np.int64),
        np.array([sample.size for sample in samples], dtype=np.int64),
        Texts.of([label.encode() for label in different]),
        np.array([codes.get(sample.label, -1) for sample in samples], dtype=np.int32),
        ignored,
    )


def _cache_places(shard: Path) -> list[Path]:
    """Returns the files in which the index of a shard may be kept, in the order of preference."""
    beside = shard.with_name(f"{shard.name}.index")
    name = hashlib.blake2b(os.fsencode(shard.resolve()), digest_size=16).hexdigest()
    try:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError:  # a user without a home folder, as in containers
        return [beside]
    return [beside, cache / "dinoswap" / f"{name}.index"]


def _packed(index: TarIndex, stamp: str) -> bytes:
    """Returns the content of a cache file: a digest, then the index as npz."""
    buffer = io.BytesIO()
    np.savez(
        buffer,
        about=np.array(json.dumps({"stamp": stamp, "ignored": index.ignored})),
        keys=index.keys.data,
        key_ends=index.keys.ends,
        offsets=index.offsets,
        sizes=index.sizes,
        labels=index.labels.data,
        label_ends=index.labels.ends,
        codes=index.codes,
    )
    return _digest(buffer.getvalue()) + buffer.getvalue()


def _read(place: Path, stamp: str) -> TarIndex | None:
    """Returns the index at `place`; None when it is absent, damaged or of another state of the shard."""
    try:
        content = place.read_bytes()
    except OSError:
        return None
    if _digest(content[_DIGEST_SIZE:]) != content[:_DIGEST_SIZE]:
        return None
    with np.load(io.BytesIO(content[_DIGEST_SIZE:]), allow_pickle=False) as file:
        about = json.loads(str(file["about"]))
        if about["stamp"] != stamp:
            return None
        keys, labels = Texts(file["keys"], file["key_ends"]), Texts(file["labels"], file["label_ends"])
        return TarIndex(keys, file["offsets"], file["sizes"], labels, file["codes"], Counter(about["ignored"]))


def _digest(content: bytes) -> bytes:
    return hashlib.blake2b(content, digest_size=_DIGEST_SIZE).digest()
