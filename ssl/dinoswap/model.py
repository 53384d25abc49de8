"""The one module that returns the loss: student, EMA teacher and objectives.

Everything trainable is in `student`, by name (backbone, dino_head, ...); the teacher holds the same networks under
the same names. Which network sees what is the forward plan's business, what is made of it the objectives'.
"""

import copy
from collections.abc import Mapping
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
        teacher_dropout: bool = False,
    ) -> None:
        """The teacher starts as a copy of the student, less the networks that are an objective's own. With
        `teacher_dropout` it is in training mode whenever the student is: its targets then have dropout too."""
        super().__init__()
        own = {name for objective in objectives.values() for name in objective.networks()}
        self.student = nn.ModuleDict(student)
        copied = {name: copy.deepcopy(network) for name, network in student.items() if name not in own}
        self.teacher = nn.ModuleDict(copied).requires_grad_(False)
        self.objectives = nn.ModuleDict(objectives)
        self.plan = plan
        self.teacher_dropout = teacher_dropout
        self.student_patches = any(objective.reads_student_patches for objective in objectives.values())
        self.teacher_patches = any(objective.reads_teacher_patches for objective in objectives.values())
        self.train()

    def train(self, mode: bool = True) -> "SelfDistillation":
        super().train(mode)
        self.teacher.train(mode and self.teacher_dropout)
        return self

    def forward(self, batch: Batch, hyper: Hyper) -> tuple[Tensor, dict[str, Tensor]]:
        """The weighted loss, and the detached unweighted terms keyed `objective/term`."""
        context = self.context(batch, hyper)
        loss, terms = torch.zeros((), device=batch.mask.device), {}
        for name, objective in self.objectives.items():
            for term, value in objective(context).items():
                weight = cast(Objective, objective).weight(term)
                loss = loss if weight is None else loss + weight * value
                terms[f"{name}/{term}"] = value.detach()
        return loss, terms

    def context(self, batch: Batch, hyper: Hyper) -> Context:
        """Both networks' features of one batch."""
        with torch.no_grad():
            teacher = self.plan.teacher(self.teacher["backbone"], batch, self.teacher_patches)
        student = self.plan.student(self.student["backbone"], batch, self.student_patches)
        return Context(batch, hyper, student, teacher, self.student, self.teacher)

    @torch.no_grad()
    def teacher_targets(self, batch: Batch, hyper: Hyper) -> dict[str, Tensor]:
        """Target distributions [rows, K] by objective, for diagnostics; moves no centre."""
        training = self.training
        self.eval()
        teacher = self.plan.teacher(self.teacher["backbone"], batch, self.teacher_patches)
        context = Context(batch, hyper, teacher, teacher, self.student, self.teacher)
        targets = {name: cast(Objective, o).teacher_targets(context) for name, o in self.objectives.items()}
        self.train(training)
        return {name: value for name, value in targets.items() if value is not None}

    def check_first_batch(self, batch: Batch, hyper: Hyper) -> list[str]:
        """What the objectives that look at a batch before the first step say of it; moves neither weight nor centre.
        Raises ValueError where one of them cannot train."""
        looking = {name: objective for name, objective in self.objectives.items() if objective.checks_first_batch}
        training = self.training
        self.eval()
        context = self.context(batch, hyper)
        said = [
            f"{name}: {cast(Objective, objective).check_first_batch(context)}" for name, objective in looking.items()
        ]
        self.train(training)
        return said


def shapes_of(model: SelfDistillation) -> SelfDistillation:
    """A copy on torch's meta device, without numbers. It is made before ranks shard the model, which cannot be copied
    afterwards."""
    return copy.deepcopy(model).to("meta")
