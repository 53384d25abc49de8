"""Reads images and depth maps from two columns of Parquet files in the Hugging Face layout, or of Arrow files of
`save_to_disk`.

A depth map is encoded (PNG of 16 bits, TIFF, .npy) in a struct {bytes, path}, as plain binary or as the path of a file,
as an image would be; or it is a list of numbers, either of rows or, of as many as its image has pixels, one after the
other. Files are assigned to parts by name, as for data=parquet; where none is for testing, those for validation are.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from dinoswap.data.filesystem import by_part, find_files
from dinoswap.data.images import Decoding, Pixels, corrupt_if_undecodable
from dinoswap.data.parquet_images import ParquetImages
from dinoswap.data.table_files import SUFFIXES, TableFile, open_table, without_caches
from dinoswap.depth.stored import StoredDepth, as_map, decoded


class ParquetDepth(StoredDepth):
    """Reads the Parquet or Arrow files at `path`: a file, a folder of them, or a glob pattern. Raises ValueError when
    there are none for training or for testing, and for a column that is missing."""

    def __init__(
        self,
        *,
        path: str,
        image_column: str,
        depth_column: str,
        scale: float,
        valid: tuple[float, float],
        train: int,
        test: int,
        side: int,
    ) -> None:
        super().__init__(scale, valid, train, test, side)
        listing = find_files(path, SUFFIXES, "path")
        files = by_part(without_caches(listing.files, Counter()))
        files.setdefault("test", files.get("validation", []))
        if lacking := [part for part in self.limits if not files.get(part)]:
            raise ValueError(
                f"path={path}: {len(listing.files)} files, but none for the {lacking[0]} part; name them as in "
                "train-0.parquet and test-0.parquet, or put them into folders of these names"
            )
        tables = {part: [open_table(file) for file in files[part]] for part in self.limits}
        for name, column in (("image_column", image_column), ("depth_column", depth_column)):
            for table in (table for tables_of_part in tables.values() for table in tables_of_part):
                if column not in table.schema.names:
                    raise ValueError(f"{name}={column}: the columns of {table.path} are {table.schema.names}")
        self.pairs = {part: TablePairs(opened, image_column, depth_column) for part, opened in tables.items()}


class TablePairs:
    """Reads each image, and its depth map, from a row of one of the tables."""

    def __init__(self, tables: Sequence[TableFile], image: str, depth: str) -> None:
        self.images, self.depths = (_cells(tables, column) for column in (image, depth))
        self.listed = _is_list(tables[0].schema.field(depth).type)

    def __len__(self) -> int:
        return len(self.images)

    def load(self, index: int) -> tuple[Pixels, NDArray[Any]]:
        pixels, name = self.images.load(index), self.name(index)
        if not self.listed:
            return pixels, as_map(decoded(self.depths.encoded(index), name), name)
        with corrupt_if_undecodable(name):
            numbers = np.array(self.depths.value(index))  # raises ValueError for rows of different lengths
        if numbers.shape == (pixels.shape[0] * pixels.shape[1],):
            numbers = numbers.reshape(pixels.shape[:2])
        return pixels, as_map(numbers, name)

    def name(self, index: int) -> str:
        return self.depths.name(index)


def _cells(tables: Sequence[TableFile], column: str) -> ParquetImages:
    """Returns a column of all tables, of which nothing is read before it is needed."""
    return ParquetImages(tables, [str(table.path) for table in tables], column, (None, None), 0.0, Decoding())


def _is_list(kind: Any) -> bool:
    """Tells whether an Arrow type is one of lists."""
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))
