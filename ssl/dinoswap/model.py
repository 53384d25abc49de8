"""The one module that returns the loss: student, EMA teacher and objectives.

Everything trainable is in `student`, by name (backbone, dino_head, ...); the teacher holds the same networks under
the same names. Which network sees what is the forward plan's business, what is made of it the objectives'.
"""

import copy
from collections.abc import Collection, Mapping
from typing import Protocol, cast

import torch
from torch import Tensor, nn

from dinoswap.objectives.base import Context, Objective
from dinoswap.values import Batch, Features, Hyper


class ForwardPlan(Protocol):
    """How crops become features: an option of the `forward` group."""

    extra_crops: int
    masked_crops: int

    def teacher(self, backbone: nn.Module, batch: Batch, all_patches: bool) -> Features: ...

    def student(self, backbone: nn.Module, batch: Batch, all_patches: bool) -> Features: ...


class SelfDistillation(nn.Module):
    def __init__(
        self,
        student: Mapping[str, nn.Module],
        objectives: Mapping[str, Objective],
        plan: ForwardPlan,
        without_teacher: Collection[str] = (),
    ) -> None:
        """The teacher starts as a copy of the student, less the networks in `without_teacher`."""
        super().__init__()
        self.student = nn.ModuleDict(student)
        copied = {name: copy.deepcopy(network) for name, network in student.items() if name not in without_teacher}
        self.teacher = nn.ModuleDict(copied).requires_grad_(False)
        self.objectives = nn.ModuleDict(objectives)
        self.plan = plan
        self.all_patches = any(objective.reads_all_patches for objective in objectives.values())
        self.train()

    def train(self, mode: bool = True) -> "SelfDistillation":
        """The teacher stays in eval mode whatever the student does."""
        super().train(mode)
        self.teacher.eval()
        return self

    def forward(self, batch: Batch, hyper: Hyper) -> tuple[Tensor, dict[str, Tensor]]:
        """The weighted loss, and the detached unweighted terms keyed `objective/term`."""
        context = self.context(batch, hyper)
        loss, terms = torch.zeros((), device=batch.mask.device), {}
        for name, objective in self.objectives.items():
            for term, value in objective(context).items():
                loss = loss + objective.loss_weight * value
                terms[f"{name}/{term}"] = value.detach()
        return loss, terms

    def context(self, batch: Batch, hyper: Hyper) -> Context:
        """Both networks' features of one batch."""
        with torch.no_grad():
            teacher = self.plan.teacher(self.teacher["backbone"], batch, self.all_patches)
        student = self.plan.student(self.student["backbone"], batch, self.all_patches)
        return Context(batch, hyper, student, teacher, self.student, self.teacher)

    @torch.no_grad()
    def teacher_targets(self, batch: Batch, hyper: Hyper) -> dict[str, Tensor]:
        """Target distributions [rows, K] by objective, for diagnostics; moves no centre."""
        training = self.training
        self.eval()
        teacher = self.plan.teacher(self.teacher["backbone"], batch, self.all_patches)
        context = Context(batch, hyper, teacher, teacher, self.student, self.teacher)
        targets = {name: cast(Objective, o).teacher_targets(context) for name, o in self.objectives.items()}
        self.train(training)
        return {name: value for name, value in targets.items() if value is not None}
