"""WebDataset tar shards, read at random by offset (tar_index.py).

Every rank and worker fetches the samples of its own slices and no others. A shard is a block of the order, so that
only the shards of one shuffle window are read at a time.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dinoswap.data.filesystem import by_part, find_files
from dinoswap.data.images import Images, ImageSource, Labels, Pixels, decode, first_labelled, numbered
from dinoswap.data.tar_index import TarIndex, tar_index


class WebDatasetData(ImageSource):
    """`path`: a shard, a folder, or a pattern with braces or globs, e.g. "data/train-{000..127}.tar".

    `test_path` likewise; None: the test shards are those of `path` whose names say so (test-*, val-*).
    """

    def __init__(self, path: str, test_path: str | None = None) -> None:
        shards = find_files(path, ".tar")
        if test_path is None:
            self.parts = by_part(shards)
        else:
            self.parts = {"train": shards, "test": find_files(test_path, ".tar", key="data.test_path")}
        if "train" not in self.parts:
            raise ValueError(f"data.path={path}: shards for {sorted(self.parts)} but none to train on: rename them")
        self._train = TarImages(self.parts["train"], None)
        if len(self._train) == 0:
            raise ValueError(f"data.path={path}: no jpg, jpeg, png or webp members in its shards")

    def train(self) -> Images:
        return self._train

    def test(self) -> Images | None:
        present = [part for part in ("test", "validation") if part in self.parts]
        return first_labelled(TarImages(self.parts[part], self._train.classes) for part in present)


class TarImages(Images):
    """The samples of `shards`, one after the other. `classes`: names by label; None: as found here."""

    def __init__(self, shards: Sequence[Path], classes: Sequence[str] | None) -> None:
        indices = [tar_index(shard) for shard in shards]
        self.shards = shards
        self.blocks = [len(index.keys) for index in indices]
        self.index = TarIndex(*(np.concatenate(column) for column in zip(*indices, strict=True)))
        self.labels, self.classes = _labels(self.index.labels, classes, str(shards[0].parent))
        self._ends = np.cumsum(self.blocks)

    def __len__(self) -> int:
        return len(self.index.keys)

    def load(self, row: int) -> Pixels:
        size = int(self.index.sizes[row])
        with self._shard(row).open("rb") as file:
            file.seek(int(self.index.offsets[row]))
            return decode(file.read(size), self.name(row))

    def name(self, row: int) -> str:
        """ "shard#key"."""
        return f"{self._shard(row)}#{self.index.keys[row].decode()}"

    def _shard(self, row: int) -> Path:
        return self.shards[int(self._ends.searchsorted(row, side="right"))]


def _labels(
    written: NDArray[np.bytes_], classes: Sequence[str] | None, where: str
) -> tuple[Labels | None, Sequence[str] | None]:
    """Labels as in the shards: whole numbers, or else class names; None unless every sample has one."""
    if not len(written) or (written == b"").any():
        return None, None
    if classes is None and np.char.isdigit(written).all():
        return written.astype(np.int64), None
    return numbered([name.decode() for name in written], classes, where)
