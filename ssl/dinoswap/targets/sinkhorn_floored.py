"""Sinkhorn-Knopp on Q = exp(logits / temperature - largest of all), with a floor under every mass that divides.

Repeated `iterations` times, each line with the masses of the current Q:

    Q_bk <- Q_bk / (eps + sum_b Q_bk)          (prototypes, over the rows of all ranks)
    Q_bk <- Q_bk / (eps + sum_k Q_bk)          (rows)

Because only one number is subtracted, eps is absolute: a prototype whose mass lies below eps, e^-18.4 of the largest
entry at 1e-8, keeps a small mass, and a row may end with a sum below 1, even with 0 and then no loss. At temperature
0.06 and prototypes of standard deviation 1 that affects many targets. With eps = 0 they are those of `sinkhorn`, to
rounding, but a prototype or row for which exp underflows gives NaN. `sinkhorn` has neither problem.
Follows losses/prototype_loss.py of the legacy trainer @ 67f6a87, bit for bit on one rank. Always float32.
"""

import torch
from torch import Tensor, nn

from dinoswap.distributed import all_reduce_max, all_reduce_sum
from dinoswap.nn.precision import full_precision


class SinkhornFloored(nn.Module):
    """Targets by `iterations` with the floor `eps`. Raises ValueError for fewer than one, or a negative floor."""

    def __init__(self, *, iterations: int, eps: float) -> None:
        super().__init__()
        if iterations < 1:
            raise ValueError(f"iterations={iterations}: Sinkhorn-Knopp needs at least 1 (the legacy trainer has 3)")
        if not eps >= 0:
            raise ValueError(f"eps={eps}: the floor must be 0 or more (the legacy trainer has 1e-8)")
        self.iterations = iterations
        self.eps = eps

    @torch.no_grad()
    def forward(self, logits: Tensor, temperature: float, rows: int | None = None) -> Tensor:
        """Returns the targets [R, K] of teacher logits [R, K], normalised over the rows of all ranks. A rank may have
        no rows. Where only the first `rows` are given, the others are padding, whose targets are 0."""
        with full_precision(logits.device.type):
            targets = logits.to(torch.float32, copy=True).div_(temperature)  # the only tensor beside the logits
            targets[len(logits) if rows is None else rows :] = 0
            q = targets[:rows]
            # On a rank without rows the maximum is -inf, which all_reduce_max replaces by that of another rank
            largest = q.max() if q.numel() else q.new_full((), -torch.inf)
            q.sub_(all_reduce_max(largest)).exp_()
            for _ in range(self.iterations):
                q.div_(all_reduce_sum(q.sum(0, keepdim=True)) + self.eps)
                q.div_(q.sum(1, keepdim=True) + self.eps)
            return targets
