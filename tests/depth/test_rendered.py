"""Rendered rooms, against rays that are followed one by one through every plane, and against where corners are seen."""

import math
import time

import numpy as np
import pytest
from numpy.typing import NDArray

from dinoswap.data.images import Images
from dinoswap.depth.rendered import AMBIENT, LIGHT, TEXTURE, VIEW, RenderedDepth, Room, Solid, mirrored
from dinoswap.rng import numpy_generator


class Numbered(Images):
    """Images of one grey level each, their number, or noise where `noise` is set."""

    labels, classes, blocks = None, None, ()

    def __init__(self, count: int, noise: bool = False) -> None:
        self.count, self.noise = count, noise
        self.shown: set[int] = set()

    def __len__(self) -> int:
        return self.count

    def load(self, row: int) -> NDArray[np.uint8]:
        self.shown.add(row)
        if self.noise:
            return np.random.default_rng(row).integers(0, 256, (24, 40, 3), dtype=np.uint8)
        return np.full((24, 40, 3), row, dtype=np.uint8)

    def name(self, row: int) -> str:
        return str(row)


def source(**settings: int) -> RenderedDepth:
    return RenderedDepth(**({"train": 6, "test": 4, "side": 2} | settings), boxes=(2, 4))


def a_room(pitch: float = 0.0) -> Room:
    hull = Solid((0.3, 1.4, 2.5), (2.0, 1.4, 3.5))  # the back wall is at 6, the floor at 0
    boxes = [Solid((-0.6, 0.4, 3.0), (0.3, 0.4, 0.5), 0.6), Solid((0.5, 0.7, 4.0), (0.4, 0.7, 0.3), 1.2)]
    return Room(hull, boxes, 1.5, pitch)


def planes_met(room: Room, ray: NDArray[np.float64]) -> float:
    """The least parameter at which a ray crosses a face of any solid from outside, or the hull from inside, found plane
    by plane: whether a point lies on a face is asked of the point itself."""
    met = []
    for number, solid in enumerate((room.hull, *room.boxes)):
        forward = np.array([math.sin(solid.turn), 0, math.cos(solid.turn)])
        up = np.array([0.0, 1.0, 0.0])
        directions = [np.cross(up, forward), up, forward]
        for axis, half in zip(directions, solid.half, strict=True):
            for sign in (-1, 1):
                on_plane = np.array(solid.centre) + sign * half * axis
                slope = float(axis @ ray)
                if abs(slope) < 1e-9:
                    continue
                t = float(axis @ (on_plane - room.eye)) / slope
                point = room.eye + t * ray - solid.centre
                inside = all(
                    abs(d @ point) <= h + 1e-9 for d, h in zip(directions, solid.half, strict=True) if d is not axis
                )
                leaves = sign * slope > 0
                if t > 0 and inside and leaves == (number == 0):
                    met.append(t)
    return min(met)


@pytest.mark.parametrize("pitch", [0.0, 0.35, -0.1])
def test_depth_is_that_of_rays_followed_plane_by_plane(pitch: float) -> None:
    room, side = a_room(pitch), 16
    _, depth = room.render(side, [np.zeros((4, 4, 3), dtype=np.uint8)] * room.textures)
    down = np.array([0, -math.cos(pitch), -math.sin(pitch)])
    forward = np.array([0, -math.sin(pitch), math.cos(pitch)])
    assert abs(down @ forward) < 1e-12
    for row, column in np.ndindex(side, side):
        right = ((column + 0.5) / side * 2 - 1) * math.tan(math.radians(30))
        below = ((row + 0.5) / side * 2 - 1) * math.tan(math.radians(30))
        ray = forward + below * down + np.array([right, 0, 0])
        assert depth[row, column] == pytest.approx(planes_met(room, ray), abs=1e-9)


def test_the_back_wall_has_one_depth_where_the_camera_is_level() -> None:
    room = Room(a_room().hull, [], 1.5, 0.0)
    depth, face, _ = room.met(room.rays(32))
    assert (depth[face == 2] == pytest.approx(6.0)) and (face == 2).sum() > 100
    floor = (face == 1) & (room.rays(32)[:, 1] < 0)
    assert np.allclose(depth[floor], 1.5 / -room.rays(32)[floor, 1]), "by similar triangles"


