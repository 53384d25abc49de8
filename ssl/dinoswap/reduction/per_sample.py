"""Every masked crop counts the same: the mean over its tokens, summed over crops, divided by all I = P * B crops.

    sum_i [ sum_{m in crop i} loss_m / count_i ] / I          (crops without a mask are counted in I)

Follows dinov2/loss/ibot_patch_loss.py of facebookresearch/dinov2 @ b8931f7 (`masks_weight`).
"""

import torch
from torch import Tensor


class PerSample:
    """Reduces losses with the same weight for every masked crop."""

    def __call__(self, losses: Tensor, mask: Tensor, masked_indices: Tensor) -> Tensor:
        """Returns a scalar from losses [M], mask bool [P, B, N] and masked_indices [M]: 0, with a graph, if M = 0."""
        crops = mask.shape[0] * mask.shape[1]
        return (losses * masks_weight(mask, masked_indices, losses.dtype)).sum() / crops


def masks_weight(mask: Tensor, masked_indices: Tensor, dtype: torch.dtype) -> Tensor:
    """Returns 1 / (number of masked tokens in the same crop) for each masked token, [M]."""
    crops = mask.flatten(0, 1)  # [P, B, N] -> [I, N]
    weight = 1 / crops.sum(1).clamp(min=1).to(dtype)  # [I]
    return weight[masked_indices // crops.shape[1]]
