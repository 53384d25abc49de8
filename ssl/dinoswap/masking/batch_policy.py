"""Decides which crops of a batch are masked and how many patches of each, for options that draw a mask from a count.

Of `crops` crops, int(crops * mask_sample_probability) are masked. Their targets are spread evenly over the ratio range
(one interval of the range each, a uniform draw inside it); the masks are then shuffled over the crops. `scope` says
which crops these are: all P * B jointly (`batch`), or the B of each of the P crops by themselves (`crop`).
`draws` says from what: from one generator, mask after mask, as the official code does (`batch`), or each mask from a
generator of its own (`position`), so that a rank draws the masks of its own images only. The masks are others then, and
as likely.
Follows dinov2/data/collate.py of facebookresearch/dinov2 @ b8931f7, whose float32 arithmetic decides the counts;
`crop` follows training/trainer.py of the legacy trainer @ b23df50.
"""

import itertools
import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from typing import Any, Literal, NamedTuple

import numpy as np

from dinoswap.rng import numpy_generator, python_generator

Draws = Literal["batch", "position"]
"""Whether the masks of a step are drawn in turn from one generator, or each of them from one of its own."""


class Generators(NamedTuple):
    """The generators that a mask is drawn from: Python's and, where an option adds single patches, NumPy's. The latter
    is the old RandomState, because dinov3 calls its `choice`."""

    python: random.Random
    numpy: np.random.RandomState

    @classmethod
    def keyed(cls, seed: int, *counters: int) -> "Generators":
        """Returns the generators of a step, or of one mask where its slot is the second counter."""
        fill = np.random.RandomState(numpy_generator(seed, "mask", *counters).bit_generator)
        return cls(python_generator(seed, "mask", *counters), fill)


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
        self,
        mask_sample_probability: float,
        mask_ratio_min_max: tuple[float, float],
        scope: Literal["batch", "crop"],
        draws: Draws,
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
        self.draws = draws

    @abstractmethod
    def generator(self, crop_size: tuple[int, int], patch_size: int) -> MaskGenerator:
        """Returns the function that draws one mask of a crop of this size (height, width in pixels)."""

    def edges(self, masked: int) -> Sequence[np.floating[Any]]:
        """Returns the ends of the parts of the ratio range, of which each of the `masked` crops has one."""
        return ratio_edges(*self.ratio_min_max, masked)

    def target(self, low: np.floating[Any], high: np.floating[Any], patches: int, rng: Generators) -> int:
        """Returns how many of its `patches` a crop is to hide whose part of the ratio range this is."""
        # float32 throughout: the official code draws between 0-d float32 tensors
        ratio = low + (high - low) * np.float32(rng.python.random())
        return int(np.float32(patches) * ratio)

    def targets(self, masked: int, patches: int, rng: Generators) -> Iterator[int]:
        """Yields how many of its `patches` each of the `masked` crops is to hide, ascending and drawn lazily."""
        for low, high in itertools.pairwise(self.edges(masked)):
            yield self.target(low, high, patches, rng)

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
    ) -> Callable[..., np.ndarray]:
        """Returns a function from a step to its masks, bool [crops (P), images (B of all ranks), N], drawn from `seed`
        and the step alone. With draws=position it takes a slice of the images too, and draws the masks of those."""
        height, width = patch_grid(crop_size, patch_size)
        patches = height * width
        generator = self.generator(crop_size, patch_size)
        groups = 1 if self.scope == "batch" else crops
        crops_of_group = crops * images // groups

        def draw(step: int) -> np.ndarray:
            rng = Generators.keyed(seed, step)
            masks = [self.generate_block_masks(generator, crops_of_group, patches, rng) for _ in range(groups)]
            return np.stack(masks).reshape(crops, images, patches)  # [1, P * B, N] or [P, B, N] -> [P, B, N]

        def draw_part(step: int, part: slice = slice(None)) -> np.ndarray:
            # masks have slots, in the order of their targets, which one permutation per group spreads over its crops
            masked = int(crops_of_group * self.probability)
            edges = self.edges(masked)
            in_order = np.arange(crops * images).reshape(groups, crops_of_group)
            shuffled = numpy_generator(seed, "mask", step).permuted(in_order, axis=1)
            slots = shuffled.reshape(crops, images)[:, part]
            masks = np.zeros((*slots.shape, patches), dtype=bool)
            for place, slot in np.ndenumerate(slots):
                interval = slot % crops_of_group
                if interval < masked:  # the slots beyond have no mask
                    rng = Generators.keyed(seed, step, slot)
                    target = self.target(edges[interval], edges[interval + 1], patches, rng)
                    masks[place] = generator(target, rng).reshape(patches)
            return masks

        return draw if self.draws == "batch" else draw_part
