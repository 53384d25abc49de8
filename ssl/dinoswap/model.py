"""The module that computes the loss: student, EMA teacher and objectives.

Everything trainable is in `student`, by name (backbone, dino_head, ...); the teacher holds the same networks under
the same names. The forward plan decides which network sees which crops, the objectives which losses are computed.
"""

import copy
from collections.abc import Mapping
from typing import Protocol, cast

import torch
from torch import Tensor, nn

from dinoswap.nn.compiled import set_compiled
from dinoswap.objectives.base import Context, Objective
from dinoswap.start.base import Start
from dinoswap.values import Batch, Features, Hyper


class ForwardPlan(Protocol):
    """An option of the `forward` group: decides which network sees which crops, and returns the features of both."""

    extra_crops: int
    masked_crops: int

    def teacher(self, backbone: nn.Module, batch: Batch, all_patches: bool) -> Features: ...

    def student(self, backbone: nn.Module, batch: Batch, all_patches: bool) -> Features: ...


class SelfDistillation(nn.Module):
    """Student, teacher and objectives. Calling it returns the weighted loss and the terms to log."""

    def __init__(
        self,
        student: Mapping[str, nn.Module],
        objectives: Mapping[str, Objective],
        plan: ForwardPlan,
        teacher_dropout: bool = False,
        start: Start | None = None,
    ) -> None:
        """The teacher starts as a copy of the student without the objectives' own networks, and `start` then fills the
        networks of both. With `teacher_dropout` it is in training mode whenever the student is, so that its targets
        have dropout too."""
        super().__init__()
        objective_networks = {name for objective in objectives.values() for name in objective.networks()}
        self.student = nn.ModuleDict(student)
        copied = {name: copy.deepcopy(network) for name, network in student.items() if name not in objective_networks}
        self.teacher = nn.ModuleDict(copied).requires_grad_(False)
        self.objectives = nn.ModuleDict(objectives)
        start = start or Start()
        start.fill("student", self.student)
        start.fill("teacher", self.teacher)
        for objective in objectives.values():
            objective.adopt(self.teacher)
        start.fill("objectives", self.objectives)
        self.origin = start.report()
        """A line for each network on what it began with, where it was not drawn by the seed."""
        self.plan = plan
        self.teacher_dropout = teacher_dropout
        self.student_patches = any(objective.reads_student_patches for objective in objectives.values())
        self.teacher_patches = any(objective.reads_teacher_patches for objective in objectives.values())
        self.train()

    def clean_sizes(self, crop_size: int) -> list[int]:
        """Returns the widths of the clean crops that the objectives read, in ascending order, where the mask-carrying
        crops are `crop_size` pixels wide."""
        sizes = [cast(Objective, objective).clean_size(crop_size) for objective in self.objectives.values()]
        return sorted({size for size in sizes if size is not None})

    def train(self, mode: bool = True) -> "SelfDistillation":
        """Sets training or evaluation mode; the teacher is in training mode only with `teacher_dropout`."""
        super().train(mode)
        self.teacher.train(mode and self.teacher_dropout)
        return self

    def begin_step(self, hyper: Hyper) -> None:
        """Lets the objectives change the state that they keep from step to step. Call it before each step."""
        for objective in self.objectives.values():
            cast(Objective, objective).begin_step(self.teacher, hyper)

    def forward(self, batch: Batch, hyper: Hyper) -> tuple[Tensor, dict[str, Tensor]]:
        """Returns the weighted loss, a scalar, and the detached unweighted terms keyed `objective/term`."""
        context = self.context(batch, hyper)
        loss, terms = torch.zeros((), device=batch.mask.device), {}
        for name, objective in self.objectives.items():
            for term, value in objective(context).items():
                weight = cast(Objective, objective).weight(term, hyper)
                loss = loss if weight is None else loss + weight * value
                terms[f"{name}/{term}"] = value.detach()
        return loss, terms

    def context(self, batch: Batch, hyper: Hyper) -> Context:
        """Returns what the objectives read: the features of both networks for one batch, and the networks."""
        with torch.no_grad():
            teacher = self.plan.teacher(self.teacher["backbone"], batch, self.teacher_patches)
        student = self.plan.student(self.student["backbone"], batch, self.student_patches)
        return Context(batch, hyper, student, teacher, self.student, self.teacher)

    @torch.no_grad()
    def teacher_targets(self, batch: Batch, hyper: Hyper) -> dict[str, Tensor]:
        """Returns the target distributions [rows, K] by objective, for diagnostics. No centre is updated."""
        training = self.training
        self.eval()
        teacher = self.plan.teacher(self.teacher["backbone"], batch, self.teacher_patches)
        context = Context(batch, hyper, teacher, teacher, self.student, self.teacher)
        targets = {
            name: cast(Objective, objective).teacher_targets(context) for name, objective in self.objectives.items()
        }
        self.train(training)
        return {name: value for name, value in targets.items() if value is not None}

    def check_first_batch(self, batch: Batch, hyper: Hyper) -> list[str]:
        """Returns a sentence from each objective that checks a batch before the first step. Neither weights nor centres
        change. Raises ValueError where one of them cannot train."""
        checking = {name: objective for name, objective in self.objectives.items() if objective.checks_first_batch}
        training = self.training
        self.eval()
        context = self.context(batch, hyper)
        reports = [
            f"{name}: {cast(Objective, objective).check_first_batch(context)}" for name, objective in checking.items()
        ]
        self.train(training)
        return reports


def shapes_of(model: SelfDistillation) -> SelfDistillation:
    """Returns a copy of the model on torch's meta device, which has shapes and no values, and nothing of which is
    compiled. Call it before the model is sharded over ranks: it cannot be copied afterwards."""
    shapes = copy.deepcopy(model).to("meta")
    set_compiled(shapes, False)
    return shapes
