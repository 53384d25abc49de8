"""One masked forward: the two global crops carry the masks and serve the CLS and the patch losses alike.

The student sees masked globals and locals in one packed call, the teacher the unmasked globals once. So the CLS of
DINO's student comes from a masked crop. P = 2, no extra crop. Follows dinov2/train/ssl_meta_arch.py of
facebookresearch/dinov2 @ b8931f7.
"""

from torch import nn

from dinoswap.forward.passes import features, run
from dinoswap.values import Batch, Features


class Unified:
    """The plan with one pass over the masked global crops."""

    extra_crops = 0
    masked_crops = 2  # P

    def teacher(self, backbone: nn.Module, batch: Batch, all_patches: bool) -> Features:
        """Returns features of the unmasked global crops."""
        (tokens,) = run(backbone, [(batch.global_crops, None, batch.masked_indices)], all_patches)
        return features(tokens.cls, tokens.cls[:0], tokens.patch, batch, all_patches)

    def student(self, backbone: nn.Module, batch: Batch, all_patches: bool) -> Features:
        """Returns features of the masked global crops and of the local crops."""
        crops = (batch.global_crops, batch.mask, batch.masked_indices)
        tokens, local = run(backbone, [crops, (batch.local_crops, None, None)], all_patches, True)
        return features(tokens.cls, local.cls, tokens.patch, batch, all_patches)
