"""What every objective is: a module that turns a Context into named, unweighted terms."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from dinoswap.objectives.cross_entropy import cross_entropy as cross_entropy  # for options of other groups
from dinoswap.values import Batch, Features, Hyper

Reduction = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(losses [M], mask [P, B, N], masked_indices [M]) -> scalar"""


@dataclass(frozen=True)
class Context:
    """All that an objective may read. `student` and `teacher` are networks by name (backbone, dino_head, ...)."""

    batch: Batch
    hyper: Hyper
    student_features: Features
    teacher_features: Features
    student: nn.ModuleDict
    teacher: nn.ModuleDict


@dataclass(frozen=True)
class TokenComparison:
    """Tokens of a frozen teacher and what the student makes of the same images, in one space: float32 [n, N, D]."""

    teacher: Tensor
    student: Tensor  # of the images as they are
    masked: Tensor  # of the images under a mask


class Objective(nn.Module):
    """Base class. `forward(context)` returns scalars by term name, each of which is weighted by `weight(term)`."""

    reads_student_patches: ClassVar[bool] = False
    """Whether the student's `Features.patch` is needed. Otherwise its last block works for the masked rows only."""
    reads_teacher_patches: ClassVar[bool] = False
    """The same for the teacher."""
    needs_clean_crops: ClassVar[bool] = False
    """Whether `Batch.clean_crops` is needed."""
    checks_first_batch: ClassVar[bool] = False
    """Whether `check_first_batch` is called before the first step."""

    def __init__(self, loss_weight: float) -> None:
        super().__init__()
        if not loss_weight >= 0:
            raise ValueError(f"loss_weight={loss_weight}: must be 0 or more")
        self.loss_weight = loss_weight

    def forward(self, context: Context) -> dict[str, Tensor]:
        raise NotImplementedError

    def weight(self, term: str) -> float | None:
        """What a term is multiplied with in the loss; None for one that is logged only."""
        return self.loss_weight

    def networks(self) -> Mapping[str, Callable[[int], nn.Module]]:
        """Networks of this objective's own by name, each built from the backbone's width. They are a part of the
        student, trained with it, and have no copy in the teacher."""
        return {}

    def inference_only_models(self) -> Sequence[nn.Module]:
        """Frozen networks, outside the module tree, that are to be cut into shares where the student is."""
        return ()

    def teacher_targets(self, context: Context) -> Tensor | None:
        """The target distributions [rows, K], for diagnostics; None for an objective without prototypes."""
        return None

    def identity(self) -> Mapping[str, str]:
        """What decides the result beside the config: a checkpoint made with another one is refused."""
        return {}

    def notices(self) -> Sequence[str]:
        """What a user has to know before the run starts, in sentences."""
        return ()

    def check_first_batch(self, context: Context) -> str:
        """One sentence on a batch that nothing is learnt from. Raises ValueError where training would be in vain."""
        raise NotImplementedError

    def compare_tokens(self, student: nn.ModuleDict, images: Tensor, mask: Tensor) -> TokenComparison | None:
        """For pictures, of normalised images [n, 3, H, W] and a mask bool [n, N]; None where no teacher is frozen."""
        return None
