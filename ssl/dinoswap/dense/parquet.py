"""Annotated images in Parquet files with a column of images and one of maps, in the Hugging Face image layout."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pyarrow import ArrowInvalid, parquet

from dinoswap.data.images import CorruptImage, Images
from dinoswap.dense.annotated import AnnotatedImages, checked_side, classes_by_value
from dinoswap.dense.base import AnnotatedParts, AnnotatedSource


class AnnotatedParquet(AnnotatedSource):
    """Reads Parquet files in the folder `path`, whose names begin with "train", "val" or "test". Images are `size`
    pixels square, None for the side that whole images are evaluated at; values from `first_class` on are `classes`
    classes, all others are not judged."""

    def __init__(
        self,
        *,
        path: str,
        image_column: str,
        mask_column: str,
        size: int | None,
        first_class: int,
        classes: int | None,
        train: int | None,
        test: int | None,
    ) -> None:
        if classes is None or classes < 2 or first_class < 0 or first_class + classes > 2**15:
            raise ValueError(f"classes={classes}: must be at least 2, and first_class + classes at most {2**15}")
        self.path, self.size, self.limits = Path(path).expanduser(), size, (train, test)
        self.columns, self.first_class, self.classes = (image_column, mask_column), first_class, classes

    def parts(self, train: Images, test: Images | None, size: int, patch: int) -> AnnotatedParts:
        side = checked_side(self.size, size, patch, *self.limits)
        table = classes_by_value(self.first_class, self.classes)
        parts = [
            ParquetScenes(self._files(*prefixes), self.columns, limit, side, table)
            for prefixes, limit in zip((("train",), ("val", "test")), self.limits, strict=True)
        ]
        return AnnotatedParts(parts[0], parts[1], [str(number) for number in range(self.classes)])

    def _files(self, *prefixes: str) -> list[Path]:
        """Returns the Parquet files whose names begin with the first of the prefixes that any has. Raises ValueError
        where none has."""
        for prefix in prefixes:
            if files := sorted(self.path.glob(f"**/{prefix}*.parquet")):
                return files
        names = " or ".join(f"{prefix}*.parquet" for prefix in prefixes)
        raise ValueError(f"evaluation.dense.path={self.path}: has no {names}")


class ParquetScenes(AnnotatedImages):
    """Scenes of the rows of Parquet files. The row group that was read last is held."""

    def __init__(
        self,
        files: Sequence[Path],
        columns: tuple[str, str],
        limit: int | None,
        size: int,
        table: NDArray[np.int16],
    ) -> None:
        self.columns = columns
        self.groups: list[tuple[Path, int]] = []
        ends = [0]
        for file in files:
            try:
                footer = parquet.ParquetFile(file)
            except (ArrowInvalid, OSError) as error:
                raise ValueError(f"evaluation.dense.path: {file} cannot be read ({error})") from error
            if missing := sorted(set(columns) - set(footer.schema_arrow.names)):
                known = ", ".join(footer.schema_arrow.names)
                raise ValueError(f"evaluation.dense: {file} has no column {missing[0]}; it has {known}")
            for group in range(footer.num_row_groups):
                self.groups.append((file, group))
                ends.append(ends[-1] + footer.metadata.row_group(group).num_rows)
        self.ends = np.array(ends)
        self._held: tuple[int, Any] = (-1, None)
        super().__init__(int(self.ends[-1]), limit, size, table)

    def read(self, row: int) -> tuple[str, bytes, bytes]:
        group = int(np.searchsorted(self.ends, row, side="right")) - 1
        file, number = self.groups[group]
        if self._held[0] != group:
            self._held = group, parquet.ParquetFile(file).read_row_group(number, columns=list(self.columns))
        place = row - int(self.ends[group])
        name = f"{file.name}, row {row}"
        image, mask = (_bytes(self._held[1][column][place].as_py(), name) for column in self.columns)
        return name, image, mask


def _bytes(value: Any, name: str) -> bytes:
    """Returns an encoded image: bytes, or a struct with a field of that name. Raises CorruptImage for anything else."""
    data = value.get("bytes") if isinstance(value, dict) else value
    if not isinstance(data, bytes):
        raise CorruptImage(name, "holds no encoded image")
    return data
