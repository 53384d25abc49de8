"""KoLeo: a loss that keeps each CLS token of a batch away from its nearest neighbour.

    -mean_i log(||x_i - x_nn(i) + eps|| + eps),  x L2-normalised, summed over the global crops (or averaged,
                                                  as the legacy trainer @ 67f6a87 does)

Follows dinov2/loss/koleo_loss.py of facebookresearch/dinov2 @ b8931f7; Sablayrolles et al. (arXiv 1806.03198). Always
in float32 or wider. Differences, where the official code has no usable answer: a batch of one has no neighbour and
costs 0, and exact duplicates count in the value but not in the gradient, which has no direction there and a size of 1
/ eps.
"""

from typing import Literal

import torch
from torch import Tensor

from dinoswap.distributed import gather_rows, rank
from dinoswap.nn.precision import full_precision
from dinoswap.objectives.base import Context, Objective

OverCrops = Literal["sum", "mean"]
EPS = 1e-8
DUPLICATE = 1e-6  # distance of unit vectors below which float32 cannot tell a direction


def koleo(x: Tensor, gather: bool = False) -> Tensor:
    """Returns the loss of x [B, D], a scalar. With `gather` neighbours are searched among the rows of all ranks."""
    with full_precision(x.device.type):
        x = x.float() if x.dtype in (torch.bfloat16, torch.float16) else x
        x = torch.nn.functional.normalize(x, dim=-1, eps=EPS)
        candidates, first = (gather_rows(x), rank() * len(x)) if gather else (x, 0)
        if len(candidates) < 2:
            return x.sum() * 0
        with torch.no_grad():
            similarity = x @ candidates.T
            similarity[:, first : first + len(x)].fill_diagonal_(-1.0)
            nearest = similarity.argmax(dim=1)
        difference = x - candidates[nearest] + EPS
        duplicate = torch.linalg.vector_norm(difference.detach(), dim=-1, keepdim=True) < DUPLICATE
        difference = torch.where(duplicate, difference.detach(), difference)
        distance = torch.linalg.vector_norm(difference, dim=-1)
        loss: Tensor = -(distance + EPS).log().mean()
        return loss


class KoLeo(Objective):
    """The KoLeo loss on the CLS tokens of the global crops, with the term `cls`."""

    def __init__(self, *, loss_weight: float, over_crops: OverCrops, gather: bool) -> None:
        """`over_crops` decides whether the values of the two global crops are summed or averaged. The official code
        searches neighbours within a rank; with `gather` they are searched among all ranks, so that the loss does not
        depend on the number of ranks."""
        super().__init__(loss_weight)
        self.over_crops = over_crops
        self.gather = gather

    def forward(self, context: Context) -> dict[str, Tensor]:
        """Returns the scalar term `cls` of the student's global crops."""
        per_crop = torch.stack([koleo(crop, self.gather) for crop in context.student_features.global_cls])
        return {"cls": per_crop.mean() if self.over_crops == "mean" else per_crop.sum()}
