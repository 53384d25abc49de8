"""How many patches of two crops find each other, against loops over single patches and pixels."""

import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from dinoswap.data.images import Images
from dinoswap.metric.correspondence import Correspondence
from dinoswap.metric.view_pairs import ViewPairs, match_counts, nearest, right_places

SIZE, GRID = 48, 12


class Places(Images):
    """Images whose red and green are the column and the row of a pixel: a pixel tells where in the image it was."""

    labels = None
    classes = None
    blocks = ()

    def __len__(self) -> int:
        return 12

    def load(self, row: int) -> NDArray[np.uint8]:
        y, x = np.mgrid[0:200, 0 : 200 + 20 * (row % 3)]  # wider than high, or square
        left = (x.shape[1] - 200) // 2
        return np.stack([(x - left).clip(0, 199), y, np.full_like(x, 40)], -1).astype(np.uint8)

    def name(self, row: int) -> str:
        return str(row)


def pairs() -> ViewPairs:
    return ViewPairs(Places(), 12, SIZE, (0.4, 1.0))


def test_pixels_of_both_crops_agree_with_the_geometry() -> None:
    """The pixel at a patch's centre tells its place in the image; in the second crop it is where it should be."""
    scenes, checked, mirrored = pairs(), 0, 0
    for index in range(len(scenes)):
        scene = scenes.load(index)
        (places,), (inside,) = right_places(scene.truth[None], GRID, GRID)
        mirrored += scene.truth[1, 2] < 0
        for patch in np.flatnonzero(inside):
            y, x = divmod(int(patch), GRID)
            centre = (slice(4 * y + 1, 4 * y + 3), slice(4 * x + 1, 4 * x + 3))  # the four pixels around it
            here = scene.views[0][:2, *centre].reshape(2, 4).mean(1)
            column, row = 4 * places[patch]
            if not (2 <= column <= SIZE - 2 and 2 <= row <= SIZE - 2):
                continue
            there = scene.views[1][:2, round(row - 0.5), round(column - 0.5)]
            tolerance = 0.75 * 200 / SIZE + 1.5  # half a pixel of the crop in both directions, and rounding
            assert np.abs(here - there).max() < tolerance, (index, patch)
            checked += 1
    assert checked > 500
    assert 2 <= mirrored <= 10


def test_the_third_view_is_the_second_in_other_colours() -> None:
    scene = pairs().load(3)
    assert scene.views.shape == (3, 3, SIZE, SIZE)
    assert np.abs(scene.views[1].astype(int) - scene.views[2]).max() > 10
    again = pairs().load(3)
    assert np.array_equal(scene.views, again.views)
    assert np.array_equal(scene.truth, again.truth)


def test_counts_are_those_of_a_loop() -> None:
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randn(4, 3, 5, 6, 7, generator=generator)
    boxes = np.array([[[0.1, 0.0, 0.8], [0.2, 0.3, 0.65]], [[0, 0, 1], [1, 0, -1]]] * 2, dtype=np.float64)
    hits, chance, total = [0, 0], 0.0, 0
    for n in range(4):
        (ax, ay, aside), (bx, by, bside) = boxes[n]
        for row in range(5):
            for column in range(6):
                px, py = ax + (column + 0.5) / 6 * aside, ay + (row + 0.5) / 5 * aside
                qx, qy = (px - bx) / bside * 6, (py - by) / abs(bside) * 5
                if not (0 < qx < 6 and 0 < qy < 5):
                    continue
                total += 1
                spots = [(r, c) for r in range(5) for c in range(6)]
                near = [math.hypot(c + 0.5 - qx, r + 0.5 - qy) < 1.001 for r, c in spots]
                chance += sum(near) / len(near)
                for view in (1, 2):
                    query = tokens[n, 0, row, column].double()
                    cosines = [
                        float(query @ tokens[n, view, r, c].double() / query.norm() / tokens[n, view, r, c].norm())
                        for r, c in spots
                    ]
                    hits[view - 1] += near[int(np.argmax(cosines))]
    assert match_counts(tokens, boxes).tolist() == pytest.approx([*hits, chance, total])
    assert total > 60
    assert 0 < hits[0] < total


def test_tokens_that_know_their_place_score_100_and_equal_ones_are_collapsed() -> None:
    metric = Correspondence(in_loop=True, images=12, scale=(0.4, 1.0))
    scenes = metric.scenes(Places(), None, SIZE, 4).test
    all_scenes = [scenes.load(index) for index in range(len(scenes))]
    views = torch.from_numpy(np.stack([scene.views for scene in all_scenes]))
    centre = views[..., :2, 1::4, 1::4].float()  # [n, 3, 2, rows, columns]: column and row in the image
    angles = torch.cat([centre * k * math.pi / 256 for k in (1, 3)], 2)
    known = torch.cat([angles.cos(), angles.sin()], 2).movedim(2, -1)
    known[:, 2] = known[:, 1]  # as if colours did not matter
    truth = [scene.truth for scene in all_scenes]
    values = metric.values(metric.judge(None, known, truth))
    assert values["correspondence"] == values["correspondence_photometric"] > 99
    assert metric.verdict(values) is None
    equal = metric.values(metric.judge(None, torch.ones_like(known), truth))
    assert equal["correspondence"] < 1.2 * equal["correspondence_chance"]
    assert "patch tokens are collapsing" in str(metric.verdict(equal))


def test_nearest_is_by_cosine_not_by_length() -> None:
    tokens = torch.zeros(1, 3, 1, 2, 2)
    tokens[0, 0, 0, :] = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    tokens[0, 1, 0, :] = torch.tensor([[9.0, 9.0], [0.1, 0.0]])
    tokens[0, 2, 0, :] = torch.tensor([[0.0, 0.2], [5.0, 4.0]])
    assert nearest(tokens).tolist() == [[[1, 0], [1, 0]]]


@pytest.mark.parametrize(("changed", "message"), [({"images": 0}, "images=0"), ({"scale": (0.1, 1.0)}, "scale=")])
def test_wrong_settings_are_named(changed: dict[str, object], message: str) -> None:
    settings = {"in_loop": True, "images": 8, "scale": (0.4, 1.0)} | changed
    with pytest.raises(ValueError, match=message):
        Correspondence(**settings)  # type: ignore[arg-type]