def test_a_box_is_seen_up_to_its_projected_corners() -> None:
    """On each side its pixels reach to within a pixel of the outermost corner, and no further."""
    side, height, (x, y, z), half, turn = 96, 1.5, (-0.6, 0.4, 4.2), (0.3, 0.4, 0.5), 0.6
    room = Room(a_room().hull, [Solid((x, y, z), half, turn)], height, 0.0)
    solid = room.met(room.rays(side))[2].reshape(side, side)
    places = []
    for a, b, c in np.ndindex(2, 2, 2):
        u, v, w = (2 * a - 1) * half[0], (2 * b - 1) * half[1], (2 * c - 1) * half[2]
        point = x + u * math.cos(turn) + w * math.sin(turn), y + v, z - u * math.sin(turn) + w * math.cos(turn)
        places.append(((height - point[1]) / point[2], point[0] / point[2]))
    pixels = (np.array(places) / VIEW + 1) / 2 * side
    rows, columns = np.nonzero(solid == 1)
    for seen, corners in ((rows + 0.5, pixels[:, 0]), (columns + 0.5, pixels[:, 1])):
        assert corners.min() <= seen.min() < corners.min() + 1.5
        assert corners.max() - 1.5 < seen.max() <= corners.max()


def test_surfaces_show_their_image_shaded_by_the_light() -> None:
    room, side = a_room(), 48
    textures = [np.full((4, 4, 3), 100 + 20 * number, dtype=np.uint8) for number in range(room.textures)]
    view, _ = room.render(side, textures)
    rays = room.rays(side)
    _, face, solid = room.met(rays)
    shown = view[0].ravel()
    assert np.linalg.norm(LIGHT) == pytest.approx(1)
    for number, box in enumerate((room.hull, *room.boxes)):
        forward, up = np.array([math.sin(box.turn), 0, math.cos(box.turn)]), np.array([0.0, 1.0, 0.0])
        for across, normal in enumerate((np.cross(up, forward), up, forward)):
            level = 100 + 20 * (2 + number if number else across)
            for sign in (-1, 1):
                at = (solid == number) & (face == across) & (np.sign(rays @ normal) == -sign)
                brightness = AMBIENT + (1 - AMBIENT) * max(sign * float(normal @ LIGHT), 0)
                assert np.abs(shown[at] - brightness * level).max(initial=0) < 1
        assert len(np.unique(shown[solid == number])) >= 2, "an edge shows"


def test_an_image_goes_on_mirrored() -> None:
    texture = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
    step = TEXTURE / 2  # of a pixel in metres
    for row, column in np.ndindex(9, 9):
        place = np.array([[(row - 4 + 0.5) * step, (column - 4 + 0.5) * step]])
        right = texture[(0, 1, 1, 0)[(row - 4) % 4], (0, 1, 1, 0)[(column - 4) % 4]]
        assert (mirrored(texture, place)[0] == right).all()


def test_rooms_are_repeatable_differ_by_part_and_lie_in_the_valid_range() -> None:
    train, test = Numbered(30, noise=True), Numbered(9, noise=True)
    parts = source().parts(train, test, 16, 4)
    assert parts is not None
    assert (len(parts.train), len(parts.test)) == (6, 4)
    first, again, other = parts.train.load(1), parts.train.load(1), parts.test.load(1)
    assert (first.views.shape, parts.train.shape) == ((1, 3, 32, 32), (1, 32, 32))
    assert np.array_equal(first.views, again.views) and np.array_equal(first.truth, again.truth)
    assert not np.array_equal(first.truth, other.truth)
    assert first.truth.dtype == np.float32
    for index in range(6):
        truth = parts.train.load(index).truth
        assert np.isfinite(truth).all(), "rooms are closed, and within the valid range"
        assert truth.min() > 0.5
    assert test.shown and max(test.shown) < 9


def test_all_rooms_that_can_be_drawn_lie_in_the_valid_range() -> None:
    depths = []
    for number in range(200):
        draw = numpy_generator(0, "t", number)
        room = Room.drawn(draw, 3)
        depths.append(room.met(room.rays(8))[0])
    assert np.min(depths) > 0.5 and np.max(depths) < 10
    assert np.std(np.mean(depths, 1)) > 0.2


def test_without_test_images_every_fifth_is_held_out() -> None:
    images = Numbered(25)
    parts = source().parts(images, None, 16, 4)
    assert parts is not None
    for index in range(6):
        parts.train.load(index)
    trained, images.shown = images.shown, set()
    for index in range(4):
        parts.test.load(index)
    assert images.shown and all(row % 5 == 4 for row in images.shown)
    assert trained and all(row % 5 != 4 for row in trained)
    assert source().parts(Numbered(4), None, 16, 4) is None


def test_a_scene_is_rendered_in_a_moment() -> None:
    parts = source().parts(Numbered(30), Numbered(30), 32, 8)
    assert parts is not None
    parts.train.load(0)
    start = time.process_time()
    for index in range(6):
        parts.train.load(index)
    assert (time.process_time() - start) / 6 < 0.02


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"train": 0}, "train=0: must be at least 1"),
        ({"side": 0}, "side=0"),
        ({"boxes": (3, 2)}, r"boxes=\[3, 2\]"),
    ],
)
def test_wrong_settings_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RenderedDepth(**({"train": 6, "test": 4, "side": 2, "boxes": (2, 4)} | settings))  # type: ignore[arg-type]
