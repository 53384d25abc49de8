"""Clustering at the masked positions: the student's tokens that iBOT reads, which cannot see their patches.

The complement of `visible`. Follows mode `masked` of the legacy trainer @ 67f6a87, the only one left @ b23df50.
"""

from torch import Tensor

from dinoswap.clustering.patch_prototypes import PatchPrototypeLoss
from dinoswap.objectives.base import Context


class Masked(PatchPrototypeLoss):
    """Clustering at the masked positions."""

    def select(self, context: Context) -> tuple[Tensor, Tensor, Tensor]:
        """Returns the student's masked tokens [M, D], the mask bool [P, B, N], and its positions int64 [M]."""
        batch = context.batch
        return context.student_features.masked_patch, batch.mask, batch.masked_indices
