"""What `MultiCrop.draw` draws: the distributions of each side, one independent row of numbers for each view."""

import math
from collections import Counter

import numpy as np
import pytest
import torch
from augmentation_reference import NAMES, VIEWS
from scipy.stats import binomtest, chisquare, kstest, uniform
from torchvision.transforms import RandomResizedCrop

from dinoswap.augmentation.multicrop import Draw, MultiCrop
from dinoswap.augmentation.photometric import UNIFORMS as PHOTOMETRIC_UNIFORMS
from dinoswap.augmentation.photometric import RandomPhotometry
from options import build_augmentation

HEIGHT, WIDTH = 375, 500
IMAGES = 2500
EXTENT = {"official": (HEIGHT, WIDTH), "legacy": (224, 224)}  # what the crops are cut from
ROLES = ("global 1", "global 2", "extra", "local")
EACH = [(option, view) for option in VIEWS for view in range(len(ROLES))]
RARE = 1e-5  # false-alarm rate of each check; the seeds are fixed, so a check that passes keeps passing


@pytest.fixture(scope="module")
def draws() -> dict[str, list[list[Draw]]]:
    """[option][role][image]."""
    drawn = {}
    for option in VIEWS:
        augment = build_augmentation(option, local_crops_number=1, extra_crops=1)
        images = [augment.draw(np.random.default_rng(seed), HEIGHT, WIDTH) for seed in range(IMAGES)]
        drawn[option] = [list(role) for role in zip(*images, strict=True)]
    return drawn


def agrees(count: int, total: int, probability: float) -> bool:
    return bool(binomtest(count, total, probability).pvalue > RARE)


def is_uniform(values: list[float], low: float, high: float) -> bool:
    return bool(kstest(values, uniform(low, high - low).cdf).pvalue > RARE)


@pytest.mark.parametrize(("option", "view"), EACH)
def test_crops_are_torchvisions(draws: dict[str, list[list[Draw]]], option: str, view: int) -> None:
    torch.manual_seed(view)
    height, width = EXTENT[option]
    image, scale = torch.empty(3, height, width), list(VIEWS[option][view].scale)
    theirs = np.array([RandomResizedCrop.get_params(image, scale, [3 / 4, 4 / 3]) for _ in range(IMAGES)])
    ours = np.array([(crop.top, crop.left, crop.height, crop.width) for crop, _ in draws[option][view]])
    for measure in (
        lambda box: box[:, 2] * box[:, 3],
        lambda box: box[:, 3] / box[:, 2],
        lambda box: box[:, 0],
        lambda box: box[:, 1],
    ):
        assert kstest(measure(ours), measure(theirs)).pvalue > RARE
    assert ours.min() >= 0
    assert (ours[:, 0] + ours[:, 2]).max() <= height
    assert (ours[:, 1] + ours[:, 3]).max() <= width


@pytest.mark.parametrize("option", VIEWS)
def test_local_crops_follow_the_formula(draws: dict[str, list[list[Draw]]], option: str) -> None:
    """Local crops always fit, so nothing is rejected: area and log aspect are uniform."""
    height, width = EXTENT[option]
    crops = [crop for crop, _ in draws[option][3]]
    assert is_uniform([c.height * c.width / (height * width) for c in crops], *VIEWS[option][3].scale)
    assert is_uniform([math.log(c.width / c.height) for c in crops], math.log(3 / 4), math.log(4 / 3))
    within_pixel = np.random.default_rng(0).random(IMAGES)
    assert is_uniform([(c.top + u) / (height - c.height + 1) for c, u in zip(crops, within_pixel, strict=True)], 0, 1)
    assert is_uniform([(c.left + u) / (width - c.width + 1) for c, u in zip(crops, within_pixel, strict=True)], 0, 1)


@pytest.mark.parametrize("shape", [(100, 1000), (1000, 100), (1, 1), (1, 7), (7, 1), (2, 3)])
def test_fallback_is_torchvisions(shape: tuple[int, int]) -> None:
    """Where no draw fits, the central crop; elsewhere it is as frequent as torchvision's."""
    augment = build_augmentation("official", local_crops_number=0)
    ours = [augment.draw(np.random.default_rng(seed), *shape)[0][0] for seed in range(400)]
    torch.manual_seed(0)
    image = torch.empty(3, *shape)
    theirs = [tuple(RandomResizedCrop.get_params(image, [0.32, 1.0], [3 / 4, 4 / 3])) for _ in range(400)]
    most_common, count = Counter(theirs).most_common(1)[0]
    same = sum((c.top, c.left, c.height, c.width) == most_common for c in ours)
    assert agrees(same, 400, count / 400) if count < 400 else same == 400


@pytest.mark.parametrize(("option", "view"), EACH)
def test_probabilities(draws: dict[str, list[list[Draw]]], option: str, view: int) -> None:
    crops, photometries = zip(*draws[option][view], strict=True)
    expected = VIEWS[option][view]
    assert agrees(sum(c.horizontal_flip for c in crops), IMAGES, 0.5)
    assert agrees(sum(c.vertical_flip for c in crops), IMAGES, expected.vertical_flip or 0)
    assert agrees(sum(bool(p.jitter) for p in photometries), IMAGES, 0.8)
    assert agrees(sum(p.grayscale for p in photometries), IMAGES, expected.grayscale or 0)
    assert agrees(
        sum(p.blur_sigma is not None for p in photometries), IMAGES, 1 if expected.blur is None else expected.blur
    )
    assert agrees(sum(p.solarize_threshold is not None for p in photometries), IMAGES, expected.solarize or 0)
    assert {p.solarize_threshold for p in photometries} <= {None, expected.threshold}
    assert {p.blur_kernel for p in photometries} == {expected.kernel}


