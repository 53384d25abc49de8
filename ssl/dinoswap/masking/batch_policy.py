"""Decides which crops of a batch are masked and how many patches of each, for options that draw a mask from a count.

Of `crops` crops, int(crops * mask_sample_probability) are masked. Their targets are spread evenly over the ratio range
(one interval of the range each, a uniform draw inside it); the masks are then shuffled over the crops. `scope` says
which crops these are: all P * B jointly (`batch`), or the B of each of the P crops by themselves (`crop`).
Follows dinov2/data/collate.py of facebookresearch/dinov2 @ b8931f7, whose float32 arithmetic decides the counts;
`crop` follows training/trainer.py of the legacy trainer @ b23df50.
"""

import itertools
import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Literal, NamedTuple

import numpy as np

from dinoswap.rng import numpy_generator, python_generator


class Generators(NamedTuple):
    """The generators that a mask is drawn from: Python's and, where an option adds single patches, NumPy's. The latter
    is the old RandomState, because dinov3 calls its `choice`."""

    python: random.Random
    numpy: np.random.RandomState


MaskGenerator = Callable[[int, Generators], np.ndarray]
"""(target count, generators) -> bool [h, w]; a target of 0 gives an empty mask"""


def patch_grid(crop_size: tuple[int, int], patch_size: int) -> tuple[int, int]:
    """Returns (h, w) in patches of a crop in pixels."""
    return crop_size[0] // patch_size, crop_size[1] // patch_size


@lru_cache
def ratio_edges(low: float, high: float, intervals: int) -> tuple[np.float32, ...]:
    """Returns the ends of `intervals` equal parts of the ratio range, in float32 as the official collate has them."""
    import torch  # takes seconds, and the settings of a mask are checked without it

    return tuple(torch.linspace(low, high, intervals + 1).numpy())


class BatchPolicy(ABC):
    """Masks a share `mask_sample_probability` of the crops, each over a share of its patches in `mask_ratio_min_max`.
    Raises ValueError for a value out of range."""

    def __init__(
        self, mask_sample_probability: float, mask_ratio_min_max: tuple[float, float], scope: Literal["batch", "crop"]
    ) -> None:
        low, high = mask_ratio_min_max
        if not 0 <= mask_sample_probability <= 1:
            raise ValueError(f"mask_sample_probability={mask_sample_probability}: must lie between 0 and 1")
        if not 0 <= low <= high <= 1:
            raise ValueError(f"mask_ratio_min_max={list(mask_ratio_min_max)}: needs 0 <= min <= max <= 1")
        if scope not in ("batch", "crop"):
            raise ValueError(
                f"scope={scope}: use batch (all crops jointly) or crop (each mask-carrying crop by itself)"
            )
        self.probability = mask_sample_probability
        self.ratio_min_max = (low, high)
        self.scope = scope

    @abstractmethod
    def generator(self, crop_size: tuple[int, int], patch_size: int) -> MaskGenerator:
        """Returns the function that draws one mask of a crop of this size (height, width in pixels)."""

    def targets(self, masked: int, patches: int, rng: Generators) -> Iterator[int]:
        """Yields how many of its `patches` each of the `masked` crops is to hide, ascending and drawn lazily."""
        for low, high in itertools.pairwise(ratio_edges(*self.ratio_min_max, masked)):
            # float32 throughout: the official code draws between 0-d float32 tensors
            ratio = low + (high - low) * np.float32(rng.python.random())
            yield int(np.float32(patches) * ratio)

    def generate_block_masks(self, generator: MaskGenerator, crops: int, patches: int, rng: Generators) -> np.ndarray:
        """Returns the masks of all crops, bool [crops, patches]. Each mask is drawn right after its target, in the
        order of the official code."""
        masked = int(crops * self.probability)
        masks = [generator(target, rng) for target in self.targets(masked, patches, rng)]
        masks += [generator(0, rng) for _ in range(crops - masked)]
        rng.python.shuffle(masks)
        return np.stack(masks).reshape(crops, patches)  # [crops, h, w] -> [crops, N]

    def sampler(
        self, *, crop_size: tuple[int, int], patch_size: int, crops: int, images: int, seed: int
    ) -> Callable[[int], np.ndarray]:
        """Returns a function from a step to its masks, bool [crops (P), images (B of all ranks), N], drawn from `seed`
        and the step alone."""
        height, width = patch_grid(crop_size, patch_size)
        generator = self.generator(crop_size, patch_size)
        draws = 1 if self.scope == "batch" else crops

        def draw(step: int) -> np.ndarray:
            fill = np.random.RandomState(numpy_generator(seed, "mask", step).bit_generator)
            rng = Generators(python_generator(seed, "mask", step), fill)
            masks = [
                self.generate_block_masks(generator, crops * images // draws, height * width, rng) for _ in range(draws)
            ]
            return np.stack(masks).reshape(crops, images, -1)  # [1, P * B, N] or [P, B, N] -> [P, B, N]

        return draw
