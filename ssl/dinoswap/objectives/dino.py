"""DINO: the student's CLS token of one view predicts the teacher's distribution for a view.

Student and teacher see the two global crops, the student the L local crops too. Every pair of a student's and a
teacher's view counts the same; `global_pairs` says whether a global crop is paired with itself as well. With g = 2
global pairs of different crops, or 4 in all, and l = max(2 L, 1) local ones:

    local  = sum over local crops and teacher views of mean_b CE / (g + l)
    global = sum over the global pairs of mean_b CE / (g + l)

In the loss the local term is multiplied by `local_weight` too, a value by schedule, for which nothing makes up.
Follows dinov2/train/ssl_meta_arch.py and loss/dino_clstoken_loss.py of facebookresearch/dinov2 @ b8931f7; Caron et al.
(arXiv 2104.14294); all pairs and the local weight dinov3/train/ssl_meta_arch.py of facebookresearch/dinov3 @ 6876159.
The official code takes one cross-entropy per pair; targets of the teacher views are added first here, as the
cross-entropy is linear in them.
"""

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor, nn

from dinoswap.objectives.base import Context, Objective
from dinoswap.objectives.cross_entropy import cross_entropy_of_views
from dinoswap.optim.schedules import Phases, Schedule
from dinoswap.values import Hyper

GlobalPairs = Literal["cross", "all"]
TEACHER_VIEWS = 2
LOCAL_WEIGHT = "dino_local_weight"


class DINO(Objective):
    """The DINO loss on CLS tokens, with the terms `global` and, where there are local crops, `local`."""

    def __init__(
        self,
        targets: nn.Module,
        *,
        head: str,
        loss_weight: float,
        student_temp: float,
        global_pairs: GlobalPairs,
        local_weight: Phases,
    ) -> None:
        """`targets` maps teacher logits [2 B, K] and a temperature to distributions; `head` names the network. Raises
        ValueError for a temperature that is not above 0 and a negative weight."""
        super().__init__(loss_weight)
        if not student_temp > 0:
            raise ValueError(f"student_temp={student_temp}: a temperature must be above 0")
        for name in ("start", "peak", "end"):
            if not getattr(local_weight, name) >= 0:
                raise ValueError(f"local_weight.{name}={getattr(local_weight, name)}: must be 0 or more")
        self.targets = targets
        self.head = head
        self.student_temp = student_temp
        self.global_pairs = global_pairs
        self.local_weight = local_weight

    def schedules(self, total: int) -> Mapping[str, Schedule]:
        """Returns the weight of the local term."""
        return {LOCAL_WEIGHT: self.local_weight.schedule(total, "objectives.dino.local_weight")}

    def weight(self, term: str, hyper: Hyper) -> float:
        """Returns the loss weight, times the local weight of the step for the term `local`."""
        return self.loss_weight * hyper[LOCAL_WEIGHT] if term == "local" else self.loss_weight

    def teacher_targets(self, context: Context) -> Tensor:
        """Returns the target distributions [2 B, K] of the teacher's global crops."""
        cls = context.teacher_features.global_cls.flatten(0, 1)  # [2, B, D] -> [2 B, D]
        targets: Tensor = self.targets(context.teacher[self.head](cls), context.hyper["teacher_temp"])
        return targets

    def forward(self, context: Context) -> dict[str, Tensor]:
        """Returns the scalar terms `global` and, where there are local crops, `local`."""
        features, head = context.student_features, context.student[self.head]
        shape = features.global_cls.shape[:2]
        targets = torch.unflatten(self.teacher_targets(context).detach(), 0, shape)  # [2 B, K] -> [2, B, K]
        every = targets.sum(0)  # [B, K], for crops that are paired with both views
        views_of_global = TEACHER_VIEWS if self.global_pairs == "all" else TEACHER_VIEWS - 1
        global_pairs, local_pairs = 2 * views_of_global, TEACHER_VIEWS * features.local_cls.shape[0]
        pairs = global_pairs + max(local_pairs, 1)

        views = torch.cat([features.global_cls, features.local_cls])  # [2 + L, B, D]
        student = head(views.flatten(0, 1)).unflatten(0, views.shape[:2])  # [(2 + L) B, D] -> [2 + L, B, K]
        of_views = [(2, every if self.global_pairs == "all" else targets.flip(0)), (len(views) - 2, every)]
        losses = cross_entropy_of_views(of_views, student, self.student_temp, overwrite_logits=True)  # [2 + L, B]
        terms = {"global": losses[:2].mean() * 2 / pairs}
        if local_pairs:
            terms["local"] = losses[2:].mean(1).sum() / pairs
        return terms
