"""Sinkhorn-Knopp targets: prototypes used equally, every row a distribution.

With Q = exp(logits / temperature) the official iteration rescales the rows and columns of Q in place. Only two vectors
change: u (one factor per row) and v (one per prototype), and

    v_k = 1 / (K * sum_b Q_bk u_b),   u_b = 1 / (rows * sum_k Q_bk v_k),   targets = rows * u Q v,

so each iteration is two matrix-vector products and Q is written once. The maximum is subtracted first, which cancels.
Follows dinov2/loss/dino_clstoken_loss.py and ibot_patch_loss.py of facebookresearch/dinov2 @ b8931f7; Caron et al.,
SwAV (arXiv 2006.09882). Always float32.
"""

import torch
from torch import Tensor, nn

from dinoswap.distributed import all_reduce_max, all_reduce_sum


class SinkhornKnopp(nn.Module):
    def __init__(self, iterations: int = 3) -> None:
        super().__init__()
        if iterations < 1:
            raise ValueError(f"iterations={iterations}: Sinkhorn-Knopp needs at least 1 (the official recipe has 3)")
        self.iterations = iterations

    @torch.no_grad()
    def forward(self, logits: Tensor, temperature: float) -> Tensor:
        """Teacher logits [rows, K] -> targets [rows, K]. Normalised over the rows of all ranks, of which this rank
        may hold none."""
        logits = logits.float() / temperature
        # On a rank without rows the maximum is -inf, which the other ranks' overrule
        largest = logits.max() if logits.numel() else logits.new_tensor(-torch.inf)
        q = (logits - all_reduce_max(largest)).exp_()
        rows = all_reduce_sum(q.new_tensor(float(q.shape[0]))).clamp_(min=1)
        tiny = torch.finfo(q.dtype).tiny
        u = q.new_ones(q.shape[0])
        for _ in range(self.iterations):
            v = 1 / (all_reduce_sum(q.T @ u) * q.shape[1]).clamp_(min=tiny)
            u = 1 / ((q @ v) * rows).clamp_(min=tiny)
        return q.mul_(v).mul_((u * rows).unsqueeze(1))
