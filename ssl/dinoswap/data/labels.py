"""Converts what data sets write as labels to numbers of classes.

A part of a data set has labels when every image has one. If some images lack theirs, none is used, and a remark says
how many and which. Whole numbers are used as they are. Numbers of a million and above are names of something and are
numbered as class names are, so that no memory is allocated in proportion to the largest of them.
"""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from dinoswap.data.images import Labels, numbered

LARGEST = 1_000_000

Named = tuple[Labels | None, Sequence[str] | None]


def complete(lacking: NDArray[np.bool_], name: Callable[[int], str], remarks: list[str]) -> bool:
    """Tells whether every image has a label; `lacking` is bool [rows]. If some images have one and others do not, a
    remark names the first that does not, by `name` of its row."""
    count = int(lacking.sum())
    if 0 < count < len(lacking):
        remarks.append(
            f"labels are not used, because {count} of {len(lacking)} images lack one, the first being "
            f"{name(int(lacking.argmax()))}"
        )
    return count == 0 and len(lacking) > 0


def from_numbers(values: Labels, classes: Sequence[str] | None, where: str) -> Named:
    """Returns int64 labels >= 0, and the classes that they index. Raises ValueError for a number that is no index of
    `classes`."""
    if len(values) == 0 or int(values.max()) < LARGEST:
        if classes is not None and len(values) and int(values.max()) >= len(classes):
            raise ValueError(f"{where}: label {int(values.max())}, but the classes are {len(classes)}")
        return values, classes
    return numbered([str(value) for value in values], classes, where)
