"""iBOT: at masked positions the student predicts the teacher's distribution of the patch that it cannot see.

Both heads run on the masked tokens only. How the per-token losses become one number is the `reduction` group.
Follows dinov2/loss/ibot_patch_loss.py of facebookresearch/dinov2 @ b8931f7; Zhou et al. (arXiv 2111.07832).
"""

from torch import Tensor, nn

from dinoswap.objectives.base import Context, Objective, Reduction
from dinoswap.objectives.cross_entropy import cross_entropy


class IBOT(Objective):
    """The iBOT loss on masked patch tokens, with the term `masked`."""

    def __init__(
        self,
        targets: nn.Module,
        reduction: Reduction,
        *,
        head: str,
        loss_weight: float,
        student_temp: float,
    ) -> None:
        """`targets` maps teacher logits [M, K] and a temperature to distributions. `head` names the network:
        `ibot_head`, or `dino_head` to share DINO's. Raises ValueError where the temperature is not above 0."""
        super().__init__(loss_weight)
        if not student_temp > 0:
            raise ValueError(f"student_temp={student_temp}: a temperature must be above 0")
        self.targets = targets
        self.reduction = reduction
        self.head = head
        self.student_temp = student_temp

    def teacher_targets(self, context: Context) -> Tensor:
        """Returns the target distributions [M, K] of the teacher's tokens at the masked positions."""
        logits = context.teacher[self.head](context.teacher_features.masked_patch)  # [M, D] -> [M, K]
        targets: Tensor = self.targets(logits, context.hyper["teacher_temp"])
        return targets

    def forward(self, context: Context) -> dict[str, Tensor]:
        """Returns the scalar term `masked`."""
        targets = self.teacher_targets(context).detach()
        student = context.student[self.head](context.student_features.masked_patch)  # [M, D] -> [M, K]
        losses = cross_entropy(targets, student, self.student_temp, overwrite_logits=True)  # [M]
        return {"masked": self.reduction(losses, context.batch.mask, context.batch.masked_indices)}
