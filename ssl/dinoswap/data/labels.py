"""Numbers of classes from what data sets write as labels.

A part of a data set has labels when every image has one. Where some lack theirs, none is used, and a sentence says
how many and which. Whole numbers are used as they are; numbers of a million and above are names of something, and are
numbered as class names are, so that nothing is ever allocated by the largest of them.
"""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from dinoswap.data.images import Labels, numbered

LARGEST = 1_000_000

Named = tuple[Labels | None, Sequence[str] | None]


def complete(lacking: NDArray[np.bool_], name: Callable[[int], str], remarks: list[str]) -> bool:
    """Whether no image lacks a label. bool [rows]; `name` of the first that does goes into the remark, when others
    have one."""
    count = int(lacking.sum())
    if 0 < count < len(lacking):
        remarks.append(
            f"labels are not used, because {count} of {len(lacking)} images lack one, the first being "
            f"{name(int(lacking.argmax()))}"
        )
    return count == 0 and len(lacking) > 0


def from_numbers(values: Labels, classes: Sequence[str] | None, where: str) -> Named:
    """int64 labels >= 0, with the classes that they count. Raises ValueError for a number that `classes` lacks."""
    if len(values) == 0 or int(values.max()) < LARGEST:
        if classes is not None and len(values) and int(values.max()) >= len(classes):
            raise ValueError(f"{where}: label {int(values.max())}, but the classes are {len(classes)}")
        return values, classes
    return numbered([str(value) for value in values], classes, where)
