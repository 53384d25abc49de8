"""Warnings before the first step of a run about settings that are valid but seldom intended. None takes long to find.

Each is a sentence that begins with the config key that it is about.
"""

from collections.abc import Iterator
from typing import cast

import numpy as np

from dinoswap.config.measured import needs_labels
from dinoswap.config.schema import construct_option
from dinoswap.config.sections import Config, step_sizes
from dinoswap.config.streams import stream_seeds
from dinoswap.data.images import Images
from dinoswap.schedule.base import SchedulePlan

OFTEN_EMPTY = 0.1
"""A warning is given when more than this share of the crops that are to be masked have no masked patch."""
DRAWN_IMAGES, DRAWN_STEPS = 64, 8
"""Masks are drawn for so many images and steps to find that share: hundreds of crops give it within a few per cent."""


def notices(cfg: Config, *, train: Images, test: Images | None, masked_crops: int, ranks: int) -> Iterator[str]:
    """Yields all warnings for the resolved config `cfg`. `masked_crops` crops of each image carry a mask, and `ranks`
    processes were started for the run."""
    yield from cast(SchedulePlan, construct_option(cfg["schedule"], "schedule")).unfinished(cfg["trainer"]["max_steps"])
    yield from empty_masks(cfg, masked_crops)
    yield from unmeasured(cfg, train, test)
    if cfg["distributed"] and ranks == 1:
        yield (
            "distributed: one process was started, so nothing is distributed; start several, as in "
            "torchrun --nproc-per-node 8 -m dinoswap.train ..."
        )


def empty_masks(cfg: Config, masked_crops: int) -> Iterator[str]:
    """Yields a warning for each size of the global crops whose patch grid is so small that many get no mask, because
    the target count or the smallest rectangle is too small or too large for it."""
    for size in dict.fromkeys(sizes.global_size for sizes in step_sizes(cfg)):
        yield from empty_masks_of(size, cfg, masked_crops)


def empty_masks_of(size: int, cfg: Config, masked_crops: int) -> Iterator[str]:
    """Yields the warning for crops of `size` x `size` pixels, where there is one."""
    patch = cfg["model"]["patch_size"]
    sampler = construct_option(cfg["masking"], "masking").sampler(
        crop_size=(size, size), patch_size=patch, crops=masked_crops, images=DRAWN_IMAGES, seed=stream_seeds(cfg).masks
    )
    masks = np.stack([sampler(step) for step in range(DRAWN_STEPS)])  # [steps, P, B, N]
    expected = int(masked_crops * DRAWN_IMAGES * cfg["masking"].get("mask_sample_probability", 1.0)) * DRAWN_STEPS
    empty = 1 - masks.any(-1).sum() / expected if expected else 0.0
    if empty > OFTEN_EMPTY:
        yield (
            f"masking: {empty:.0%} of the crops that are to be masked have no masked patch, as there are only "
            f"{size // patch} x {size // patch} patches; nothing is learnt from them by the patch losses: use a larger "
            "crops.global_size, a smaller model.patch_size, or masking=bernoulli"
        )


def unmeasured(cfg: Config, train: Images, test: Images | None) -> Iterator[str]:
    """Yields a warning where the metric that sweeps maximise needs labels that the data does not have."""
    if (reason := no_accuracy(train, test)) and needs_labels(cfg["objective_metric"]):
        yield (
            f"objective_metric={cfg['objective_metric']}: will not be measured: {reason}; for a sweep choose "
            "objective_metric=eval/rankme, or data with labelled test images"
        )


def no_accuracy(train: Images, test: Images | None) -> str:
    """Returns why no accuracy can be measured on this data, "" where it can."""
    if train.labels is None:
        return "the training images have no labels"
    if test is None:
        return "there are no test images"
    return "the test images have no labels" if test.labels is None else ""
