"""An official DINOv2 weight file as the teacher: the patch tokens of one block after the final norm.

The architecture is read off the weights, but for the number of attention heads, which they do not show.
Follows facebookresearch/dinov2 @ b8931f7 (models/vision_transformer.py, hub/backbones.py).
"""

from pathlib import Path
from typing import cast

import torch
from torch import Tensor

from dinoswap.da3.protocol import Teacher, TeacherSettings
from dinoswap.da3.weights import weight_file
from dinoswap.files.digest import sha256
from dinoswap.nn.block import Block
from dinoswap.nn.official_weights import architecture_of_file, load_into, load_official
from dinoswap.nn.sizes import SIZES
from dinoswap.nn.vit import VisionTransformer, vit
from dinoswap.rng import seed_torch

PATCH_SIZE = 14
"""Patch size in pixels of every published model."""


class Dinov2Teacher(Teacher):
    """The normed patch tokens of a backbone's last block."""

    def __init__(self, backbone: VisionTransformer, identity: str, notice: str) -> None:
        super().__init__(embed_dim=backbone.embed_dim, patch_size=backbone.patch_size, identity=identity, notice=notice)
        self.backbone = backbone.eval()

    def forward(self, images: Tensor) -> Tensor:
        """Returns the patch tokens [N, P, D] of images [N, 3, H, W]."""
        patch: Tensor = self.backbone(images).patch
        return patch


def build(settings: TeacherSettings) -> Teacher:
    """Returns the teacher, with the weights of a file or random ones. Raises ValueError for a setting that does not
    apply to DINOv2 and for weights that do not fit."""
    _check(settings)
    path = weight_file(settings.ckpt_path) if settings.ckpt_path else None
    with torch.random.fork_rng(devices=[]):  # weights are drawn on the CPU
        seed_torch(0, "init/da3_teacher")
        backbone = _random(settings) if path is None else _load(path, settings.num_heads)
    depth, heads = len(backbone.blocks), cast(Block, backbone.blocks[0]).attn.num_heads
    backbone.blocks = backbone.blocks[: _block(settings.layer, depth) + 1]  # later blocks are not needed
    name = f"dinov2 {backbone.embed_dim} channels, {heads} heads, {len(backbone.blocks)} of {depth} blocks"
    if path is None:
        notice = f"teacher: {name} with RANDOM WEIGHTS, of use for tests alone; set ckpt_path to a DINOv2 weight file"
        return Dinov2Teacher(backbone, f"{name} random weights", notice)
    notice = f"teacher: {name} of {path}, licence: Apache-2.0 if the file is one of those that Meta published as DINOv2"
    return Dinov2Teacher(backbone, f"{name} sha256:{sha256(path)[:16]}", notice)


def _check(settings: TeacherSettings) -> None:
    if settings.token_part != "full":
        raise ValueError(f"token_part={settings.token_part}: the tokens of DINOv2 have no halves; use token_part=full")
    if settings.normalise_halves:
        raise ValueError("normalise_halves=true: the tokens of DINOv2 have no halves; use normalise_halves=false")
    if settings.ckpt_path and settings.variant is not None:
        raise ValueError(f"variant={settings.variant}: the architecture is read off the weights; leave it null")


def _load(path: Path, num_heads: int | None) -> VisionTransformer:
    state = load_official(path)
    architecture, _ = architecture_of_file(path, state, num_heads)
    backbone = VisionTransformer(**architecture)
    load_into(backbone, state)
    return backbone


def _random(settings: TeacherSettings) -> VisionTransformer:
    variant = settings.variant or "small"
    if variant not in SIZES:
        raise ValueError(f"variant={variant}: without ckpt_path, use one of {', '.join(SIZES)}")
    return vit(variant, patch_size=PATCH_SIZE, num_heads=settings.num_heads)


def _block(layer: int | None, depth: int) -> int:
    """Returns the index of the block that is read, from 0. Raises ValueError where there is no such block."""
    if layer is None:
        return depth - 1
    if not -depth <= layer < depth:
        raise ValueError(f"layer={layer}: the network has {depth} blocks; use 0 to {depth - 1}, or null for the last")
    return layer % depth
