"""Gram anchoring to the EMA teacher of the step, which sees the same crops without their masks.

Its patch tokens are there anyway. Follows the mode `ema_teacher` of facebookresearch/dinov3 @ 6876159.
"""

from torch import Tensor

from dinoswap.gram.base import GramAnchoring
from dinoswap.objectives.base import Context


class EmaGram(GramAnchoring):
    """The objective with the similarities of the EMA teacher."""

    reads_teacher_patches = True

    def teacher_tokens(self, context: Context) -> Tensor:
        """Returns the EMA teacher's tokens [P, B, N, D]."""
        assert context.teacher_features.patch is not None  # reads_teacher_patches
        return context.teacher_features.patch
