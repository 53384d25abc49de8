"""The tokens of a Depth Anything 3 backbone, whichever code computes it.

Concatenated tokens are [x of the last local block, norm(x of the last block)]: the first half is the raw residual
stream, and the scales of the two are unrelated. `token_part` keeps one of them, `normalise_halves` applies a LayerNorm
without weights to each half that is kept.
"""

from abc import abstractmethod
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from dinoswap.teacher.base import Teacher
from dinoswap.teacher.depth_anything.source import Source, locate

TokenPart = Literal["full", "local", "global"]
HALVES: tuple[TokenPart, ...] = ("local", "global")
EPS = 1e-6


class DA3Teacher(Teacher):
    """The base class of the teachers that read official files. They differ in the code of the network."""

    kind: ClassVar[str]
    """The name of the option, with which the identity begins."""

    def __init__(
        self,
        ckpt_path: str,
        *,
        variant: str | None,
        num_heads: int | None,
        layer: int | None,
        token_part: TokenPart,
        normalise_halves: bool,
    ) -> None:
        """`variant` None is read off the weights, `num_heads` None means 64 channels per head, and `layer` None is the
        last block. Raises ValueError for settings that do not apply to the network of the weights, and for weights that
        do not fit."""
        source = locate(ckpt_path, variant, num_heads)
        spec = source.architecture
        if layer is not None:
            _require_whole(token_part, normalise_halves, f"the tokens of a single block (layer={layer})")
        elif not spec.cat_token:
            _require_whole(token_part, normalise_halves, f"the tokens of {source.name}")
        super().__init__(
            embed_dim=spec.token_dim if layer is None and token_part == "full" else spec.embed_dim,
            patch_size=spec.patch_size,
            identity=f"{self.kind} {source.identity}",
            notice=source.notice,
        )
        self.layer = _block_index(layer, spec.depth)
        self.token_part = token_part
        self.normalise_halves = normalise_halves
        self.width = spec.embed_dim
        self.network = self.network_of(source)

    @abstractmethod
    def network_of(self, source: Source) -> nn.Module:
        """Returns the network of `source` with its weights. Called with (images, layer) it returns patch tokens
        [N, P, D] as `DA3Backbone` does. Raises ValueError for weights that do not fit."""

    def forward(self, images: Tensor) -> Tensor:
        """Returns the patch tokens [N, P, embed_dim] of images [N, 3, H, W]."""
        tokens: Tensor = self.network(images, self.layer)
        if self.token_part != "full":
            tokens = tokens.chunk(2, dim=-1)[HALVES.index(self.token_part)]
        if not self.normalise_halves:
            return tokens
        halves = tokens.chunk(tokens.shape[-1] // self.width, dim=-1)  # one or two of [N, P, E]
        return torch.cat([functional.layer_norm(half, (self.width,), eps=EPS) for half in halves], dim=-1)


def _require_whole(token_part: TokenPart, normalise_halves: bool, tokens: str) -> None:
    """Raises ValueError for settings that need two halves. `tokens` says in words which tokens have none."""
    if token_part != "full":
        raise ValueError(f"token_part={token_part}: {tokens} have no halves; use token_part=full")
    if normalise_halves:
        raise ValueError(f"normalise_halves=true: {tokens} have no halves; use normalise_halves=false")


def _block_index(layer: int | None, depth: int) -> int | None:
    """Returns the index of the block `layer` from 0, None for None. Raises ValueError where there is no such block."""
    if layer is not None and not -depth <= layer < depth:
        raise ValueError(
            f"layer={layer}: the backbone has {depth} blocks; use 0 to {depth - 1}, or null for its tokens"
        )
    return None if layer is None else layer % depth
