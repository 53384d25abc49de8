"""Clustering at every position, by a separate student pass over the mask-carrying crops without their masks.

The student then reads the same crops as the teacher, at the cost of one more pass over P crops per image. Follows mode
`separate` of the legacy trainer @ 67f6a87, which runs its teacher over the same crops once more.
"""

import torch
from torch import Tensor

from dinoswap.clustering.patch_prototypes import PatchPrototypeLoss
from dinoswap.objectives.base import Context


class Separate(PatchPrototypeLoss):
    """Clustering at every position, by a separate student pass."""

    def select(self, context: Context) -> tuple[Tensor, Tensor, Tensor]:
        """Returns the tokens [S, D] of an unmasked student pass, a mask of ones [P, B, N], and all positions [S]."""
        crops, mask = context.batch.patch_crops, torch.ones_like(context.batch.mask)
        (tokens,) = context.student["backbone"]([crops.flatten(0, 1)])  # [P, B, 3, H, W] -> [P B, 3, H, W]
        return tokens.patch.flatten(0, 1), mask, torch.arange(mask.numel(), device=mask.device)  # [P B, N, D] -> [S, D]
