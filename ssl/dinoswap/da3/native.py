"""Depth Anything 3 as a teacher, computed by the backbone of this package.

Concatenated tokens are [x of the last local block, norm(x of the last block)]: the first half is the raw residual
stream, and the scales of the two are unrelated. `token_part` keeps one of them, `normalise_halves` applies a LayerNorm
without weights to each half that is kept.
"""

from typing import get_args

import torch
from torch import Tensor, nn
from torch.nn import functional

from dinoswap.da3.backbone import DA3Backbone
from dinoswap.da3.protocol import Teacher, TeacherSettings, TokenPart
from dinoswap.da3.source import Source, locate, read_weights
from dinoswap.rng import seed_torch

HALVES: tuple[TokenPart, ...] = ("local", "global")
EPS = 1e-6


def build(settings: TeacherSettings) -> Teacher:
    """Returns the teacher, built from an official model.safetensors or its folder, or with random weights. Raises
    ValueError, with the remedy, for settings that do not apply and for weights that do not fit."""
    source = locate(settings)
    if source.path is None:
        with torch.random.fork_rng(devices=[]):
            seed_torch(0, "init/da3_teacher")
            return DA3Teacher(DA3Backbone(source.architecture), source, settings)
    with torch.device("meta"):
        backbone = DA3Backbone(source.architecture)
    backbone.load_state_dict(read_weights(source.path, source.prefix, backbone.state_dict()), assign=True)
    return DA3Teacher(backbone, source, settings)


class DA3Teacher(Teacher):
    """A teacher around `network`; `network(images, layer)` returns patch tokens [N, P, D] as `DA3Backbone` does."""

    def __init__(self, network: nn.Module, source: Source, settings: TeacherSettings) -> None:
        spec = source.architecture
        _check_parts(settings, spec.cat_token, source.name)
        full_tokens = settings.layer is None and settings.token_part == "full"
        super().__init__(
            embed_dim=spec.token_dim if full_tokens else spec.embed_dim,
            patch_size=spec.patch_size,
            identity=f"{settings.backend} {source.identity}",
            notice=source.notice,
        )
        self.network = network
        self.layer = _block_index(settings.layer, spec.depth)
        self.token_part = settings.token_part
        self.normalise_halves = settings.normalise_halves
        self.width = spec.embed_dim

    def forward(self, images: Tensor) -> Tensor:
        """Returns the patch tokens [N, P, embed_dim] of images [N, 3, H, W]."""
        tokens: Tensor = self.network(images, self.layer)
        if self.token_part != "full":
            tokens = tokens.chunk(2, dim=-1)[HALVES.index(self.token_part)]
        if not self.normalise_halves:
            return tokens
        halves = tokens.chunk(tokens.shape[-1] // self.width, dim=-1)  # one or two of [N, P, E]
        return torch.cat([functional.layer_norm(half, (self.width,), eps=EPS) for half in halves], dim=-1)


def _check_parts(settings: TeacherSettings, halves: bool, name: str) -> None:
    """Raises ValueError where the settings need two halves and the tokens of the network `name` have none."""
    if settings.token_part not in get_args(TokenPart):
        raise ValueError(f"token_part={settings.token_part}: use one of {', '.join(get_args(TokenPart))}")
    reason = "" if halves else f"the tokens of {name} have no halves"
    if settings.layer is not None:
        reason = f"the tokens of a single block (layer={settings.layer}) have no halves"
    if reason and settings.token_part != "full":
        raise ValueError(f"token_part={settings.token_part}: {reason}; use token_part=full")
    if reason and settings.normalise_halves:
        raise ValueError(f"normalise_halves=true: {reason}; use normalise_halves=false")


def _block_index(layer: int | None, depth: int) -> int | None:
    """Returns the index of the block `layer` from 0, None for None. Raises ValueError where there is no such block."""
    if layer is not None and not -depth <= layer < depth:
        raise ValueError(
            f"layer={layer}: the backbone has {depth} blocks; use 0 to {depth - 1}, or null for its tokens"
        )
    return None if layer is None else layer % depth
