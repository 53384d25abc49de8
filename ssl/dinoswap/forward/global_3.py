"""A third global crop, by its own augmentation recipe, carries the mask and serves the patch losses.

The student sees unmasked globals and locals for the CLS losses and the masked third crop, the teacher the unmasked
globals and the unmasked third crop. P = 1, one extra crop. Follows training/trainer.py of the legacy trainer @ 67f6a87,
whose separate calls are entries of one packed call here.
"""

from torch import nn

from dinoswap.forward.passes import features, run
from dinoswap.values import Batch, Features


class Global3:
    """The plan with a masked third global crop."""

    extra_crops = 1
    masked_crops = 1  # P

    def teacher(self, backbone: nn.Module, batch: Batch, all_patches: bool) -> Features:
        """Returns CLS features of the global crops and patch features of the third, all unmasked."""
        crops, third = (batch.global_crops, None, None), (batch.extra_crops, None, batch.masked_indices)
        tokens, second = run(backbone, [crops, third], all_patches)
        return features(tokens.cls, tokens.cls[:0], second.patch, batch, all_patches)

    def student(self, backbone: nn.Module, batch: Batch, all_patches: bool) -> Features:
        """Returns CLS features of the unmasked global and the local crops, and patch features of the masked third."""
        crops, third = (batch.global_crops, None, None), (batch.extra_crops, batch.mask, batch.masked_indices)
        tokens, second, local = run(backbone, [crops, third, (batch.local_crops, None, None)], all_patches, True)
        return features(tokens.cls, local.cls, second.patch, batch, all_patches)
