"""DINO: the student's CLS token of one view predicts the teacher's distribution for another view.

All 2 L + 2 student-teacher pairs of different crops count the same. With g = 2 and l = max(2 L, 1):

    local  = sum over local crops and teacher views of mean_b CE / (g + l)
    global = mean over the two cross pairs and b of CE * g / (g + l)

Follows dinov2/train/ssl_meta_arch.py and loss/dino_clstoken_loss.py of facebookresearch/dinov2 @ b8931f7; Caron et al.
(arXiv 2104.14294). The official code takes one cross-entropy per pair; targets of the two teacher views are added first
here, as the cross-entropy is linear in them.
"""

import torch
from torch import Tensor, nn

from dinoswap.objectives.base import Context, Objective
from dinoswap.objectives.cross_entropy import cross_entropy

GLOBAL_PAIRS = 2


class DINO(Objective):
    """The DINO loss on CLS tokens, with the terms `global` and, where there are local crops, `local`."""

    def __init__(self, targets: nn.Module, *, head: str, loss_weight: float, student_temp: float) -> None:
        """`targets` maps teacher logits [2 B, K] and a temperature to distributions; `head` names the network. Raises
        ValueError where the temperature is not above 0."""
        super().__init__(loss_weight)
        if not student_temp > 0:
            raise ValueError(f"student_temp={student_temp}: a temperature must be above 0")
        self.targets = targets
        self.head = head
        self.student_temp = student_temp

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
        local_pairs = GLOBAL_PAIRS * features.local_cls.shape[0]
        pairs = GLOBAL_PAIRS + max(local_pairs, 1)

        student = head(features.global_cls.flatten(0, 1)).unflatten(0, shape)  # [2, B, D] -> [2 B, D] -> [2, B, K]
        cross = cross_entropy(targets.flip(0), student, self.student_temp, overwrite_logits=True)  # [2, B]
        terms = {"global": cross.mean() * GLOBAL_PAIRS / pairs}
        if local_pairs:
            student = head(features.local_cls.flatten(0, 1)).unflatten(0, features.local_cls.shape[:2])  # [L, B, K]
            local = cross_entropy(targets.sum(0), student, self.student_temp, overwrite_logits=True)  # [L, B]
            terms["local"] = local.mean(1).sum() / pairs
        return terms
