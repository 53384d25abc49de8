"""Centred and sharpened targets: softmax((logits - centre) / temperature), centre an EMA of the mean logits.

The softmax uses the centre of the batches before this one. Follows dinov2/loss/dino_clstoken_loss.py and
ibot_patch_loss.py of facebookresearch/dinov2 @ b8931f7; there the update is applied at the next call and is lost
at a restart, here it is applied at once and saved, which gives the same numbers.
"""

import torch
from torch import Tensor, nn

from dinoswap.distributed import all_reduce_sum
from dinoswap.nn.row_blocks import row_blocks


class Centering(nn.Module):
    """Targets from centred logits. Raises ValueError for a momentum outside [0, 1)."""

    center: Tensor

    def __init__(self, prototypes: int, *, momentum: float) -> None:
        super().__init__()
        if not 0 <= momentum < 1:
            raise ValueError(f"momentum={momentum}: the centre's EMA momentum must lie in [0, 1)")
        self.momentum = momentum
        self.register_buffer("center", torch.zeros(1, prototypes))

    @torch.no_grad()
    def forward(self, logits: Tensor, temperature: float, rows: int | None = None) -> Tensor:
        """Returns the targets [R, K] of teacher logits [R, K]. In training mode it then updates the centre. Where only
        the first `rows` are given, the others are padding, whose targets are 0."""
        targets = logits.new_empty(logits.shape, dtype=torch.result_type(logits, self.center))
        targets[len(logits) if rows is None else rows :] = 0
        logits, filled = logits[:rows], targets[:rows]
        for block in row_blocks(logits):
            filled[block] = ((logits[block] - self.center) / temperature).softmax(dim=-1)
        if self.training:
            self._move_centre(logits)
        return targets

    def _move_centre(self, logits: Tensor) -> None:
        """Updates the centre by the mean over each rank's rows and then over the ranks that have rows. A non-finite
        mean is ignored, as the step of its batch is skipped."""
        rows = logits.shape[0]
        mean = logits.sum(0, keepdim=True, dtype=self.center.dtype) / max(rows, 1)
        ranks = all_reduce_sum(mean.new_full((), rows > 0))
        mean = all_reduce_sum(mean) / ranks.clamp(min=1)
        updated = self.center * self.momentum + mean * (1 - self.momentum)
        usable = mean.isfinite().all() & (ranks > 0)
        self.center.copy_(torch.where(usable, updated, self.center))
