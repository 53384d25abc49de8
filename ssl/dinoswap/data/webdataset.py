"""Reads WebDataset tar shards at random, by offset (tar_index.py).

Every rank and worker reads only the samples of its own slices. A shard is a block of the order, so that only the shards
of one shuffle window are read at a time.
"""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np

from dinoswap.data.decoding import DEFAULT, CorruptImage, Decoding, Pixels, decode
from dinoswap.data.filesystem import below_root, by_part, file_key, find_files, open_readable, sampled
from dinoswap.data.images import Images, ImageSource, Labels, first_labelled, numbered
from dinoswap.data.labels import Named, complete, from_numbers
from dinoswap.data.tar_index import TarIndex, tar_index
from dinoswap.data.tar_samples import SECOND_DOT

_SUFFIXES = (".tar",)


class WebDatasetData(ImageSource):
    """Reads the shards at `path`: a shard, a folder, or a pattern with braces or globs, e.g.
    "data/train-{000..127}.tar". `test_path` names the test shards in the same way; when it is None, those of `path`
    whose names say so (test-*, val-*) are test shards. Raises ValueError when there are no training shards, or no
    images in them."""

    def __init__(self, path: str, *, test_path: str | None = None, decoding: Decoding = DEFAULT) -> None:
        self.decoding = decoding
        shards, self.ignored = find_files(path, _SUFFIXES)
        self.parts = by_part(shards)
        self.names = dict(zip(shards, map(str, below_root(shards)), strict=True))
        if test_path is not None:
            test_shards, ignored = find_files(test_path, _SUFFIXES, key="data.test_path")
            self.ignored += ignored
            self.names |= dict(zip(test_shards, map(str, below_root(test_shards)), strict=True))
            test_keys = {file_key(shard) for shard in test_shards}
            train = [shard for shard in self.parts.get("train", shards) if file_key(shard) not in test_keys]
            self.ignored.update(["shard for testing"] * (len(shards) - len(train)))
            self.parts = {"train": train, "test": test_shards}
        if not self.parts.get("train"):
            raise ValueError(f"data.path={path}: shards for {sorted(self.parts)} but none to train on: rename them")
        self._opened: dict[str, TarImages] = {}
        if len(self._open("train")) == 0:
            raise ValueError(f"data.path={path}: no images among the members of its shards: {dict(self.ignored)}")

    @property
    def labelled_by(self) -> str:
        return "members cls, json or txt"

    def train(self) -> Images:
        return self._open("train")

    def test(self) -> Images | None:
        return first_labelled(self._open(part) for part in ("test", "validation") if part in self.parts)

    def _open(self, part: str) -> "TarImages":
        """Returns the images of a part. They are opened once, so that what is left out is counted once. Raises
        ValueError when no shard of the part can be read, or its labels do not fit those of the training part."""
        if part not in self._opened:
            train = None if part == "train" else self._open("train")
            indices = open_readable(self.parts[part], tar_index, self.remarks)
            self.parts[part] = list(indices)
            names = [self.names[shard] for shard in indices]
            images = TarImages(indices, names, train.classes if train else None, self.decoding, self.remarks)
            if train and train.labels is not None and not train.classes and images.classes:
                raise ValueError(f"{images.name(0)}: labels are texts, those of the training shards are whole numbers")
            self._opened[part] = images
            self._count(index.ignored for index in indices.values())
        return self._opened[part]

    def _count(self, ignored: Iterable[Counter[str]]) -> None:
        """Adds the counts of what was left out of shards, and a remark when these are images with a second dot in their
        names."""
        previous_count = self.ignored[SECOND_DOT]
        for counts in ignored:
            self.ignored += counts
        dotted = self.ignored[SECOND_DOT] - previous_count
        if dotted:
            self.remarks.append(
                f"{dotted} images in shards are left out: a sample's name ends at the first dot, and theirs have a "
                "second one, as 22.05.jpg has; rename them"
            )


class TarImages(Images):
    """Holds the samples of shards, one shard after the other. `names` are those of the shards, relative to the root of
    the data set. `classes` are the class names by label; when it is None they are taken from the shards."""

    def __init__(
        self,
        indices: dict[Path, TarIndex],
        names: Sequence[str],
        classes: Sequence[str] | None,
        decoding: Decoding,
        remarks: list[str],
    ) -> None:
        self.shards, self.indices, self.names = list(indices), list(indices.values()), names
        self.decoding = decoding
        self.blocks = [len(index.keys) for index in self.indices]
        self._ends = np.cumsum(self.blocks)
        self.labels, self.classes = _labels(self.indices, classes, self.name, remarks)

    def __len__(self) -> int:
        return int(self._ends[-1])

    def load(self, row: int) -> Pixels:
        return decode(self.encoded(row), self.name(row), self.decoding)

    def size(self, row: int) -> int:
        shard, sample = self._place(row)
        return int(self.indices[shard].sizes[sample])

    def encoded(self, row: int) -> bytes:
        shard, sample = self._place(row)
        index = self.indices[shard]
        size = self.size(row)
        if size > self.decoding.most_bytes:
            raise CorruptImage(self.name(row), f"{size} bytes; data.max_pixels sets the limit")
        with self.shards[shard].open("rb") as file:
            file.seek(int(index.offsets[sample]))
            return file.read(size)

    def name(self, row: int) -> str:
        """Returns "shard#key"."""
        shard, sample = self._place(row)
        return f"{self.shards[shard]}#{self.indices[shard].keys[sample].decode(errors='backslashreplace')}"

    def fingerprint(self) -> str:
        digest = hashlib.sha256(f"{len(self)}\n".encode())
        for name, shard, index in zip(self.names, self.shards, self.indices, strict=True):
            digest.update(f"{name} {index.digest()}\n".encode(errors="surrogateescape") + sampled(shard))
        return digest.hexdigest()

    def _place(self, row: int) -> tuple[int, int]:
        """Returns the number of the shard that holds a row, and the number of the sample in it."""
        shard = int(self._ends.searchsorted(row, side="right"))
        return shard, row - (int(self._ends[shard - 1]) if shard else 0)


def _labels(
    indices: Sequence[TarIndex], classes: Sequence[str] | None, name: Callable[[int], str], remarks: list[str]
) -> Named:
    """Returns the labels of the shards, int64 [rows], and the class names. Labels are whole numbers, or else class
    names that are numbered. Returns None for both unless every sample has a label. Raises ValueError for a label that
    `classes` lacks."""
    codes = np.concatenate([index.codes for index in indices])
    if not complete(codes < 0, name, remarks):
        return None, None
    texts = [[index.labels[code].decode() for code in range(len(index.labels))] for index in indices]
    different = sorted({text for shard in texts for text in shard})
    whole = classes is None and all(text.isascii() and text.isdigit() and len(text) < 19 for text in different)
    numbers, named = ([int(text) for text in different], None) if whole else numbered(different, classes, name(0))
    number_of = dict(zip(different, numbers, strict=True))
    lookups = [np.array([number_of[text] for text in shard], dtype=np.int64) for shard in texts]
    values: Labels = np.concatenate([lookup[index.codes] for lookup, index in zip(lookups, indices, strict=True)])
    return from_numbers(values, None, name(0)) if whole else (values, named)
