"""Gram anchoring: the similarities between the student's patch tokens stay near those between a teacher's.

With X [N, D] the tokens of a crop after the final norm, each L2-normalised where `normalise` says so,

    loss = mean over crops and entries of (X_s X_s^T - X_t X_t^T)^2

The student's tokens are those of its mask-carrying crops under their masks, the teacher's those of whole crops. Only
similarities are compared, so the tokens may go on changing together. Without `per_image` one matrix holds the tokens of
all crops of a rank, whose size is the square of their number. Follows dinov3/loss/gram_loss.py and
dinov3/train/ssl_meta_arch.py of facebookresearch/dinov3 @ 6876159; Siméoni et al. (arXiv 2508.10104).
"""

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from dinoswap.nn.precision import full_precision
from dinoswap.objectives.base import Context, Objective
from dinoswap.optim.schedules import Phases, Schedule
from dinoswap.values import Batch, Hyper

Which = Literal["all", "masked", "unmasked"]
Negatives = Literal["keep", "clear_teacher", "clear"]
WEIGHT = "gram_weight"
PARTS: tuple[Which, ...] = ("masked", "unmasked")
LARGEST = 2**15
"""Tokens of the largest matrix: 4 GiB each, of which backward needs several."""


def gram_loss(student: Tensor, teacher: Tensor, *, normalise: bool, negatives: Negatives) -> Tensor:
    """Returns the loss, a scalar in float32 or wider, of tokens [matrices, tokens, D] each. With `negatives` clear, a
    negative similarity counts as 0 on both sides, without a gradient; with clear_teacher on the teacher's alone."""
    with full_precision(student.device.type):
        similarities = []
        for tokens in (student, teacher.detach()):
            wide = tokens.float() if tokens.dtype in (torch.bfloat16, torch.float16) else tokens
            wide = functional.normalize(wide, dim=-1) if normalise else wide
            similarities.append(wide @ wide.transpose(-1, -2))
        of_student, of_teacher = similarities
        if negatives != "keep":
            of_teacher = of_teacher.clamp(min=0)
        if negatives == "clear":
            of_student = of_student.masked_fill(of_student < 0, 0)
        loss: Tensor = functional.mse_loss(of_student, of_teacher)
        return loss


def selected(which: Which, tokens: Tensor, batch: Batch) -> Tensor:
    """Returns all tokens [P, B, N, D], or those under or outside the student's masks, as rows [R, D]."""
    rows = tokens.flatten(0, 2)  # [P, B, N, D] -> [P B N, D]
    if which == "all":
        return rows
    return rows[batch.masked_indices if which == "masked" else batch.visible_indices]


class GramAnchoring(Objective):
    """The objective with the term `matrix`. An option implements `teacher_tokens`."""

    reads_student_patches = True

    def __init__(
        self,
        *,
        loss_weight: float,
        weight_schedule: Phases,
        normalise: bool,
        per_image: bool,
        tokens: Which,
        negatives: Negatives,
        stats: bool,
    ) -> None:
        """`weight_schedule` is a factor of `loss_weight` by step; a step where it is 0 computes nothing and logs 0.
        `tokens` says which ones are compared: all, or those under or outside the student's mask. With `stats` the loss
        of all crops together is logged for both of these too, also where the weight is 0. Raises ValueError for values
        that contradict each other."""
        super().__init__(loss_weight)
        for name in ("start", "peak", "end"):
            if not getattr(weight_schedule, name) >= 0:
                raise ValueError(f"weight_schedule.{name}={getattr(weight_schedule, name)}: must be 0 or more")
        if per_image and tokens != "all":
            raise ValueError(
                f"tokens={tokens}: crops have different numbers of them, so that no matrix is that of a crop; set "
                "per_image=false, or tokens=all"
            )
        self.weight_schedule = weight_schedule
        self.normalise, self.per_image, self.tokens, self.negatives = normalise, per_image, tokens, negatives
        self.stats = stats

    def schedules(self, total: int) -> Mapping[str, Schedule]:
        """Returns the weight by step."""
        return {WEIGHT: self.weight_schedule.schedule(total, "objectives.gram.weight_schedule")}

    def weight(self, term: str, hyper: Hyper) -> float | None:
        """Returns the factor of `matrix` at the step, None for statistics."""
        return self.loss_weight * hyper[WEIGHT] if term == "matrix" else None

    def teacher_tokens(self, context: Context) -> Tensor:
        """Returns the teacher's tokens [P, B, N, D] at the places of the student's."""
        raise NotImplementedError

    def forward(self, context: Context) -> dict[str, Tensor]:
        """Returns the scalar term `matrix` and, with `stats`, `masked` and `unmasked`, which are only logged."""
        student = context.student_features.patch
        assert student is not None  # reads_student_patches
        if not (self.stats or self.loss_weight * context.hyper[WEIGHT]):
            return {"matrix": student.sum() * 0}
        teacher = self.teacher_tokens(context)
        if self.per_image:
            terms = {"matrix": self._loss(student.flatten(0, 1), teacher.flatten(0, 1))}  # [P, B, N, D] -> [P B, N, D]
        else:
            terms = {"matrix": self._joint_loss(self.tokens, student, teacher, context.batch)}
        if self.stats:
            with torch.no_grad():
                terms |= {which: self._joint_loss(which, student, teacher, context.batch) for which in PARTS}
        return terms

    def _loss(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Returns the Gram loss between patch tokens [n, N, D] of student and teacher with this objective's options, a
        scalar."""
        return gram_loss(student, teacher, normalise=self.normalise, negatives=self.negatives)

    def _joint_loss(self, which: Which, student: Tensor, teacher: Tensor, batch: Batch) -> Tensor:
        """Returns the loss of one matrix of the tokens of all crops [P, B, N, D], or of a part of them. Raises
        ValueError for a matrix that is too large."""
        student, teacher = (selected(which, tokens, batch) for tokens in (student, teacher))
        if len(student) > LARGEST:
            raise ValueError(
                f"objectives.gram.per_image=false: a matrix of {len(student)} x {len(student)} tokens is too large; "
                "set per_image=true, with stats=false, or use smaller micro-batches (trainer.accumulate)"
            )
        if not len(student):
            return student.sum() * 0
        return self._loss(student[None], teacher[None])
