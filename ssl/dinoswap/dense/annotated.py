"""Reads images with a map of class numbers each: palette PNG, grey PNG of 8 or 16 bits."""

import io
from abc import ABC, abstractmethod
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from dinoswap import rng
from dinoswap.data.images import CorruptImage, decode
from dinoswap.dense.base import IGNORE, Scene

VALUES = 2**16
"""Number of values that a map may hold."""


def classes_by_value(first: int, classes: int, values: Mapping[int, int] | None = None) -> NDArray[np.int16]:
    """Returns the class of each value in a map, int16 [VALUES], IGNORE where it has none. Classes are `classes` values
    from `first` on, or those that `values` maps to a class."""
    table = np.full(VALUES, IGNORE, dtype=np.int16)
    if values is None:
        table[first : first + classes] = np.arange(classes)
    else:
        table[list(values)] = list(values.values())
    return table


def read_map(data: bytes, name: str) -> NDArray[np.uint16]:
    """Returns the values of an encoded map, uint16 [h, w]: indices of a palette, or grey levels. Raises CorruptImage
    for one that cannot be decoded, and for colours, which are no numbers of classes."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            if image.mode not in ("P", "L", "1", "I", "I;16"):
                raise CorruptImage(name, f"an annotation of mode {image.mode}: a palette or one grey channel is needed")
            values = np.asarray(image)
    except (OSError, UnidentifiedImageError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise CorruptImage(name, str(error)) from error
    if values.min() < 0 or values.max() >= VALUES:
        raise CorruptImage(name, f"an annotation with the values {values.min()} to {values.max()}")
    return values.astype(np.uint16)


class AnnotatedImages(ABC):
    """Scenes of at most `limit` of `count` annotated images. Images are resized to `size` pixels square, whatever their
    sides; their truth keeps its own resolution. `table` is that of `classes_by_value`."""

    def __init__(self, count: int, limit: int | None, size: int, table: NDArray[np.int16]) -> None:
        self.rows, self.size, self.table = rng.fixed_subset(count, limit), size, table
        self.shape = (1, size, size)

    def __len__(self) -> int:
        return len(self.rows)

    @abstractmethod
    def read(self, row: int) -> tuple[str, bytes, bytes]:
        """Returns the name of an image, the encoded image and its encoded map. Raises CorruptImage."""

    def load(self, index: int) -> Scene:
        name, image, annotation = self.read(int(self.rows[index]))
        pixels, truth = decode(image, name), self.table[read_map(annotation, name)]
        if pixels.shape[:2] != truth.shape:
            sides = [f"{width} x {height}" for height, width in (pixels.shape[:2], truth.shape)]
            raise CorruptImage(name, f"an image of {sides[0]} pixels with an annotation of {sides[1]}")
        view = Image.fromarray(pixels).resize((self.size, self.size), Image.Resampling.BICUBIC, reducing_gap=None)
        return Scene(np.asarray(view).transpose(2, 0, 1)[None], truth)


def checked_side(own: int | None, evaluated: int, patch: int, train: int | None, test: int | None) -> int:
    """Returns the side of the images of a source: its own, or where that is None the one that whole images are
    evaluated at. Raises ValueError, which begins with the key, for one that is no multiple of the patch, and for limits
    below 1."""
    size = evaluated if own is None else own
    if size < 1 or size % patch:
        near = max(size // patch * patch, patch)
        raise ValueError(f"evaluation.dense.size={size}: must be a multiple of a patch's side, {patch}, as {near} is")
    for name, limit in (("train", train), ("test", test)):
        if limit is not None and limit < 1:
            raise ValueError(f"evaluation.dense.{name}={limit}: at least one image is needed; null for all of them")
    return size
