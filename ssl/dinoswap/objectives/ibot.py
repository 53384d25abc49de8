"""iBOT: at masked positions the student predicts the teacher's distribution of the patch that it cannot see.

Both heads run on the masked tokens only. How the per-token losses become one number is the `reduction` group. With
`pad_masked` they run on rows of zeros too, whose targets are 0, and so their losses and gradients: as masks differ from
step to step, logits otherwise have another size in each, which leaves gaps in the memory of a GPU. The official code
pads to a bound in the same way (`upperbound` in dinov2/data/collate.py).
Follows dinov2/loss/ibot_patch_loss.py of facebookresearch/dinov2 @ b8931f7; Zhou et al. (arXiv 2111.07832).
"""

import inspect
import math

from torch import Tensor, nn
from torch.nn import functional

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
        pad_masked: float | None,
    ) -> None:
        """`targets` maps teacher logits [M, K] and a temperature to distributions. `head` names the network:
        `ibot_head`, or `dino_head` to share DINO's. Masked tokens are padded to the next multiple of the share
        `pad_masked` of all patch tokens, None for not at all. Raises ValueError for a value out of range, and for
        targets that know no padding."""
        super().__init__(loss_weight)
        if not student_temp > 0:
            raise ValueError(f"student_temp={student_temp}: a temperature must be above 0")
        if pad_masked is not None and not 0 < pad_masked <= 1:
            raise ValueError(f"pad_masked={pad_masked}: a share of all patch tokens, above 0 and at most 1, or null")
        if pad_masked is not None and "rows" not in inspect.signature(targets.forward).parameters:
            raise ValueError(
                f"pad_masked={pad_masked}: {type(targets).__name__} takes no `rows`, and would count padding; "
                "set null, or choose other targets"
            )
        self.pad_masked = pad_masked
        self.targets = targets
        self.reduction = reduction
        self.head = head
        self.student_temp = student_temp

    def teacher_targets(self, context: Context) -> Tensor:
        """Returns the target distributions [M, K] of the teacher's tokens at the masked positions."""
        return self._targets(context)[: len(context.teacher_features.masked_patch)]

    def forward(self, context: Context) -> dict[str, Tensor]:
        """Returns the scalar term `masked`."""
        batch, tokens = context.batch, context.student_features.masked_patch  # [M, D]
        targets = self._targets(context).detach()
        student = context.student[self.head](self._padded(tokens, batch.mask))  # [M', D] -> [M', K]
        losses = cross_entropy(targets, student, self.student_temp, overwrite_logits=True)[: len(tokens)]  # [M]
        return {"masked": self.reduction(losses, batch.mask, batch.masked_indices)}

    def _targets(self, context: Context) -> Tensor:
        """Returns the targets [M', K], which are 0 for rows of padding."""
        tokens, temperature = context.teacher_features.masked_patch, context.hyper["teacher_temp"]
        logits = context.teacher[self.head](self._padded(tokens, context.batch.mask))  # [M', D] -> [M', K]
        rows = {} if self.pad_masked is None else {"rows": len(tokens)}
        targets: Tensor = self.targets(logits, temperature, **rows)
        return targets

    def _padded(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """Returns masked tokens [M, D] and rows of zeros, [M', D]. There is one multiple of padding at least."""
        if self.pad_masked is None:
            return tokens
        unit = max(round(self.pad_masked * mask.numel()), 1)
        return functional.pad(tokens, (0, 0, 0, max(math.ceil(len(tokens) / unit), 1) * unit - len(tokens)))
