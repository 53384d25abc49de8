"""What every objective is: a module that turns a Context into named, unweighted terms."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from dinoswap.values import Batch, Features, Hyper


@dataclass(frozen=True)
class Context:
    """All that an objective may read. `student` and `teacher` are networks by name (backbone, dino_head, ...)."""

    batch: Batch
    hyper: Hyper
    student_features: Features
    teacher_features: Features
    student: nn.ModuleDict
    teacher: nn.ModuleDict


class Objective(nn.Module):
    """Base class. `forward(context)` returns scalars by term name, each of which is weighted by `weight(term)`."""

    reads_student_patches: ClassVar[bool] = False
    """Whether the student's `Features.patch` is needed. Otherwise its last block works for the masked rows only."""
    reads_teacher_patches: ClassVar[bool] = False
    """The same for the teacher."""
    needs_clean_crops: ClassVar[bool] = False
    """Whether `Batch.clean_crops` is needed."""

    def __init__(self, loss_weight: float) -> None:
        super().__init__()
        if not loss_weight >= 0:
            raise ValueError(f"loss_weight={loss_weight}: must be 0 or more")
        self.loss_weight = loss_weight

    def forward(self, context: Context) -> dict[str, Tensor]:
        raise NotImplementedError

    def weight(self, term: str) -> float:
        """What a term is multiplied with in the loss."""
        return self.loss_weight

    def networks(self) -> Mapping[str, Callable[[int], nn.Module]]:
        """Networks of this objective's own by name, each built from the backbone's width. They are a part of the
        student, trained with it, and have no copy in the teacher."""
        return {}

    def teacher_targets(self, context: Context) -> Tensor | None:
        """The target distributions [rows, K], for diagnostics; None for an objective without prototypes."""
        return None


def cross_entropy(targets: Tensor, logits: Tensor, temperature: float) -> Tensor:
    """-sum_k targets_k log softmax(logits / temperature)_k for each row, in float32 or wider: [..., K] -> [...]."""
    logits = logits.float() if logits.dtype in (torch.bfloat16, torch.float16) else logits
    return -(targets * (logits / temperature).log_softmax(dim=-1)).sum(dim=-1)
