"""Every patch of every crop is hidden with the same probability, independently of all others.

The count of a crop varies around token_mask_ratio * N, no crop is left unmasked on purpose, and the mask has no shape:
unlike the block family there is no batch policy.
Follows training/helpers.py of the legacy trainer @ 67f6a87.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from dinoswap.masking.batch_policy import Draws, patch_grid
from dinoswap.rng import torch_generator

if TYPE_CHECKING:  # imported where it draws: a study's plan checks masks without waiting for torch
    import torch


def bernoulli_masks(crops: int, patches: int, ratio: float, rng: "torch.Generator") -> "torch.Tensor":
    """Returns the masks, bool [crops, patches], with the draws of the legacy trainer."""
    import torch

    return torch.rand(crops, patches, generator=rng) < ratio


class BernoulliMasking:
    """Hides a patch with probability `token_mask_ratio`. Raises ValueError for one outside 0..1."""

    def __init__(self, *, token_mask_ratio: float, draws: Draws) -> None:
        if not 0 <= token_mask_ratio <= 1:
            raise ValueError(f"token_mask_ratio={token_mask_ratio}: must lie between 0 and 1")
        self.ratio = token_mask_ratio
        self.draws = draws

    def sampler(
        self, *, crop_size: tuple[int, int], patch_size: int, crops: int, images: int, seed: int
    ) -> Callable[..., np.ndarray]:
        """Returns a function from a step to its masks, bool [crops (P), images (B of all ranks), N], drawn from `seed`
        and the step alone. With draws=position it takes a slice of the images too, and draws the masks of those."""
        height, width = patch_grid(crop_size, patch_size)
        patches = height * width

        def draw(step: int) -> np.ndarray:
            masks = bernoulli_masks(crops * images, patches, self.ratio, torch_generator(seed, "mask", step))
            return masks.numpy().reshape(crops, images, patches)  # [P * B, N] -> [P, B, N]

        def draw_part(step: int, part: slice = slice(None)) -> np.ndarray:
            slots = np.arange(crops * images).reshape(crops, images)[:, part]
            masks = [
                bernoulli_masks(1, patches, self.ratio, torch_generator(seed, "mask", step, slot)).numpy()
                for slot in slots.flatten().tolist()
            ]
            return np.stack(masks).reshape(*slots.shape, patches)

        return draw if self.draws == "batch" else draw_part