@pytest.mark.parametrize(("option", "view"), EACH)
def test_jitter_and_blur(draws: dict[str, list[list[Draw]]], option: str, view: int) -> None:
    expected, photometries = VIEWS[option][view], [p for _, p in draws[option][view]]
    jitters = [p.jitter for p in photometries if p.jitter]
    orders = Counter(tuple(name for name, _ in jitter) for jitter in jitters)
    assert len(orders) == 24
    assert chisquare(list(orders.values())).pvalue > RARE
    for name, interval in zip(NAMES, expected.intervals, strict=True):
        assert is_uniform([dict(jitter)[name] for jitter in jitters], *interval)
    sigmas = [p.blur_sigma for p in photometries if p.blur_sigma is not None]
    assert is_uniform(sigmas, *expected.sigma) if sigmas else expected.blur == 0


def test_draws_are_uncorrelated(draws: dict[str, list[list[Draw]]]) -> None:
    """Within a view and between views."""

    def quantities(draw: Draw) -> list[float]:
        c, p = draw
        position = c.top / (HEIGHT - c.height + 1), c.left / (WIDTH - c.width + 1)
        return [*position, c.height * c.width, c.horizontal_flip, bool(p.jitter), p.grayscale]

    images = zip(*draws["official"], strict=True)
    table = np.array([[q for draw in views for q in quantities(draw)] for views in images])
    correlation = np.corrcoef(table, rowvar=False)
    assert np.abs(np.tril(correlation, -1)).max() < 5 / math.sqrt(IMAGES)


def by_role(augment: MultiCrop, seed: int = 3) -> dict[str, list[Draw]]:
    drawn = augment.draw(np.random.default_rng(seed), HEIGHT, WIDTH)
    extra = augment._extra_crops
    return {"global": drawn[:2], "extra": drawn[2 : 2 + extra], "local": drawn[2 + extra :]}


def test_views_do_not_change_each_others_draws() -> None:
    full = by_role(build_augmentation("official", local_crops_number=8, extra_crops=1, clean_sizes=(224,)))
    for locals_number in (0, 3, 8):
        for extra in (0, 1):
            for clean in ((), (224, 448)):
                augment = build_augmentation(
                    "official", local_crops_number=locals_number, extra_crops=extra, clean_sizes=clean
                )
                part = by_role(augment)
                assert part["global"] == full["global"]
                assert part["extra"] == full["extra"][:extra]
                assert part["local"] == full["local"][:locals_number]


def test_settings_do_not_change_other_draws() -> None:
    """Two arms that differ in one probability share everything else."""
    plain = by_role(build_augmentation("official"))
    changed = by_role(build_augmentation("official", jitter=0.0, global1_blur=1.0, hue=0.0, grayscale=1.0))
    for role in ("global", "local"):
        for (crop, before), (same_crop, after) in zip(plain[role], changed[role], strict=True):
            assert crop == same_crop
            assert before.solarize_threshold == after.solarize_threshold
            assert after.grayscale and not after.jitter
            assert before.blur_sigma in (None, after.blur_sigma)
    no_hue = by_role(build_augmentation("official", hue=0.0))
    for (_, before), (_, after) in zip(plain["local"], no_hue["local"], strict=True):
        assert after.jitter == tuple(step for step in before.jitter if step[0] != "hue")


def test_each_number_has_one_use() -> None:
    widths = {"brightness": 0.4, "contrast": 0.4, "saturation": 0.2, "hue": 0.1}
    distribution = RandomPhotometry(jitter=0.9, **widths, grayscale=0.9, blur=0.9, solarize=0.9)

    def parts(uniforms: list[float]) -> dict[str, object]:
        drawn = distribution.draw(uniforms)
        order = tuple(name for name, _ in drawn.jitter)
        others = (drawn.grayscale, drawn.blur_sigma is None, drawn.blur_sigma, drawn.solarize_threshold)
        return {"order": order, **dict(drawn.jitter), **dict(zip("gbst", others, strict=True))}

    reference = parts([0.5] * PHOTOMETRIC_UNIFORMS)
    changed = []
    for i in range(PHOTOMETRIC_UNIFORMS):
        uniforms = [0.5] * PHOTOMETRIC_UNIFORMS
        uniforms[i] = 0.95
        drawn = parts(uniforms)
        changed.append({key for key in reference if drawn.get(key) != reference[key]})
    jitter = {"brightness", "contrast", "saturation", "hue"}
    assert changed[0] == {"order", *jitter}
    assert changed[1:6] == [{"order"}, {"brightness"}, {"contrast"}, {"saturation"}, {"hue"}]
    assert changed[6:] == [{"g"}, {"b", "s"}, {"s"}, {"t"}]
