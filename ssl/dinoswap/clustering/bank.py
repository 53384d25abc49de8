"""The prototype bank: a linear map with bias from L2-normalised patch tokens to K prototypes.

Student and teacher share it, so it has no EMA copy. It has its own optimiser settings: a fraction of a lr that is not
scaled by the batch size, its own betas, no weight decay, no clipping. Follows the legacy trainer @ 67f6a87.
"""

from typing import NamedTuple

from torch import Tensor, nn
from torch.nn import functional

from dinoswap.objectives.koleo import koleo


class Assigned(NamedTuple):
    """What the bank computes in one call. Its weights are used in its forward pass only, as ranks may hold shards of
    them."""

    teacher: Tensor  # logits [R, K], which train the bank
    student: Tensor  # logits [S, K], which do not
    spread: Tensor  # KoLeo of the prototypes, a scalar


class LinearPrototypeBank(nn.Linear):
    """The prototype bank, trained by the teacher's tokens and by KoLeo alone."""

    def __init__(self, dim: int, prototypes: int, *, lr_multiplier: float, betas: tuple[float, float]) -> None:
        """The initial weights are drawn from N(0, 1), the bias is 0."""
        super().__init__(dim, prototypes)
        nn.init.normal_(self.weight)
        nn.init.zeros_(self.bias)
        self.group_options = {
            "lr_schedule": "prototype_lr",
            "lr_multiplier": lr_multiplier,
            "wd_multiplier": 0.0,
            "betas": betas,
            "clip": False,
        }

    def forward(self, teacher: Tensor, student: Tensor) -> Assigned:  # type: ignore[override]
        """Returns the logits of L2-normalised tokens, teacher [R, dim] and student [S, dim], and KoLeo of the bank. The
        products are in the precision of the weights."""
        teacher, student = (tokens.to(self.weight.dtype) for tokens in (teacher, student))
        return Assigned(
            teacher=super().forward(teacher),
            student=functional.linear(student, self.weight.detach(), self.bias.detach()),
            spread=koleo(self.weight),
        )
