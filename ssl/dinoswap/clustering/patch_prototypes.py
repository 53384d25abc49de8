"""The base class of patch-prototype clustering. Its options differ in the student tokens that the loss is taken on.

With x = token / |token|, logits = bank(x), and targets q of the `targets` group over ALL P B N teacher tokens,

    clustering     reduction over the selected tokens of CE(q, softmax(logits of student / student_temp))
    arrangement    mean over all teacher tokens of CE(q, softmax(logits of teacher / teacher_temp))
    koleo_proto    KoLeo of the bank's weight: prototypes apart from their nearest neighbour

The first trains the student only (the bank in it is detached), the other two the bank only (the teacher has no
gradient). So one backward and one optimiser do what the legacy trainer @ 67f6a87 does by a step of the bank, then one
of the student against the bank before its step, and by dropping the bank's gradient of the student's loss. Follows its
losses/prototype_loss.py; there a batch without selected tokens has no loss at all, here only the first term is 0.
"""

from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

from dinoswap.clustering.bank import Assigned, LinearPrototypeBank
from dinoswap.objectives.base import Context, Objective, Reduction, cross_entropy
from dinoswap.values import Hyper

BANK = "prototype_bank"


class PatchPrototypeLoss(Objective):
    """The loss with the terms `clustering`, `arrangement` and `koleo_proto`. An option implements `select`."""

    reads_teacher_patches = True

    def __init__(
        self,
        targets: nn.Module,
        reduction: Reduction,
        *,
        loss_weight: float,
        prototypes: int,
        student_temp: float,
        arrangement_weight: float,
        koleo_proto_weight: float,
        bank_lr_multiplier: float,
        bank_betas: tuple[float, float],
    ) -> None:
        """`targets` maps teacher logits [P B N, K] and a temperature to distributions; `loss_weight` is that of the
        clustering term; the bank's lr is `bank_lr_multiplier` times the schedule prototype_lr. Raises ValueError for a
        number out of range."""
        super().__init__(loss_weight)
        if prototypes < 1:
            raise ValueError(f"prototypes={prototypes}: at least 1 is needed")
        if not student_temp > 0:
            raise ValueError(f"student_temp={student_temp}: a temperature must be above 0")
        if not all(0 <= beta < 1 for beta in bank_betas):
            raise ValueError(f"bank_betas={list(bank_betas)}: AdamW's betas must lie in [0, 1); 0.9 and 0.95 are usual")
        _check_factors(
            arrangement_weight=arrangement_weight,
            koleo_proto_weight=koleo_proto_weight,
            bank_lr_multiplier=bank_lr_multiplier,
        )
        self.targets = targets
        self.reduction = reduction
        self.student_temp = student_temp
        self.weights = {
            "clustering": loss_weight,
            "arrangement": arrangement_weight,
            "koleo_proto": koleo_proto_weight,
        }
        self.bank = partial(
            LinearPrototypeBank, prototypes=prototypes, lr_multiplier=bank_lr_multiplier, betas=bank_betas
        )

    def weight(self, term: str, hyper: Hyper) -> float:
        """Returns the factor of a term in the loss."""
        return self.weights[term]

    def networks(self) -> Mapping[str, Callable[[int], nn.Module]]:
        """Returns the prototype bank, which is a part of the student."""
        return {BANK: self.bank}

    def select(self, context: Context) -> tuple[Tensor, Tensor, Tensor]:
        """Returns the student's tokens of the clustering term [S, D], their mask bool [P, B, N], and the flat positions
        where it is True, int64 [S]."""
        raise NotImplementedError

    def teacher_targets(self, context: Context) -> Tensor:
        """Returns the target distributions [P B N, K] of all teacher tokens."""
        teacher = self._teacher_tokens(context)
        assigned: Assigned = context.student[BANK](teacher, teacher[:0])
        targets: Tensor = self.targets(assigned.teacher, context.hyper["teacher_temp"])
        return targets

    def forward(self, context: Context) -> dict[str, Tensor]:
        """Returns the scalar terms `clustering`, `arrangement` and `koleo_proto`."""
        temperature = context.hyper["teacher_temp"]
        tokens, mask, positions = self.select(context)
        assigned: Assigned = context.student[BANK](self._teacher_tokens(context), _unit(tokens))
        targets = self.targets(assigned.teacher.detach(), temperature)  # [P B N, K]
        losses = cross_entropy(targets[positions], assigned.student, self.student_temp)  # [S]
        return {
            "clustering": self.reduction(losses, mask, positions),
            "arrangement": cross_entropy(targets, assigned.teacher, temperature).mean(),
            "koleo_proto": assigned.spread,
        }

    def _teacher_tokens(self, context: Context) -> Tensor:
        """Returns the teacher's patch tokens of all crops as unit vectors, [P B N, D], without gradient."""
        assert context.teacher_features.patch is not None
        return _unit(context.teacher_features.patch.detach().flatten(0, 2))  # [P, B, N, D] -> [P B N, D]


def _unit(tokens: Tensor) -> Tensor:
    """Returns tokens L2-normalised, in float32 or wider."""
    tokens = tokens.float() if tokens.dtype in (torch.bfloat16, torch.float16) else tokens
    return functional.normalize(tokens, dim=-1)


def _check_factors(**factors: float) -> None:
    """Raises ValueError for a factor that is negative or NaN."""
    for name, value in factors.items():
        if not value >= 0:
            raise ValueError(f"{name}={value}: must be 0 or more")
