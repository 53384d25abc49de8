"""An official DINOv2 weight file as the teacher: the patch tokens of one block after the final norm.

The architecture is read off the weights, but for the number of attention heads, which they do not show.
Follows facebookresearch/dinov2 @ b8931f7 (models/vision_transformer.py, hub/backbones.py).
"""

from typing import cast

from torch import Tensor

from dinoswap.files.digest import sha256
from dinoswap.nn.block import Block
from dinoswap.nn.sizes import SIZES
from dinoswap.nn.vit import VisionTransformer, vit
from dinoswap.nn.weights.load import load_backbone
from dinoswap.teacher.base import Teacher, fixed_seed
from dinoswap.teacher.weights import weight_file

PATCH_SIZE = 14
"""Patch size in pixels of every published model."""


class Dinov2Teacher(Teacher):
    """The normed patch tokens of one block."""

    def __init__(self, ckpt_path: str, *, variant: str | None, num_heads: int | None, layer: int | None) -> None:
        """`variant` is the size of a network with random weights, None the small one. `num_heads` None means 64
        channels per head, `layer` None is the last block. Raises ValueError for settings that do not apply and for
        weights that do not fit."""
        if ckpt_path and variant is not None:
            raise ValueError(f"variant={variant}: the architecture is read off the weights; leave it null")
        path = weight_file(ckpt_path) if ckpt_path else None
        with fixed_seed():
            backbone = (
                _random(variant or "small", num_heads) if path is None else load_backbone(path, num_heads).network()
            )
        depth, heads = len(backbone.blocks), cast(Block, backbone.blocks[0]).attn.num_heads
        backbone.blocks = backbone.blocks[: _block(layer, depth) + 1]  # later blocks are not needed
        name = f"dinov2 {backbone.embed_dim} channels, {heads} heads, {len(backbone.blocks)} of {depth} blocks"
        if path is None:
            weights = "random weights"
            origin = "with RANDOM WEIGHTS, of use for tests alone; set ckpt_path to a DINOv2 weight file"
        else:
            weights = f"sha256:{sha256(path)[:16]}"
            origin = f"of {path}, licence: Apache-2.0 if the file is one of those that Meta published as DINOv2"
        super().__init__(
            embed_dim=backbone.embed_dim,
            patch_size=backbone.patch_size,
            identity=f"{name} {weights}",
            notice=f"teacher: {name} {origin}",
        )
        self.backbone = backbone

    def forward(self, images: Tensor) -> Tensor:
        """Returns the patch tokens [N, P, D] of images [N, 3, H, W]."""
        patch: Tensor = self.backbone(images).patch
        return patch


def _random(variant: str, num_heads: int | None) -> VisionTransformer:
    if variant not in SIZES:
        raise ValueError(f"variant={variant}: without ckpt_path, use one of {', '.join(SIZES)}")
    return vit(variant, patch_size=PATCH_SIZE, num_heads=num_heads)


def _block(layer: int | None, depth: int) -> int:
    """Returns the index of the block that is read, from 0. Raises ValueError where there is no such block."""
    if layer is None:
        return depth - 1
    if not -depth <= layer < depth:
        raise ValueError(f"layer={layer}: the network has {depth} blocks; use 0 to {depth - 1}, or null for the last")
    return layer % depth
