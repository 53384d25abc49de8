"""Deeper layers learn faster: multiplier rate ** (depth + 1 - layer), patch embedding x patch_embed_lr_mult on top.

layer 0 holds everything before the blocks (patch_embed, pos_embed and the cls, mask and register tokens), block i is
layer i + 1, the final norm is layer depth + 1. So with depth 24 and rate 0.9 the embeddings get 0.9 ** 25 = 0.0718.
Follows dinov2/utils/param_groups.py of facebookresearch/dinov2 @ b8931f7. At rate 1 only the patch embedding differs
from `uniform`.
"""

import re

BEFORE_BLOCKS = ("patch_embed.", "pos_embed", "cls_token", "mask_token", "register_tokens")


def layer_id(name: str, depth: int) -> int:
    """Returns the layer of a backbone parameter, from 0 (embeddings) to depth + 1 (final norm)."""
    if name.startswith(BEFORE_BLOCKS):
        return 0
    block = re.match(r"blocks\.(\d+)\.", name)
    return int(block[1]) + 1 if block else depth + 1


class Layerwise:
    """An lr multiplier that decays towards the input. Raises ValueError for a value out of range."""

    def __init__(self, *, rate: float, patch_embed_lr_mult: float) -> None:
        if not 0 < rate <= 1:
            raise ValueError(f"rate={rate}: the decay per layer must lie above 0 and not above 1 (1 switches it off)")
        if not patch_embed_lr_mult >= 0:
            raise ValueError(f"patch_embed_lr_mult={patch_embed_lr_mult}: must be 0 or more")
        self.rate = rate
        self.patch_embed_lr_mult = patch_embed_lr_mult

    def multiplier(self, name: str, depth: int) -> float:
        """Returns the lr multiplier of the parameter `name` of a backbone with `depth` blocks."""
        factor = self.patch_embed_lr_mult if name.startswith("patch_embed.") else 1.0
        return self.rate ** (depth + 1 - layer_id(name, depth)) * factor
