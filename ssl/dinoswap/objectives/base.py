"""The base class of all objectives: a module that computes named, unweighted terms from a Context."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from dinoswap.objectives.cross_entropy import cross_entropy as cross_entropy  # for options of other groups
from dinoswap.optim.schedules import Schedule
from dinoswap.values import Batch, Features, Hyper

Reduction = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(losses [M], mask [P, B, N], masked_indices [M]) -> scalar"""


@dataclass(frozen=True)
class Context:
    """All that an objective may read. `student` and `teacher` hold networks by name (backbone, dino_head, ...)."""

    batch: Batch
    hyper: Hyper
    student_features: Features
    teacher_features: Features
    student: nn.ModuleDict
    teacher: nn.ModuleDict


@dataclass(frozen=True)
class TokenComparison:
    """Tokens of a frozen teacher and projected tokens of the student for the same images: float32 [n, N, D] each."""

    teacher: Tensor
    student: Tensor  # of the unmasked images
    masked: Tensor  # of the images under a mask


class Objective(nn.Module):
    """Base class. `forward(context)` returns scalars by term name; `weight(term, hyper)` is the factor of each."""

    reads_student_patches: ClassVar[bool] = False
    """Whether the student's `Features.patch` is needed. If not, its last block computes the masked rows only."""
    reads_teacher_patches: ClassVar[bool] = False
    """Whether the teacher's `Features.patch` is needed. If not, its last block computes the masked rows only."""
    checks_first_batch: ClassVar[bool] = False
    """Whether `check_first_batch` is called before the first step."""

    def __init__(self, loss_weight: float) -> None:
        super().__init__()
        if not loss_weight >= 0:
            raise ValueError(f"loss_weight={loss_weight}: must be 0 or more")
        self.loss_weight = loss_weight

    def forward(self, context: Context) -> dict[str, Tensor]:
        """Returns the unweighted terms, scalars by name."""
        raise NotImplementedError

    def weight(self, term: str, hyper: Hyper) -> float | None:
        """Returns the factor of a term in the loss at a step, None for a term that is only logged. `hyper` holds the
        values of the objective's own schedules too."""
        return self.loss_weight

    def schedules(self, total: int) -> Mapping[str, Schedule]:
        """Returns the objective's own schedules over a run of `total` steps, by name; their values at a step are in
        `Context.hyper`. Raises ValueError where one does not fit into the run."""
        return {}

    def clean_size(self, crop_size: int) -> int | None:
        """Returns the width of the `Batch.clean_crops` that are read where the mask-carrying crops are `crop_size`
        pixels wide, None where none are."""
        return None

    def networks(self) -> Mapping[str, Callable[[int], nn.Module]]:
        """Returns the networks that belong to this objective, by name: functions that build one for the width of the
        backbone. They are trained as a part of the student and have no copy in the teacher."""
        return {}

    def frozen_models(self) -> Sequence[nn.Module]:
        """Returns the networks that are never trained."""
        return self.inference_only_models()

    def inference_only_models(self) -> Sequence[nn.Module]:
        """Returns those of the frozen networks that are to be sharded where the student is."""
        return ()

    def adopt(self, teacher: nn.ModuleDict) -> None:
        """Is called once with the networks of the EMA teacher, before anything is moved or sharded: an objective that
        keeps a copy of one makes it here, as a submodule, so that it is in the checkpoint."""

    def begin_step(self, teacher: nn.ModuleDict, hyper: Hyper) -> None:
        """Is called before each step with the networks of the EMA teacher. A step may be repeated after a resume, so
        calling it twice must not change more than calling it once."""

    def teacher_targets(self, context: Context) -> Tensor | None:
        """Returns the target distributions [rows, K] for diagnostics, None for an objective without prototypes."""
        return None

    def identity(self) -> Mapping[str, str]:
        """Returns what decides the result beside the config, such as the weights of a frozen teacher. A checkpoint with
        another identity is refused."""
        return {}

    def check_images(self, of_rank: int, of_all_ranks: int) -> None:
        """Raises ValueError, with the full key, where the loss is not defined for micro-batches of so many images, on
        one rank and on all of them."""

    def notices(self) -> Sequence[str]:
        """Returns sentences that a user should read before the run starts."""
        return ()

    def check_first_batch(self, context: Context) -> str:
        """Returns a sentence on a batch that is not trained on. Raises ValueError where the objective could not learn
        anything."""
        raise NotImplementedError

    def compare_tokens(self, student: nn.ModuleDict, images: Tensor, mask: Tensor) -> TokenComparison | None:
        """Returns tokens for pictures, of normalised images [n, 3, H, W] and a mask bool [n, N]. Returns None for an
        objective without a frozen teacher."""
        return None
