"""Reads images and depth maps of the same names from two folders:

    <path>/images/{train,test}/**/<name>.jpg     or any other format that is decoded
    <path>/depth/{train,test}/**/<name>.png      16 bits of gray, or <name>.npy, an array [h, w]

The numbers of a depth map are depths along the optical axis times `scale`; what is 0 in most data sets, a depth that is
not known, lies outside the valid range.
"""

import io
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dinoswap import rng
from dinoswap.data.images import CorruptImage, Images, corrupt_if_undecodable, decode, extensions
from dinoswap.dense.base import Scene, square
from dinoswap.depth.base import DepthParts, DepthRange, DepthSource

SUFFIXES = (".png", ".npy")
ALIKE = 0.02
"""Height by width of an image and of its depth map may differ by so much, as after rounding."""

Pair = tuple[Path, Path]
"""An image and its depth map."""


class FolderDepth(DepthSource):
    """Reads at most `train` and `test` images with depth maps below the folder `path`, and shows their largest centred
    squares at `side` times the side that whole images are evaluated at. A depth map holds `scale` units for a metre,
    and `valid` are the depths in metres that count. Raises ValueError when folders are missing or empty, and for an
    image without a depth map, or the reverse."""

    def __init__(
        self, *, path: str, scale: float, valid: tuple[float, float], train: int, test: int, side: int
    ) -> None:
        if not scale > 0:
            raise ValueError(f"scale={scale}: the units of a depth map for a metre, above 0")
        for name, value in (("train", train), ("test", test), ("side", side)):
            if value < 1:
                raise ValueError(f"{name}={value}: must be at least 1")
        self.scale, self.valid, self.side = scale, DepthRange(*valid), side
        root = Path(path).expanduser()
        self.pairs = {part: pairs_of(root, part, limit) for part, limit in (("train", train), ("test", test))}

    def parts(self, train: Images, test: Images | None, size: int, patch: int) -> DepthParts:
        rest = self.scale, self.valid, self.side * size
        return DepthParts(DepthFiles(self.pairs["train"], *rest), DepthFiles(self.pairs["test"], *rest), self.valid)


class DepthFiles:
    """Reads pairs of files as views `side` pixels square with depth maps at their own resolution."""

    def __init__(self, pairs: Sequence[Pair], scale: float, valid: DepthRange, side: int) -> None:
        self.pairs, self.scale, self.valid = pairs, scale, valid
        self.shape = (1, side, side)

    def __len__(self) -> int:
        return len(self.pairs)

    def load(self, index: int) -> Scene:
        image, depth = self.pairs[index]
        pixels = decode(image.read_bytes(), str(image))
        truth = depth_map(depth.read_bytes(), str(depth))
        (height, width), (rows, columns) = pixels.shape[:2], truth.shape
        if abs(height * columns / (width * rows) - 1) > ALIKE:
            raise CorruptImage(str(depth), f"{columns} x {rows} pixels, but its image has {width} x {height}")
        view = square(pixels, self.shape[1]).transpose(2, 0, 1)  # [side, side, 3] -> [3, side, side]
        side = min(rows, columns)
        top, left = (rows - side) // 2, (columns - side) // 2
        return Scene(view[None], self.valid.known(truth[top : top + side, left : left + side] / self.scale))


def pairs_of(root: Path, part: str, limit: int) -> list[Pair]:
    """Returns at most `limit` pairs of a part, the same ones each time, in the order of their names. Raises ValueError
    when there are none, and when the names in both folders are not the same."""
    images, depths = files_by_name(root, f"images/{part}", extensions()), files_by_name(root, f"depth/{part}", SUFFIXES)
    if alone := sorted(images.keys() ^ depths.keys()):
        there, other = ("images", "depth") if alone[0] in images else ("depth", "images")
        raise ValueError(
            f"path={root}: {len(alone)} files of the {part} part are in one folder only: {there}/{part}/{alone[0]} is "
            f"not in {other}/{part}; add it there, or remove it here"
        )
    names = sorted(images)
    return [(images[names[row]], depths[names[row]]) for row in rng.fixed_subset(len(names), limit)]


def files_by_name(root: Path, folder: str, suffixes: Collection[str]) -> dict[str, Path]:
    """Returns the files with one of the suffixes in `folder` of `root`, at any depth, by their path below it without
    suffix. Raises ValueError when there are none, or two of one name."""
    if not (root / folder).is_dir():
        raise ValueError(
            f"path={root}: has no folder {folder}; it holds images/train, images/test, depth/train and depth/test"
        )
    found: dict[str, Path] = {}
    for file in sorted((root / folder).rglob("*")):
        if file.suffix.lower() not in suffixes or file.name.startswith("."):
            continue
        name = str(file.relative_to(root / folder).with_suffix(""))
        if name in found:
            raise ValueError(f"path={root}: {folder}/{name} is there twice, as {found[name].name} and {file.name}")
        found[name] = file
    if not found:
        raise ValueError(f"path={root}: {folder} holds no file with one of {', '.join(sorted(suffixes)[:8])}")
    return found


def depth_map(data: bytes, name: str) -> NDArray[Any]:
    """Returns the numbers of an encoded depth map, [h, w]. Raises CorruptImage, with `name`, when it cannot be read or
    is none."""
    with corrupt_if_undecodable(name):
        if name.lower().endswith(".npy"):
            values: NDArray[Any] = np.squeeze(np.load(io.BytesIO(data), allow_pickle=False))
        else:
            with Image.open(io.BytesIO(data), formats=("PNG",)) as image:
                if image.mode != "L" and not image.mode.startswith("I"):
                    raise ValueError(f"a picture of mode {image.mode}, where a depth map is gray, of 16 bits")
                values = np.asarray(image)
        if values.ndim != 2 or values.dtype.kind not in "fiu":
            raise ValueError(f"{values.dtype} {list(values.shape)}, where a depth map is [h, w] numbers")
    return values
