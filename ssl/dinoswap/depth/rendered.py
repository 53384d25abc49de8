"""Rooms with boxes, rendered with their exact depth from the images of the evaluation: synthetic scenes, which need no
depth maps. They show whether tokens tell surfaces and their distance apart, not how well depth is told in photographs.

A room is the inside of a box, closed on all sides, and in it stand a few boxes, turned about the vertical axis. One
image is repeated on the floor and the ceiling, another one on the side walls, a third one on the back wall, and one on
each box; everything is lit from one direction, so that edges show. Each pixel is the point that the ray through its
centre meets first.

Right, up and forward are x, y and z. Rays have a length of 1 along the optical axis, so that a point at parameter t of
its ray has the depth t.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from dinoswap import rng
from dinoswap.data.clean_crop import clean_crop
from dinoswap.data.images import Images
from dinoswap.dense.base import Scene
from dinoswap.depth.base import DepthParts, DepthRange, DepthSource

HOLD_OUT = 5
"""Where there are no test images, every fifth image is shown in test scenes, and the others in training scenes."""
VALID = DepthRange(0.1, 10.0)
"""All that a room shows is within."""
TEXTURE = 2.0
"""The side in metres that an image has on a surface."""
VIEW = np.tan(np.radians(30.0))
"""Half of the width that is seen at a distance of 1."""
LIGHT = np.array([0.48, 0.8, -0.36])
"""The direction towards the light, of length 1: from the right, above and behind."""
AMBIENT = 0.4
"""The brightness of a surface that is turned away from the light; facing it, it is 1."""
ROWS_AND_COLUMNS = ((1, 2), (2, 0), (1, 0))
"""For the faces across each side of a box, the sides that the rows and columns of an image run along."""

Floats = NDArray[np.float64]


class RenderedDepth(DepthSource):
    """Renders scenes of `side` times the side that whole images are evaluated at. `boxes` is the range of the number of
    boxes in one."""

    def __init__(self, *, train: int, test: int, side: int, boxes: tuple[int, int]) -> None:
        for name, value in (("train", train), ("test", test), ("side", side)):
            if value < 1:
                raise ValueError(f"{name}={value}: must be at least 1")
        if not 0 <= boxes[0] <= boxes[1]:
            raise ValueError(f"boxes={list(boxes)}: the least number of boxes, 0 or more, and the greatest")
        self.train, self.test, self.side, self.boxes = train, test, side, boxes

    def parts(self, train: Images, test: Images | None, size: int, patch: int) -> DepthParts | None:
        shown = np.arange(len(train)), np.arange(len(train if test is None else test))
        if test is None:
            held = shown[0] % HOLD_OUT == HOLD_OUT - 1
            shown = shown[0][~held], shown[0][held]
        if not all(map(len, shown)):
            return None
        rest = self.boxes, size, self.side * size
        return DepthParts(
            Rooms(train, shown[0], "train", self.train, *rest),
            Rooms(train if test is None else test, shown[1], "test", self.test, *rest),
            VALID,
        )


class Rooms:
    """Renders `count` rooms, `side` pixels square, that show the images in `rows`, each `size` pixels square. A room
    depends on its number and the part alone."""

    def __init__(
        self,
        images: Images,
        rows: NDArray[np.int64],
        part: Literal["train", "test"],
        count: int,
        boxes: tuple[int, int],
        size: int,
        side: int,
    ) -> None:
        self.images, self.rows, self.part, self.count = images, rows, part, count
        self.boxes, self.size = boxes, size
        self.shape = (1, side, side)

    def __len__(self) -> int:
        return self.count

    def load(self, index: int) -> Scene:
        draw = rng.numpy_generator(0, f"evaluation/rendered/{self.part}", index)
        room = Room.drawn(draw, int(draw.integers(self.boxes[0], self.boxes[1], endpoint=True)))
        rows = draw.choice(self.rows, size=room.textures)
        textures = [clean_crop(self.images.load(int(row)), self.size, self.size) for row in rows]
        view, depth = room.render(self.shape[1], textures)
        return Scene(view[None], VALID.known(depth))


@dataclass(frozen=True)
class Solid:
    """A box: its centre and half of its sides in metres, and the angle in radians that it is turned by about the
    vertical axis."""

    centre: tuple[float, float, float]
    half: tuple[float, float, float]
    turn: float = 0.0

    @property
    def axes(self) -> Floats:
        """The directions of its sides, one a row: [3, 3]."""
        sine, cosine = np.sin(self.turn), np.cos(self.turn)
        return np.array([[cosine, 0, -sine], [0, 1, 0], [sine, 0, cosine]])

    def local(self, points: Floats) -> Floats:
        """Returns points in coordinates along its sides, from its centre: [..., 3] to [..., 3]."""
        turned: Floats = (points - self.centre) @ self.axes.T
        return turned

    def crossed(self, eye: Floats, rays: Floats) -> tuple[Floats, Floats]:
        """Returns the parameters at which rays [n, 3] from `eye` cross the two planes across each side, the nearer ones
        and the farther ones: [n, 3] each. A ray is inside between the last of the nearer planes and the first of the
        farther ones."""
        along = rays @ self.axes.T
        along = np.where(along == 0, 1e-12, along)  # parallel to a plane, which it then crosses far away
        middle, reach = -self.local(eye) / along, np.array(self.half) / np.abs(along)
        return middle - reach, middle + reach


@dataclass(frozen=True)
class Room:
    """The inside of `hull`, with boxes in it, seen from (0, `height`, 0) in metres, where the floor is at 0. The camera
    is pitched down by `pitch` radians."""

    hull: Solid
    boxes: Sequence[Solid]
    height: float
    pitch: float

    @classmethod
    def drawn(cls, draw: np.random.Generator, boxes: int) -> "Room":
        """Draws a room with so many boxes, which stand in front of the camera, some of them behind others."""
        width, top, length = draw.uniform((3.0, 2.4, 4.0), (6.0, 3.2, 8.0))
        middle = draw.uniform(-width / 6, width / 6)
        hull = Solid((middle, top / 2, (length - 1) / 2), (width / 2, top / 2, (length + 1) / 2))
        solids = []
        for _ in range(boxes):
            half = draw.uniform((0.15, 0.15, 0.15), (0.5, 0.8, 0.5))
            distance = draw.uniform(2.0, length - 0.5)
            sideways = np.clip(draw.uniform(-0.8, 0.8) * VIEW * distance, middle - width / 2, middle + width / 2)
            solids.append(Solid((float(sideways), half[1], distance), tuple(half), draw.uniform(0, np.pi / 2)))
        return cls(hull, solids, draw.uniform(0.8, 1.8), draw.uniform(np.radians(-10), np.radians(35)))

    @property
    def textures(self) -> int:
        """The number of images that are shown."""
        return 3 + len(self.boxes)

    @property
    def eye(self) -> Floats:
        """The place of the camera, [3]."""
        return np.array([0.0, self.height, 0.0])

    def rays(self, side: int) -> Floats:
        """Returns the rays through the centres of the pixels of a square image, row by row: [side * side, 3]."""
        place = ((np.arange(side) + 0.5) / side * 2 - 1) * VIEW
        down, right = (values.ravel() for values in np.meshgrid(place, place, indexing="ij"))
        sine, cosine = np.sin(self.pitch), np.cos(self.pitch)
        return np.stack([right, -down * cosine - sine, -down * sine + cosine], 1)

    def met(self, rays: Floats) -> tuple[Floats, NDArray[np.int64], NDArray[np.int64]]:
        """Returns the depth of what rays [n, 3] meet first, which solid that is (0 for the hull, then the boxes), and
        across which of its sides the face lies: [n] each."""
        _, far = self.hull.crossed(self.eye, rays)
        depth, face, solid = far.min(1), far.argmin(1), np.zeros(len(rays), dtype=np.int64)
        for number, box in enumerate(self.boxes, start=1):
            near, far = box.crossed(self.eye, rays)
            entry = near.max(1)
            hit = (entry > 0) & (entry < far.min(1)) & (entry < depth)
            depth[hit], face[hit], solid[hit] = entry[hit], near[hit].argmax(1), number
        return depth, face, solid

    def render(self, side: int, textures: Sequence[NDArray[np.uint8]]) -> tuple[NDArray[np.uint8], Floats]:
        """Returns a square view, uint8 [3, side, side], and its depth, [side, side]. The textures, uint8 [size, size,
        3], are those across the sides of the hull, then one of each box."""
        rays = self.rays(side)
        depth, face, solid = self.met(rays)
        colours = np.empty((side * side, 3), dtype=np.uint8)
        for number, box in enumerate((self.hull, *self.boxes)):
            for across, normal in enumerate(box.axes):
                at = np.flatnonzero((solid == number) & (face == across))
                points = box.local(self.eye + depth[at, None] * rays[at])
                texture = textures[2 + number if number else across]
                light = np.maximum(-np.sign(rays[at] @ normal) * (normal @ LIGHT), 0)  # the face looks at the camera
                shade = AMBIENT + (1 - AMBIENT) * light[:, None]
                colours[at] = shade * mirrored(texture, -points[:, ROWS_AND_COLUMNS[across]])
        return colours.T.reshape(3, side, side), depth.reshape(side, side)


def mirrored(texture: NDArray[np.uint8], places: Floats) -> NDArray[np.uint8]:
    """Returns the colours, uint8 [n, 3], at places on a plane, [n, 2] in metres down and to the right, that a texture,
    uint8 [size, size, 3], is repeated on, each time as the mirror image of its neighbours."""
    size = len(texture)
    pixel = np.floor(places * (size / TEXTURE)).astype(np.int64) % (2 * size)
    rows, columns = np.minimum(pixel, 2 * size - 1 - pixel).T
    colours: NDArray[np.uint8] = texture[rows, columns]
    return colours
