"""How many patches of each crop a batch hides, shared by the options that place blocks.

Of `crops` crops, int(crops * probability) are masked. Their target counts are spread evenly over the ratio range
(one interval of the range each, a uniform draw inside it); the masks are then shuffled over the crops.
Follows dinov2/data/collate.py of facebookresearch/dinov2 @ b8931f7, whose float32 arithmetic decides the counts.
"""

import itertools
import random
from collections.abc import Callable
from functools import lru_cache

import numpy as np
import torch

MaskGenerator = Callable[[int, random.Random], np.ndarray]
"""(target count, generator) -> bool [h, w]"""


@lru_cache
def _ratio_edges(low: float, high: float, intervals: int) -> tuple[np.float32, ...]:
    return tuple(torch.linspace(low, high, intervals + 1).numpy())


def generate_block_masks(
    generator: MaskGenerator,
    crops: int,
    patches: int,
    *,
    probability: float,
    ratio_min_max: tuple[float, float],
    rng: random.Random,
) -> np.ndarray:
    """bool [crops, patches]. The draws of `rng` are those of the official collate, one for one."""
    masked = int(crops * probability)
    edges = _ratio_edges(*ratio_min_max, masked)
    masks = []
    for low, high in itertools.pairwise(edges):
        # float32 throughout: the official code draws between 0-d float32 tensors
        ratio = low + (high - low) * np.float32(rng.random())
        masks.append(generator(int(np.float32(patches) * ratio), rng))
    masks += [generator(0, rng) for _ in range(crops - masked)]
    rng.shuffle(masks)
    return np.stack(masks).reshape(crops, patches)  # [crops, h, w] -> [crops, N]
