"""Mosaics of textures, made of any labelled images: the classic benchmark of texture segmentation (Randen and Husoy
1999, "Filtering for Texture Classification"), which needs no annotated data set.

Each mosaic has a few regions with irregular borders. A region shows one image, mirrored beyond its borders, and the
class of its pixels is the image's label. Mosaics for training are made of training images, those for testing of test
images.
"""

from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dinoswap import rng
from dinoswap.data.clean_crop import clean_crop
from dinoswap.data.images import Images, Labels
from dinoswap.dense.base import AnnotatedParts, AnnotatedSource, Scene

WARP = 0.15
"""Borders are moved by about so much of the side of a mosaic."""
WAVES = 5
"""Number of points per side at which the movement is drawn; between them it is interpolated."""


class Mosaic(AnnotatedSource):
    """Makes mosaics of `side` times the side that whole images are evaluated at. `regions` is the range of the number
    of regions in one."""

    def __init__(self, *, train: int, test: int, side: int, regions: tuple[int, int]) -> None:
        for name, value in (("train", train), ("test", test), ("side", side)):
            if value < 1:
                raise ValueError(f"{name}={value}: must be at least 1")
        if not 2 <= regions[0] <= regions[1]:
            raise ValueError(f"regions={list(regions)}: from two regions on there is something to tell apart")
        self.train, self.test, self.side, self.regions = train, test, side, regions

    def parts(self, train: Images, test: Images | None, size: int, patch: int) -> AnnotatedParts | None:
        if test is None or train.labels is None or test.labels is None:
            return None
        known = np.intersect1d(train.labels, test.labels)
        if len(known) < 2:
            return None
        names = train.classes or [str(label) for label in range(int(train.labels.max()) + 1)]
        rest = self.regions, known, size, self.side * size
        return AnnotatedParts(
            Mosaics(train, train.labels, "train", self.train, *rest),
            Mosaics(test, test.labels, "test", self.test, *rest),
            names,
        )


class Mosaics:
    """Makes `count` mosaics, `side` pixels square, of images that are `size` pixels square, whose labels are among
    `classes`. A mosaic depends on its number and the part alone."""

    def __init__(
        self,
        images: Images,
        labels: Labels,
        part: Literal["train", "test"],
        count: int,
        regions: tuple[int, int],
        classes: NDArray[np.int64],
        size: int,
        side: int,
    ) -> None:
        self.images, self.part, self.count, self.size = images, part, count, size
        self.rows = {int(label): np.flatnonzero(labels == label) for label in classes}
        self.regions = min(regions[0], len(classes)), min(regions[1], len(classes))
        self.shape = (1, side, side)

    def __len__(self) -> int:
        return self.count

    def load(self, index: int) -> Scene:
        draw = rng.numpy_generator(0, f"evaluation/mosaic/{self.part}", index)
        count, side = int(draw.integers(self.regions[0], self.regions[1], endpoint=True)), self.shape[1]
        region = irregular_regions(draw, count, side)
        chosen = draw.choice(list(self.rows), size=count, replace=False)
        views = np.empty((1, 3, side, side), dtype=np.uint8)
        truth = np.empty((side, side), dtype=np.int16)
        for number, label in enumerate(chosen):
            row = int(draw.choice(self.rows[int(label)]))
            image = clean_crop(self.images.load(row), self.size, self.size)
            texture = mirrored(image, side, *draw.integers(0, 2 * self.size, 2))
            views[0][:, region == number] = texture[region == number].T  # [pixels, 3] -> [3, pixels]
            truth[region == number] = label
        return Scene(views, truth)


def irregular_regions(draw: np.random.Generator, count: int, side: int) -> NDArray[np.int64]:
    """Returns which of `count` regions each pixel belongs to, int64 [side, side]: the one whose point is nearest, in
    coordinates that are warped smoothly. Every region has at least one pixel in twenty of its equal share."""
    while True:
        points = draw.uniform(0, 1, (count, 2))
        y, x = np.mgrid[0:side, 0:side] / side
        y, x = y + WARP * _smooth(draw, side), x + WARP * _smooth(draw, side)
        distance = np.hypot(y[None] - points[:, 0, None, None], x[None] - points[:, 1, None, None])
        region: NDArray[np.int64] = distance.argmin(0)
        if np.bincount(region.ravel(), minlength=count).min() >= side * side / count / 20:
            return region


def _smooth(draw: np.random.Generator, side: int) -> NDArray[np.float32]:
    """Draws smooth noise of deviation 1, float32 [side, side]."""
    coarse = Image.fromarray(draw.normal(size=(WAVES, WAVES)).astype(np.float32))
    return np.asarray(coarse.resize((side, side), Image.Resampling.BICUBIC))


def mirrored(texture: NDArray[np.uint8], side: int, top: int, left: int) -> NDArray[np.uint8]:
    """Returns [side, side, 3] of a plane that is tiled by a texture [size, size, 3], each tile the mirror image of its
    neighbours, from the pixel (top, left) of the plane on."""
    period = np.concatenate([np.arange(len(texture)), np.arange(len(texture))[::-1]])
    rows, columns = (period[(start + np.arange(side)) % len(period)] for start in (top, left))
    plane: NDArray[np.uint8] = texture[rows[:, None], columns]
    return plane
