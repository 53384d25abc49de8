"""The prototype bank: a linear map with bias from L2-normalised patch tokens to K prototypes.

Student and teacher share it, so it has no EMA copy. It has an optimiser rule of its own: a fraction of a lr that no
batch size scales, AdamW's betas, no weight decay, no clipping. Follows the legacy trainer @ 67f6a87.
"""

from typing import NamedTuple

from torch import Tensor, nn
from torch.nn import functional

from dinoswap.objectives.koleo import koleo


class Assigned(NamedTuple):
    """What the bank makes of tokens in one call, which is the only way to its weights: they may be shared by ranks."""

    teacher: Tensor  # logits [R, K], which train the bank
    student: Tensor  # logits [S, K], which do not
    spread: Tensor  # KoLeo of the prototypes, a scalar


class LinearPrototypeBank(nn.Linear):
    def __init__(
        self, dim: int, prototypes: int, lr_multiplier: float = 0.5, betas: tuple[float, float] = (0.9, 0.95)
    ) -> None:
        """Weights N(0, 1), bias 0."""
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
        """Unit tokens [R, dim] of the teacher and [S, dim] of the student."""
        return Assigned(
            teacher=super().forward(teacher),
            student=functional.linear(student, self.weight.detach(), self.bias.detach()),
            spread=koleo(self.weight),
        )
