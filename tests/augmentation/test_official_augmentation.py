"""OfficialAugmentation: its clean crops, jitter that all views share, refused settings, speed."""

import runpy
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from augmentation_reference import differences, photograph, pil_crop

from dinoswap.augmentation.photometric import Photometry, apply
from options import build_augmentation

TOOL = Path(__file__).parents[2] / "tools" / "benchmark_augmentation.py"


def test_clean_crops_are_the_pixels_of_the_image() -> None:
    photo = photograph()[:200, :300]
    multicrop = build_augmentation("official", global_crops_size=32, local_crops_size=16, clean_sizes=(14, 32, 64))
    drawn = multicrop.draw(np.random.default_rng(0), *photo.shape[:2])
    clean_crops = multicrop.render(photo, drawn).clean_crops
    assert list(clean_crops) == [14, 32, 64]
    for width, crops in clean_crops.items():
        for clean, (crop, _) in zip(crops, drawn[:2], strict=True):
            assert differences(clean, pil_crop(photo, crop, (width, width))).max() <= 1


def test_shared_jitter_is_that_of_global_1_and_every_other_draw_stays() -> None:
    """With any number of local crops."""
    own, shared = (build_augmentation("official", share_jitter=share, extra_crops=1) for share in (False, True))
    fewer = build_augmentation("official", share_jitter=True, extra_crops=1, local_crops_number=1)
    for seed in range(20):
        before, after, some = (each.draw(np.random.default_rng(seed), 200, 300) for each in (own, shared, fewer))
        assert after[0] == before[0]
        assert {(photometry.jitter, photometry.grayscale) for _, photometry in after} == {
            (before[0][1].jitter, before[0][1].grayscale)
        }
        for (crop, photometry), (same_crop, alike) in zip(before, after, strict=True):
            assert crop == same_crop
            assert replace(photometry, jitter=(), grayscale=False) == replace(alike, jitter=(), grayscale=False)
        assert some == after[:4]


@pytest.mark.parametrize("extra", [0, 1])
@pytest.mark.parametrize("mirrored", [False, True])
def test_shared_jitter_is_that_of_a_jittered_image_but_for_the_clean_crops(extra: int, mirrored: bool) -> None:
    """Which are cut from the image as it is, at the size of the views and at others."""
    photo = photograph()[:200, :300]
    if mirrored:  # strides that are negative
        photo = photo[:, ::-1]
    photo.flags.writeable = False
    settings: dict[str, Any] = {
        "global_crops_size": 32, "local_crops_size": 16, "local_crops_number": 3, "extra_crops": extra,
        "clean_sizes": (16, 32),
    }  # fmt: skip
    shared = build_augmentation("official", **settings, share_jitter=True)
    colourless = build_augmentation("official", **settings, jitter=0.0, grayscale=0.0)
    changed = 0
    for seed in range(5):
        _, photometry = shared.draw(np.random.default_rng(seed), *photo.shape[:2])[0]
        colours = Photometry(jitter=photometry.jitter, grayscale=photometry.grayscale)
        changed += colours != Photometry()
        views, cut_later = shared(photo, np.random.default_rng(seed)), colourless(photo, np.random.default_rng(seed))
        expected = colourless(apply(photo, colours), np.random.default_rng(seed))
        for ours, theirs in (
            (views.global_crops, expected.global_crops),
            (views.extra_crops, expected.extra_crops),
            (views.local_crops, expected.local_crops),
            (views.clean_crops[16], cut_later.clean_crops[16]),
            (views.clean_crops[32], cut_later.clean_crops[32]),
        ):
            assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    assert changed >= 3


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({"global_crops_size": 0}, "global_crops_size=0"),
        ({"local_crops_size": (16, -1)}, r"local_crops_size=\(16, -1\)"),
        ({"local_crops_number": -1}, "local_crops_number=-1"),
        ({"extra_crops": 2}, "extra_crops=2"),
        ({"clean_sizes": [64, 32]}, r"clean_sizes=\[64, 32\]"),
        ({"clean_sizes": [32, 32]}, r"clean_sizes=\[32, 32\]"),
        ({"clean_sizes": [0]}, r"clean_sizes=\[0\]"),
        ({"global_crops_scale": (0.0, 1.0)}, r"global_crops_scale=\(0.0, 1.0\)"),
        ({"local_crops_scale": (0.4, 0.3)}, r"local_crops_scale=\(0.4, 0.3\)"),
        ({"local_crops_scale": (0.4, 1.3)}, r"local_crops_scale=\(0.4, 1.3\)"),
        ({"horizontal_flip": 1.5}, "horizontal_flip=1.5"),
        ({"global2_blur": -0.1}, "global2_blur=-0.1"),
        ({"hue": 0.6}, "hue=0.6"),
        ({"brightness": float("nan")}, "brightness=nan"),
    ],
)
def test_refused_settings(settings: dict[str, Any], name: str) -> None:
    with pytest.raises(ValueError, match=f"^{name}: "):
        build_augmentation("official", **settings)


@pytest.fixture
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_speed(one_thread: None) -> None:
    """A guard, far below what is measured on a quiet machine (10 times the PIL pipeline at 32 px, 7 at 224)."""
    measure = runpy.run_path(str(TOOL))["measure"]
    assert measure("32", rounds=3)["ratio"] >= 3
