"""Every masked crop counts the same: the mean over its tokens, summed over crops, divided by all I = P * B crops.

    sum_i [ sum_{m in crop i} loss_m / count_i ] / I          (crops without a mask are counted in I)

Follows dinov2/loss/ibot_patch_loss.py of facebookresearch/dinov2 @ b8931f7 (`masks_weight`).
"""

import torch
from torch import Tensor


class PerSample:
    def __call__(self, losses: Tensor, mask: Tensor, masked_indices: Tensor) -> Tensor:
        """losses [M], mask bool [P, B, N], masked_indices [M] -> scalar; 0, still on the graph, when M = 0."""
        crops = mask.shape[0] * mask.shape[1]
        return (losses * masks_weight(mask, masked_indices, losses.dtype)).sum() / crops


def masks_weight(mask: Tensor, masked_indices: Tensor, dtype: torch.dtype) -> Tensor:
    """1 / (masked tokens of the token's crop) for each masked token, [M]."""
    crops = mask.flatten(0, 1)  # [P, B, N] -> [I, N]
    weight = 1 / crops.sum(1).clamp(min=1).to(dtype)  # [I]
    return weight[masked_indices // crops.shape[1]]
