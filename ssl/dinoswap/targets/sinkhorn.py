"""Sinkhorn-Knopp targets: all prototypes have the same mass, and every row is a distribution.

With Q = exp(logits / temperature) the official iteration rescales the rows and columns of Q in place. Only two vectors
change: u (one factor per row) and v (one per prototype), and

    v_k = 1 / sum_b Q_bk u_b,   u_b = (K / rows) / sum_k Q_bk v_k,   targets = (rows / K) u Q v,   at first u_b = 1,

so each iteration is two matrix-vector products and Q is written once. A common factor of u cancels; K / rows keeps it
from growing. Q is held with the largest entry of every row at 1, and u begins with what was divided out, so that
nothing overflows. Follows dinov2/loss/dino_clstoken_loss.py and ibot_patch_loss.py of facebookresearch/dinov2 @
b8931f7; Caron et al., SwAV (arXiv 2006.09882). Always float32.
"""

import torch
from torch import Tensor, nn

from dinoswap.distributed import all_reduce_max, all_reduce_sum
from dinoswap.nn.precision import full_precision
from dinoswap.nn.row_blocks import row_blocks

MIDDLE = 2.0**64
"""A common factor of u: with it the factors of rows far below the largest logit, and all sums, stay within float32."""


class SinkhornKnopp(nn.Module):
    """Targets by `iterations` of Sinkhorn-Knopp. Raises ValueError for fewer than one."""

    def __init__(self, *, iterations: int) -> None:
        super().__init__()
        if iterations < 1:
            raise ValueError(f"iterations={iterations}: Sinkhorn-Knopp needs at least 1 (the official recipe has 3)")
        self.iterations = iterations

    @torch.no_grad()
    def forward(self, logits: Tensor, temperature: float, rows: int | None = None) -> Tensor:
        """Returns the targets [R, K] of teacher logits [R, K], normalised over the rows of all ranks. A rank may have
        no rows. Where only the first `rows` are given, the others are padding, whose targets are 0."""
        targets = logits.new_empty(logits.shape, dtype=torch.float32)
        targets[len(logits) if rows is None else rows :] = 0
        with full_precision(logits.device.type):
            self._fill(targets[:rows], logits[:rows], temperature)
        return targets

    def _fill(self, q: Tensor, logits: Tensor, temperature: float) -> None:
        """Computes the targets in q [rows, K], the one tensor of this size beside the logits."""
        peak = q.new_empty(len(q))
        for rows in row_blocks(q):
            block = logits[rows].float() / temperature
            peak[rows] = block.amax(dim=1)
            q[rows] = block.sub_(peak[rows].unsqueeze(1)).exp_()
        # On a rank without rows the maximum is -inf, which all_reduce_max replaces by that of another rank
        largest = peak.max() if peak.numel() else peak.new_full((), -torch.inf)
        u = (peak - all_reduce_max(largest)).exp_() * MIDDLE
        prototypes_per_row = q.shape[1] / all_reduce_sum(q.new_full((), q.shape[0])).clamp_(min=1)
        least = torch.finfo(q.dtype).tiny * q.shape[1]  # mass of an unused prototype, so that q @ v stays finite
        for _ in range(self.iterations):
            v = 1 / all_reduce_sum(q.T @ u).clamp_(min=least)
            u = prototypes_per_row / (q @ v)
        u = u / prototypes_per_row
        for rows in row_blocks(q):
            q[rows].mul_(v).mul_(u[rows].unsqueeze(1))
