"""Every masked crop counts the same: the mean over its tokens, summed over crops, divided by all I = P * B crops.

    sum_i [ sum_{m in crop i} loss_m / count_i ] / I          (crops without a mask are counted in I)

Follows dinov2/loss/ibot_patch_loss.py of facebookresearch/dinov2 @ b8931f7 (`masks_weight`).
"""

from torch import Tensor


class PerSample:
    def __call__(self, losses: Tensor, mask: Tensor, masked_indices: Tensor) -> Tensor:
        """losses [M], mask bool [P, B, N], masked_indices [M] -> scalar; 0, still on the graph, when M = 0."""
        crops = mask.flatten(0, 1)  # [P, B, N] -> [I, N]
        weight = 1 / crops.sum(1).clamp(min=1).to(losses.dtype)  # [I], masks_weight of each crop
        crop_of_token = masked_indices // crops.shape[1]
        return (losses * weight[crop_of_token]).sum() / crops.shape[0]
