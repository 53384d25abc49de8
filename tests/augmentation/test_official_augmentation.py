"""OfficialAugmentation: its clean crops, refused settings, speed."""

import runpy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from augmentation_reference import differences, photograph, pil_crop

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
