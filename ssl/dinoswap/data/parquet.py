"""Reads images in Parquet files in the Hugging Face layout, or in Arrow files of `save_to_disk`: a column of images, a
column of labels.

The image column is a struct {bytes, path}, plain binary, or text; where there are no bytes, the image is the file at
the path, relative to the folder of the table. Both columns are found by the `huggingface` entry of the schema metadata,
which also holds the class names, else by their usual names. Files are assigned to train, validation and test by name,
as on the hub ("test-00000-of-00001.parquet"); the test part is the first of test and validation whose rows all have
labels (negative or null labels mean none, as on the hub).

Up to `memory_gb` the encoded images are held in memory, which forked workers share. Beyond that, blocks of rows (row
groups, or slices of those above 256 MB) are read when needed and the last few are kept: the order then shuffles within
windows of as many blocks, and every worker reads every block of the window, so that row groups of at most some 10 MB
are advisable. With `cache`, a folder on a disk of the node, each block is read once, whichever worker of whichever
rank needs it first, and mapped by all (block_cache.py). Arrow files are mapped and need none of this.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path

from dinoswap.data.decoding import DEFAULT, Decoding
from dinoswap.data.filesystem import below_root, by_part, find_files, open_readable
from dinoswap.data.images import Images, ImageSource, first_labelled
from dinoswap.data.labels import Named
from dinoswap.data.parquet_columns import check_images, class_names, find_columns
from dinoswap.data.parquet_images import ParquetImages
from dinoswap.data.parquet_labels import check_alike, read_labels
from dinoswap.data.table_files import SUFFIXES, TableFile, open_table, without_caches


class ParquetData(ImageSource):
    """Reads the Parquet or Arrow files at `path`: a file, a folder of them, or a glob pattern. Raises ValueError when
    there are no training images, or their columns cannot be determined."""

    def __init__(
        self,
        path: str,
        *,
        image_column: str | None = None,
        label_column: str | None = None,
        memory_gb: float = 2.0,
        cache: str | None = None,
        decoding: Decoding = DEFAULT,
    ) -> None:
        if memory_gb < 0:
            raise ValueError(f"data.memory_gb={memory_gb}: gigabytes of encoded images to hold, at least 0")
        self.memory_gb, self.decoding = memory_gb, decoding
        self.cache = None if cache is None else Path(cache).expanduser()
        candidates, self.ignored = find_files(path, SUFFIXES)
        files = without_caches(candidates, self.ignored)
        self.names = dict(zip(files, map(str, below_root(files)), strict=True))
        parts = by_part(files)
        if "train" not in parts:
            raise ValueError(f"data.path={path}: files for {sorted(parts)} but none to train on: rename them")
        self.tables = {part: open_readable(members, open_table, self.remarks) for part, members in parts.items()}
        self.parts = {part: list(opened) for part, opened in self.tables.items()}
        self.columns = find_columns(self._tables("train"), image_column, label_column, self.remarks)
        self._opened: dict[str, ParquetImages] = {}
        if len(self._open("train")) == 0:
            raise ValueError(f"data.path={path}: no rows in {[str(file) for file in self.parts['train']]}")

    @property
    def labelled_by(self) -> str | None:
        return None if self.columns.label is None else f"column {self.columns.label}"

    def train(self) -> Images:
        return self._open("train").held()

    def test(self) -> Images | None:
        test = self._test()
        return None if test is None else test.held()

    def fingerprint(self) -> str:
        """Returns a hexadecimal digest of the files' names relative to the folder that holds them all, their metadata,
        and the labels."""
        test = self._test()
        parts = [self._open("train").fingerprint(), "" if test is None else test.fingerprint()]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()

    def _test(self) -> ParquetImages | None:
        """Returns the test images without reading them into memory, or None when no part for testing has labels."""
        images = first_labelled(self._open(part) for part in ("test", "validation") if part in self.parts)
        return images if isinstance(images, ParquetImages) else None

    def _open(self, part: str) -> ParquetImages:
        """Returns the images of a part. They are opened once, so that remarks are made once. Raises ValueError when
        columns or labels do not fit those of the training files."""
        if part not in self._opened:
            tables, names = self._tables(part), [self.names[file] for file in self.parts[part]]
            check_images(tables, self.columns.image)
            labels = self._labels(tables, names, part)
            args = (self.columns.image, labels, self.memory_gb, self.decoding, self.cache)
            self._opened[part] = ParquetImages(tables, names, *args)
        return self._opened[part]

    def _labels(self, tables: Sequence[TableFile], names: Sequence[str], part: str) -> Named:
        """Returns the labels of a part, int64 [rows], and the class names; None where there are none. Raises ValueError
        when labels or class names do not fit those of the training files."""
        column = self.columns.label
        classes: Sequence[str] | None = self.columns.classes
        if column is None:
            return None, None
        if part != "train":
            together = [self._tables("train")[0], *tables]
            check_alike(together, column)
            if classes is not None:
                class_names(together, column, [])
            classes = self._open("train").classes
        return read_labels(tables, column, classes, names, self.remarks)

    def _tables(self, part: str) -> list[TableFile]:
        return list(self.tables[part].values())
