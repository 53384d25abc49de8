"""KoLeo: a loss that keeps each CLS token of a batch away from its k nearest neighbours.

    -mean_{i, j} log(||x_i - x_j + eps|| + eps),  j the k nearest to i, x L2-normalised, summed over the global crops
                                                  (or averaged, as the legacy trainer @ 67f6a87 does)

Follows dinov2/loss/koleo_loss.py of facebookresearch/dinov2 @ b8931f7, where k = 1; Sablayrolles et al.
(arXiv 1806.03198); neighbours and groups dinov3/loss/koleo_loss.py of facebookresearch/dinov3 @ 6876159. Always in
float32 or wider. Differences, where the official code has no usable answer: a batch of one has no neighbour and costs
0, and exact duplicates count in the value but not in the gradient, which has no direction there and a size of 1 / eps.
"""

from typing import Literal

import torch
from torch import Tensor

from dinoswap.distributed import gather_rows, rank
from dinoswap.nn.precision import full_precision
from dinoswap.nn.row_blocks import row_blocks_of
from dinoswap.objectives.base import Context, Objective

OverCrops = Literal["sum", "mean"]
EPS = 1e-8
DUPLICATE = 1e-6  # distance of unit vectors below which float32 cannot tell a direction


def koleo(x: Tensor, gather: bool = False, neighbours: int = 1, group: int | None = None) -> Tensor:
    """Returns the loss of x [B, D], a scalar. With `gather` neighbours are searched among the rows of all ranks, in
    their order, and with `group` only among those of the same `group` consecutive rows."""
    with full_precision(x.device.type):
        x = x.float() if x.dtype in (torch.bfloat16, torch.float16) else x
        x = torch.nn.functional.normalize(x, dim=-1, eps=EPS)
        candidates, first = (gather_rows(x), rank() * len(x)) if gather else (x, 0)
        if len(candidates) < 2:
            return x.sum() * 0
        nearest = _nearest(x, candidates, first, neighbours, group)
        difference = x[:, None] - candidates[nearest] + EPS  # [B, k, D]
        duplicate = torch.linalg.vector_norm(difference.detach(), dim=-1, keepdim=True) < DUPLICATE
        difference = torch.where(duplicate, difference.detach(), difference)
        distance = torch.linalg.vector_norm(difference, dim=-1)
        loss: Tensor = -(distance + EPS).log().mean()
        return loss


@torch.no_grad()
def _nearest(x: Tensor, candidates: Tensor, first: int, neighbours: int, group: int | None) -> Tensor:
    """Returns the indices [B, k] of the candidates [C, D] nearest to each row of x [B, D], which is the candidate
    `first` and so on. Similarities are computed in blocks of rows: those of 65,536 prototypes would take 17 GB."""
    groups = None if group is None else torch.arange(len(candidates), device=x.device) // group
    nearest = []
    for (rows,) in row_blocks_of((len(x), len(candidates)), x.device):
        similarity = x[rows] @ candidates.T
        own = slice(first, first + len(similarity))
        similarity[:, own].fill_diagonal_(-torch.inf)
        if groups is not None:
            similarity.masked_fill_(groups[own, None] != groups, -torch.inf)
        nearest.append(similarity.topk(neighbours, dim=1).indices)
        first += len(similarity)
    return torch.cat(nearest)


class KoLeo(Objective):
    """The KoLeo loss on the CLS tokens of the global crops, with the term `cls`."""

    def __init__(
        self, *, loss_weight: float, over_crops: OverCrops, neighbours: int, gather: bool, group: int | None
    ) -> None:
        """`over_crops` decides whether the values of the two global crops are summed or averaged. DINOv2 searches
        neighbours within a rank; with `gather` they are searched among all ranks, so that the loss does not depend on
        the number of ranks. `group` is a number of images that are consecutive in a step. Raises ValueError for a value
        out of range."""
        super().__init__(loss_weight)
        if neighbours < 1:
            raise ValueError(f"neighbours={neighbours}: must be at least 1")
        if group is not None and group < 2:
            raise ValueError(f"group={group}: must be at least 2 images, or null for all")
        self.over_crops = over_crops
        self.neighbours = neighbours
        self.gather = gather
        self.group = group

    def check_images(self, of_rank: int, of_all_ranks: int) -> None:
        """Raises ValueError where images cannot be grouped, or have too few others to be compared with."""
        images = of_all_ranks if self.gather else of_rank
        if self.group is not None and images % self.group:
            raise ValueError(
                f"objectives.koleo.group={self.group}: must divide the {images} images among which neighbours are "
                "sought: those of a micro-batch, on all ranks with gather=true, else on one; change data.batch_size too"
            )
        others = (self.group or images) - 1
        if others and self.neighbours > others:
            raise ValueError(
                f"objectives.koleo.neighbours={self.neighbours}: an image has {others} others to be compared "
                "with; give fewer, or raise data.batch_size or group, or set gather=true where there are several ranks"
            )

    def forward(self, context: Context) -> dict[str, Tensor]:
        """Returns the scalar term `cls` of the student's global crops."""
        crops = context.student_features.global_cls
        per_crop = torch.stack([koleo(crop, self.gather, self.neighbours, self.group) for crop in crops])
        return {"cls": per_crop.mean() if self.over_crops == "mean" else per_crop.sum()}
