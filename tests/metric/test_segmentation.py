"""Segmentation by patch tokens, against loops over pixels, scikit-learn, and tokens that are the class itself."""

from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import confusion_matrix
from torch import Tensor

from dinoswap.data.images import Images
from dinoswap.dense.base import SceneParts
from dinoswap.dense.mosaic import Mosaic, irregular_regions, mirrored
from dinoswap.metric.patch_classifiers import (
    PatchClassifiers,
    confusion,
    intersection_over_union,
    labelled_patches,
    majority,
    pixel_classes,
)
from dinoswap.metric.segmentation import Segmentation
from dinoswap.rng import numpy_generator


class Shades(Images):
    """Images of one colour each: red is 20 times the label, green the number of the image, blue 1 in the test part."""

    blocks = ()

    def __init__(self, count: int, test: bool, classes: int = 6, labelled: bool = True) -> None:
        self.truth, self.test = np.arange(count) % classes, test
        self.labels = self.truth if labelled else None
        self.classes = [f"c{label}" for label in range(classes)]

    def __len__(self) -> int:
        return len(self.truth)

    def load(self, row: int) -> NDArray[np.uint8]:
        return np.full((32, 40, 3), [20 * self.truth[row], row, self.test], dtype=np.uint8)

    def name(self, row: int) -> str:
        return str(row)


def metric(**settings: Any) -> Segmentation:
    dense = Mosaic(train=20, test=10, side=2, regions=(2, 5))
    return Segmentation(**({"in_loop": False, "patches": 20000, "dense": dense} | settings))


def measured(family: Segmentation, parts: SceneParts, tokens_of: dict[str, Tensor]) -> dict[str, float]:
    """What the family finds in one batch of all training and one of all test scenes."""
    assert parts.train is not None
    truth = {
        n: [part.load(i).truth for i in range(len(part))] for n, part in (("train", parts.train), ("test", parts.test))
    }
    fitted = family.fit(family.keep(tokens_of["train"], truth["train"], 0))
    return dict(family.values(family.judge(fitted, tokens_of["test"], truth["test"])))


@pytest.fixture(scope="module")
def family() -> Segmentation:
    return metric()


@pytest.fixture(scope="module")
def parts(family: Segmentation) -> SceneParts:
    made = family.scenes(Shades(60, test=False), Shades(30, test=True), 32, 4)
    assert made is not None
    return made


def test_a_mosaic_shows_images_of_its_classes_and_its_part(parts: SceneParts) -> None:
    for part, blue in ((parts.train, 0), (parts.test, 1)):
        assert part is not None
        found: Counter[int] = Counter()
        for index in range(len(part)):
            scene = part.load(index)
            red, green, third = scene.views[0]
            assert np.array_equal(red, 20 * scene.truth)
            assert np.array_equal(green % 6, scene.truth)
            assert (third == blue).all()
            found[len(np.unique(scene.truth))] += 1
            assert len(np.unique(green)) == len(np.unique(scene.truth)), "one image a region"
        assert 2 <= min(found) < max(found) <= 5
        assert np.array_equal(part.load(1).views, part.load(1).views)
    assert not np.array_equal(parts.train.load(0).truth, parts.test.load(0).truth)  # type: ignore[union-attr]


def test_borders_are_irregular() -> None:
    """Of two regions, no straight line divides the pixels as the border does."""
    region = irregular_regions(numpy_generator(0, "t"), 2, 64)
    places = np.argwhere(np.ones_like(region)) / 64
    line = LogisticRegression(C=1e6).fit(places, region.ravel())
    assert 0.6 < line.score(places, region.ravel()) < 0.985


def test_a_texture_goes_on_mirrored() -> None:
    texture = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
    plane = mirrored(texture, 5, 1, 3)
    for y in range(5):
        for x in range(5):
            row, column = (0, 1, 1, 0)[(1 + y) % 4], (0, 1, 1, 0)[(3 + x) % 4]
            assert (plane[y, x] == texture[row, column]).all()


def test_without_labels_or_test_images_there_are_no_mosaics(family: Segmentation) -> None:
    other = metric()
    assert other.scenes(Shades(9, False), None, 32, 4) is None
    assert other.scenes(Shades(9, False, labelled=False), Shades(9, True), 32, 4) is None
    assert other.scenes(Shades(9, False, classes=1), Shades(9, True, classes=1), 32, 4) is None


def test_the_majority_is_that_of_a_loop() -> None:
    truth = np.random.default_rng(0).integers(-1, 3, (12, 20)).astype(np.int16)
    for grid in ((3, 5), (4, 4)):
        high, wide = 12 // grid[0], 20 // grid[1]
        for row, column in np.ndindex(*grid):
            counts = Counter(truth[row * high : (row + 1) * high, column * wide : (column + 1) * wide].ravel().tolist())
            most = min(label for label, count in counts.items() if count == max(counts.values()))
            assert majority(truth, grid, 3)[row, column] == most
    uneven = majority(np.repeat(np.array([[0, 1, 2]], dtype=np.int16), 7, 0), (2, 6), 3)
    assert uneven.tolist() == [[0, 0, 1, 1, 2, 2]] * 2


