"""One masked forward: the two global crops carry the masks and serve the CLS and the patch losses alike.

The student sees masked globals and locals in one packed call, the teacher the unmasked globals once. So the CLS of
DINO's student comes from a masked crop. P = 2, no extra crop. Follows dinov2/train/ssl_meta_arch.py of
facebookresearch/dinov2 @ b8931f7.
"""

import torch
from torch import Tensor, nn

from dinoswap.values import Batch, Features


class Unified:
    extra_crops = 0
    masked_crops = 2  # P

    def teacher(self, backbone: nn.Module, batch: Batch, all_patches: bool) -> Features:
        """Features of the unmasked global crops."""
        crops = batch.global_crops
        rows = None if all_patches else [batch.masked_indices]
        (tokens,) = backbone([crops.flatten(0, 1)], None, rows)  # [2, B, ...] -> [2 B, ...]
        cls = tokens.cls.unflatten(0, crops.shape[:2])  # [2 B, D] -> [2, B, D]
        return self._features(cls, cls[:0], tokens.patch, batch, all_patches)

    def student(self, backbone: nn.Module, batch: Batch, all_patches: bool) -> Features:
        """Features of the masked global crops and of the local crops."""
        crops, local = batch.global_crops, batch.local_crops
        inputs: list[Tensor] = [crops.flatten(0, 1)]  # [2, B, ...] -> [2 B, ...]
        masks: list[Tensor | None] = [batch.mask.flatten(0, 1)]
        rows: list[Tensor | None] = [batch.masked_indices]
        if local.shape[0]:
            inputs.append(local.flatten(0, 1))  # [L, B, ...] -> [L B, ...]
            masks.append(None)
            rows.append(None)
        tokens = backbone(inputs, masks, None if all_patches else rows)
        cls = tokens[0].cls.unflatten(0, crops.shape[:2])
        local_cls = tokens[1].cls.unflatten(0, local.shape[:2]) if local.shape[0] else cls[:0]
        return self._features(cls, local_cls, tokens[0].patch, batch, all_patches)

    def _features(self, cls: Tensor, local_cls: Tensor, patch: Tensor, batch: Batch, all_patches: bool) -> Features:
        if not all_patches:
            return Features(cls, local_cls, patch)
        masked = patch.flatten(0, 1)[batch.masked_indices]  # [P B, N, D] -> [P B N, D] -> [M, D]
        return Features(cls, local_cls, masked, torch.unflatten(patch, 0, batch.mask.shape[:2]))
