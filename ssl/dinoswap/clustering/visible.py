"""Clustering at the positions that are not masked, of the same masked student pass: the complement of `masked`.

Follows mode `visible` of the legacy trainer @ 67f6a87, its default.
"""

from torch import Tensor

from dinoswap.clustering.patch_prototypes import PatchPrototypeLoss
from dinoswap.objectives.base import Context


class Visible(PatchPrototypeLoss):
    """Clustering at the positions that are not masked."""

    reads_student_patches = True

    def select(self, context: Context) -> tuple[Tensor, Tensor, Tensor]:
        """Returns the student's visible tokens [S, D], the inverse mask bool [P, B, N], and its positions int64 [S]."""
        mask, patch = context.batch.mask, context.student_features.patch
        assert patch is not None
        positions = context.batch.visible_indices
        return patch.flatten(0, 2)[positions], ~mask, positions  # [P, B, N, D] -> [P B N, D] -> [S, D]
