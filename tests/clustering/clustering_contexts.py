"""Contexts for the clustering objectives: features are given, and the student's unmasked pass is a stub."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from contexts import Softmax, context
from dinoswap.clustering.bank import LinearPrototypeBank
from dinoswap.nn.vit import Tokens
from dinoswap.objectives.base import Context, Reduction
from dinoswap.reduction.per_token import PerToken
from dinoswap.values import Features
from fixtures import LEGACY, Fixture
from options import build_option

FIXTURE = Fixture("losses_legacy.npz", LEGACY)
MASK = FIXTURE["proto/mask_bernoulli"].unsqueeze(0)  # [1, B, N]


class UnmaskedPass(nn.Module):
    """A backbone whose tokens [b, N, D] are known."""

    patch: Tensor

    def __init__(self, patch: Tensor) -> None:
        super().__init__()
        self.register_buffer("patch", patch)

    def forward(self, crops: list[Tensor]) -> list[Tokens]:
        assert [len(entry) for entry in crops] == [len(self.patch)]
        return [Tokens(self.patch[:, 0], None, self.patch)]


def clustering_context(
    student: Tensor, teacher: Tensor, mask: Tensor, bank: nn.Module, temperature: float = 0.06
) -> Context:
    """Tokens [P, B, N, D] of both networks, those of the student masked or unmasked; mask bool [P, B, N]."""
    base = context(mask=mask, temperature=temperature)
    crops = torch.empty(len(mask), mask.shape[1], 3, 0, 0)
    batch = replace(base.batch, **{"extra_crops" if len(mask) == 1 else "global_crops": crops})
    return replace(
        base,
        batch=batch,
        student_features=Features(student[..., 0, :], student[:0, :, 0], student[mask], student),
        teacher_features=Features(teacher[..., 0, :], teacher[:0, :, 0], teacher[mask], teacher),
        student=nn.ModuleDict({"prototype_bank": bank, "backbone": UnmaskedPass(student.flatten(0, 1))}),
    )


def clustering(option: str, targets: nn.Module, reduction: Reduction, **changes: Any) -> Any:
    """One of the group, as its YAML describes it but for the `changes`."""
    return build_option(f"clustering/{option}", targets=targets, reduction=reduction, **changes)


def new_bank(dim: int, prototypes: int) -> LinearPrototypeBank:
    """One with the initial weights and the optimiser's settings of an objective's."""
    bank: LinearPrototypeBank = clustering("masked", Softmax(), PerToken(), prototypes=prototypes).bank(dim)
    return bank


def legacy_bank() -> LinearPrototypeBank:
    weight = FIXTURE["proto/bank_weight"]
    bank = new_bank(weight.shape[1], weight.shape[0])
    bank.load_state_dict({"weight": weight, "bias": FIXTURE["proto/bank_bias"]})
    return bank


def legacy_context(mask: Tensor = MASK, bank: nn.Module | None = None) -> tuple[Context, Tensor, Tensor]:
    """The fixture's, with its student and teacher tokens [1, B, N, D], both of which require a gradient."""
    student, teacher = (FIXTURE[f"proto/{name}"].unsqueeze(0).requires_grad_() for name in ("student", "teacher"))
    return clustering_context(student, teacher, mask, bank or legacy_bank()), student, teacher
