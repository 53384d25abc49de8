"""Images with depth maps as data sets store them, for the sources that read them from files.

The numbers of a depth map are depths along the optical axis times `scale`; what is 0 in most data sets, a depth that is
not known, lies outside the valid range.
"""

import io
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dinoswap import rng
from dinoswap.data.clean_crop import clean_crop
from dinoswap.data.images import CorruptImage, Images, Pixels, corrupt_if_undecodable
from dinoswap.dense.base import Scene
from dinoswap.depth.base import DepthParts, DepthRange, DepthSource

ALIKE = 0.02
"""Height by width of an image and of its depth map may differ by so much, as after rounding."""


class Pairs(Protocol):
    """A finite list of images with depth maps."""

    def __len__(self) -> int: ...

    def load(self, index: int) -> tuple[Pixels, NDArray[Any]]:
        """Returns the pixels of an image, uint8 [H, W, 3], and the numbers of its depth map, [h, w]. Raises
        CorruptImage when either cannot be read."""
        ...

    def name(self, index: int) -> str:
        """Returns a name by which a person finds the depth map."""
        ...


class StoredDepth(DepthSource):
    """Reads at most `train` and `test` of the `pairs` of each part, and shows their largest centred squares at `side`
    times the side that whole images are evaluated at. A depth map holds `scale` units for a metre, and `valid` are the
    depths in metres that count. Raises ValueError for a number out of range."""

    pairs: Mapping[str, Pairs]
    """The pairs of the parts "train" and "test", which a subclass finds."""

    def __init__(self, scale: float, valid: tuple[float, float], train: int, test: int, side: int) -> None:
        if not scale > 0:
            raise ValueError(f"scale={scale}: the units of a depth map for a metre, above 0")
        for name, value in (("train", train), ("test", test), ("side", side)):
            if value < 1:
                raise ValueError(f"{name}={value}: must be at least 1")
        self.scale, self.valid, self.side = scale, DepthRange(*valid), side
        self.limits = {"train": train, "test": test}

    def parts(self, train: Images, test: Images | None, size: int, patch: int) -> DepthParts:
        scenes = {
            part: StoredScenes(self.pairs[part], limit, self.scale, self.valid, self.side * size)
            for part, limit in self.limits.items()
        }
        return DepthParts(scenes["train"], scenes["test"], self.valid)


class StoredScenes:
    """Reads at most `limit` pairs, the same ones each time, as views `side` pixels square with depth maps at their own
    resolution."""

    def __init__(self, pairs: Pairs, limit: int, scale: float, valid: DepthRange, side: int) -> None:
        self.pairs, self.rows = pairs, rng.fixed_subset(len(pairs), limit)
        self.scale, self.valid = scale, valid
        self.shape = (1, side, side)

    def __len__(self) -> int:
        return len(self.rows)

    def load(self, index: int) -> Scene:
        row = int(self.rows[index])
        pixels, numbers = self.pairs.load(row)
        (height, width), (rows, columns) = pixels.shape[:2], numbers.shape
        if abs(height * columns / (width * rows) - 1) > ALIKE:
            raise CorruptImage(
                self.pairs.name(row), f"a depth map of {columns} x {rows} for an image of {width} x {height} pixels"
            )
        side = self.shape[1]
        view = clean_crop(pixels, side, side).transpose(2, 0, 1)  # [side, side, 3] -> [3, side, side]
        side = min(rows, columns)
        top, left = (rows - side) // 2, (columns - side) // 2
        return Scene(view[None], self.valid.known(numbers[top : top + side, left : left + side] / self.scale))


def decoded(data: bytes | memoryview, name: str) -> NDArray[Any]:
    """Returns the numbers of an encoded depth map, PNG, TIFF or .npy, as they are stored. Raises CorruptImage, with
    `name`, when it cannot be decoded, or is a picture in colours."""
    with corrupt_if_undecodable(name):
        if bytes(data[:6]) == b"\x93NUMPY":
            array: NDArray[Any] = np.load(io.BytesIO(data), allow_pickle=False)
            return array
        with Image.open(io.BytesIO(data), formats=("PNG", "TIFF")) as image:
            if image.mode not in ("L", "F") and not image.mode.startswith("I"):
                raise ValueError(f"a picture of mode {image.mode}, where a depth map is gray, of 16 bits or floats")
            return np.asarray(image)


def as_map(numbers: NDArray[Any], name: str) -> NDArray[Any]:
    """Returns a depth map, [h, w], without further dimensions of length 1. Raises CorruptImage, with `name`, for what
    is none."""
    numbers = np.squeeze(numbers)
    if numbers.ndim != 2 or numbers.dtype.kind not in "fiu":
        raise CorruptImage(name, f"{numbers.dtype} {list(numbers.shape)}, where a depth map is [h, w] numbers")
    return numbers
