"""KoLeo: keep the CLS tokens of a batch apart from their nearest neighbours.

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
    """x [B, D] -> scalar. With `gather` neighbours are sought among the rows of all ranks."""
    with full_precision(x.device.type):
        x = x.float() if x.dtype in (torch.bfloat16, torch.float16) else x
        x = torch.nn.functional.normalize(x, dim=-1, eps=EPS)
        everyone, first = (gather_rows(x), rank() * len(x)) if gather else (x, 0)
        if len(everyone) < 2:
            return x.sum() * 0
        with torch.no_grad():
            similarity = x @ everyone.T
            similarity[:, first : first + len(x)].fill_diagonal_(-1.0)
            nearest = similarity.argmax(dim=1)
        difference = x - everyone[nearest] + EPS
        duplicate = torch.linalg.vector_norm(difference.detach(), dim=-1, keepdim=True) < DUPLICATE
        difference = torch.where(duplicate, difference.detach(), difference)
        distance = torch.linalg.vector_norm(difference, dim=-1)
        loss: Tensor = -(distance + EPS).log().mean()
        return loss


class KoLeo(Objective):
    def __init__(self, loss_weight: float = 0.1, over_crops: OverCrops = "sum", gather: bool = False) -> None:
        """`over_crops` says what is done with the values of the two global crops. The official code seeks neighbours
        within a rank; with `gather` among all, so that the number of ranks changes nothing."""
        super().__init__(loss_weight)
        self.over_crops = over_crops
        self.gather = gather

    def forward(self, context: Context) -> dict[str, Tensor]:
        per_crop = torch.stack([koleo(crop, self.gather) for crop in context.student_features.global_cls])
        return {"cls": per_crop.mean() if self.over_crops == "mean" else per_crop.sum()}
