"""A pass for the CLS losses and a masked one for the patch losses, both over the two global crops.

The student sees unmasked globals and locals, and the globals once more with their masks; the teacher the unmasked
globals once, as in `unified`. So DINO's student never sees a masked crop. P = 2, no extra crop. It lies between
`unified`, from which it differs by the second pass, and `global_3`, from which it differs by the crops that the second
pass is about.
"""

from torch import nn

from dinoswap.forward.passes import features, run
from dinoswap.forward.unified import Unified
from dinoswap.values import Batch, Features


class TwoPass(Unified):
    """The plan with separate passes over the unmasked and the masked global crops."""

    def student(self, backbone: nn.Module, batch: Batch, all_patches: bool) -> Features:
        """Returns CLS features of the unmasked global and the local crops, and patch features of the masked globals."""
        crops = (batch.global_crops, None, None)
        masked = (batch.global_crops, batch.mask, batch.masked_indices)
        tokens, second, local = run(backbone, [crops, masked, (batch.local_crops, None, None)], all_patches, True)
        return features(tokens.cls, local.cls, second.patch, batch, all_patches)