def test_confusion_and_iou_are_scikit_learns() -> None:
    generator = np.random.default_rng(1)
    truth, predicted = generator.integers(-1, 4, (30, 40)).astype(np.int16), generator.integers(0, 4, (30, 40))
    known = truth >= 0
    matrix = confusion(truth, predicted, 5)
    assert np.array_equal(matrix, confusion_matrix(truth[known], predicted[known], labels=range(5)))
    iou = intersection_over_union(matrix.astype(float))
    for label in range(4):
        both = ((truth == label) & (predicted == label)).sum()
        either = ((truth == label) | ((predicted == label) & known)).sum()
        assert iou[label] == pytest.approx(100 * both / either)
    assert np.isnan(iou[4])


def test_pixels_are_interpolated_between_the_centres_of_patches() -> None:
    scores = torch.tensor([[[1.0, 0.0, -torch.inf], [0.0, 1.0, -torch.inf]]])  # [1, 2, classes]
    assert pixel_classes(scores, 2, 8).tolist() == [[0] * 4 + [1] * 4] * 2
    ramp = torch.tensor([[[3.0, 0.0], [-1.0, 0.0]]])  # crosses zero three quarters of the way
    assert pixel_classes(ramp, 1, 8).tolist() == [[0, 0, 0, 0, 0, 1, 1, 1]]


@pytest.mark.parametrize("classes", [2, 3])
def test_logits_are_those_of_the_regression_on_standardised_tokens(classes: int) -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(300) % classes
    tokens = torch.randn(300, 5, generator=generator) * torch.tensor([1.0, 2, 3, 4, 5]) + labels[:, None] * 0.7
    fitted = PatchClassifiers.fitted(tokens, labels, torch.arange(300) // 10, classes + 1)
    scaled = (tokens - tokens.mean(0)) / tokens.std(0, correction=0)
    truth = LogisticRegression(C=fitted.c, tol=1e-3, max_iter=200).fit(scaled.numpy(), labels.numpy())
    share = fitted.logits(tokens).softmax(-1)
    assert np.abs(share[:, :classes].numpy() - truth.predict_proba(scaled.numpy())).max() < 1e-4
    assert (share[:, classes] == 0).all(), "a class without patches"


def test_tokens_that_are_the_class_score_100(family: Segmentation, parts: SceneParts) -> None:
    """At a token a pixel nothing is lost at borders."""

    def one_hot(part: object) -> Tensor:
        truth = np.stack([part.load(i).truth for i in range(len(part))])  # type: ignore[attr-defined, arg-type]
        return torch.nn.functional.one_hot(torch.from_numpy(truth.astype(np.int64)), 6).float()[:, None]

    values = measured(family, parts, {"train": one_hot(parts.train), "test": one_hot(parts.test)})
    names = (
        "seg_miou",
        "seg_accuracy",
        "seg_knn_miou",
        "seg_knn_accuracy",
        *(f"seg_iou/c{label}" for label in range(6)),
    )
    assert {name: values[name] for name in names} == dict.fromkeys(names, 100.0)


def test_tokens_that_know_nothing_score_chance(family: Segmentation, parts: SceneParts) -> None:
    """Of six classes that are equally frequent one in six pixels is right."""
    generator = torch.Generator().manual_seed(0)
    tokens = {
        name: torch.randn(count, 1, 16, 16, 8, generator=generator) for name, count in (("train", 20), ("test", 10))
    }
    values = measured(family, parts, tokens)
    assert 8 < values["seg_accuracy"] < 30
    assert 8 < values["seg_knn_accuracy"] < 30
    assert values["seg_miou"] < 15


def test_of_more_scenes_than_patches_as_many_are_read_as_patches_are_wanted() -> None:
    family = metric(patches=100, dense=Mosaic(train=700, test=3, side=2, regions=(2, 3)))
    parts = family.scenes(Shades(60, test=False), Shades(30, test=True), 32, 4)
    assert parts is not None and parts.train is not None
    assert (len(parts.train), parts.train.shape, len(parts.test)) == (100, (1, 64, 64), 3)
    kept = family.keep(torch.zeros(1, 1, 4, 4, 2), [parts.train.load(0).truth], 0)
    assert len(kept["labels"]) == 1


def test_patches_are_drawn_evenly_from_all_scenes_and_ignored_ones_left_out() -> None:
    truth = [np.full((8, 8), label, dtype=np.int16) for label in (0, 1, -1)]
    truth[0][:4] = -1
    tokens = torch.arange(3 * 16).reshape(3, 4, 4, 1).float()
    kept = labelled_patches(tokens, truth, 2, 6, 5)
    assert kept["labels"].tolist() == [0] * 6 + [1] * 6
    assert kept["scenes"].tolist() == [5] * 6 + [6] * 6
    assert set(kept["tokens"][:6, 0].tolist()) <= set(range(8, 16)), "its lower half"
    again = labelled_patches(tokens[1:], truth[1:], 2, 6, 6)
    assert torch.equal(again["tokens"], kept["tokens"][6:]), "whichever batch a scene is in"
