"""The vision transformer: [cls, registers, patches] through pre-norm blocks and one final norm.

Tokens: patch embedding, mask token where the mask is True, class token before them, position table added where there is
one, registers inserted after the class token without a position.
Follows models/vision_transformer.py of facebookresearch/dinov2 @ b8931f7, with its parameter names and init, and with
rotary positions and other norms that of facebookresearch/dinov3 @ 6876159.
"""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple, overload

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from dinoswap.nn.block import Block, Ffn, check_rates, rising_rates
from dinoswap.nn.norm import NormKind, make_norm
from dinoswap.nn.packs import Pack, Shape, grouped, packed, packs_all, split
from dinoswap.nn.patch_embed import PatchEmbed, Stem, resample_positions
from dinoswap.nn.sizes import InitialScale, Size, initial_scale, size_arguments
from dinoswap.position.base import Position
from dinoswap.position.learned import LearnedPosition

LEARNED = LearnedPosition()


class Tokens(NamedTuple):
    """The tokens of one list entry. It is a tuple because DDP and FSDP2 look for tensors in outputs of known types."""

    cls: Tensor  # [b, D]
    registers: Tensor | None  # [b, R, D]; None where only rows were asked for
    patch: Tensor | None  # [b, N, D]; [M, D] where rows were asked for; None where only the class token was


class VisionTransformer(nn.Module):
    """The network. Its forward pass takes crops of any sizes as a list, see `forward`."""

    group_options: Mapping[str, Any]
    """What is otherwise in its groups of parameters, if anything is, see `optim.param_groups`."""

    def __init__(
        self,
        img_size: int | tuple[int, int] = 224,
        patch_size: int = 16,
        embed_dim: int = 384,
        depth: int = 12,
        num_heads: int = 6,
        mlp_ratio: float = 4.0,
        ffn: Ffn = "mlp",
        registers: int = 0,
        layerscale: InitialScale = 1e-5,
        drop_path: float = 0.0,
        drop_path_uniform: bool = True,
        interpolate_offset: float = 0.1,
        interpolate_antialias: bool = False,
        qkv_bias: bool = True,
        activation_checkpointing: bool = False,
        residual_dropout: float = 0.0,
        mask_token_std: float = 0.0,
        *,
        position: Position = LEARNED,
        token_std: float = 1e-6,
        key_bias: bool = True,
        qk_norm_from: int | None = None,
        ffn_align: int = 8,
        norm: NormKind = "layernorm",
        norm_eps: float = 1e-6,
        cls_norm: bool = False,
        local_cls_norm: bool = False,
        stem: Stem = (),
    ) -> None:
        """`img_size` (H, W) is that of the position table; crops may have any other multiple of `patch_size`.
        `layerscale` is its initial value, None or 0 for none. `drop_path` is the rate of every block; without
        `drop_path_uniform` that of the last block, rising linearly from 0, as `residual_dropout` always does. Only one
        of the two can be positive. `mask_token_std` and `token_std` are the deviations of the initial values of the
        mask token, and of class token and registers. The blocks from the index `qk_norm_from` on norm queries and keys;
        None: no block does. `ffn_align` is a divisor of the width of a SwiGLU. With `cls_norm` class token and
        registers have a final norm of their own, with `local_cls_norm` those of local crops in training. `stem` are
        convolutions before that of patches, each (channels, stride). Raises ValueError for a number out of range.
        """
        super().__init__()
        hidden_dim = int(embed_dim * mlp_ratio)
        _check(depth, registers, hidden_dim, interpolate_offset)
        for name, std in (("mask_token_std", mask_token_std), ("token_std", token_std)):
            if not std >= 0:
                raise ValueError(f"{name}={std}: must not be negative; 0 starts the token at zero")
        if ffn_align < 1:
            raise ValueError(f"ffn_align={ffn_align}: must be at least 1; 8 and 64 are usual")
        check_rates(drop_path, residual_dropout)
        self.embed_dim = embed_dim
        self.patch_size = patch_size
        self.interpolate_offset = interpolate_offset
        self.interpolate_antialias = interpolate_antialias
        self.activation_checkpointing = activation_checkpointing
        self.patch_embed = PatchEmbed(patch_size, embed_dim, stem)
        sides = (img_size, img_size) if isinstance(img_size, int) else img_size
        self.grid = self.patch_embed.grid(*sides)  # of the position table
        self.cls_token = nn.Parameter(torch.zeros(1, 1, embed_dim))
        table = torch.zeros(1, 1 + self.grid[0] * self.grid[1], embed_dim)
        self.pos_embed = nn.Parameter(table) if position.has_table else None
        self.position, self.head_width = position, embed_dim // num_heads if num_heads > 0 else 0
        self.register_tokens = nn.Parameter(torch.zeros(1, registers, embed_dim)) if registers else None
        self.mask_token = nn.Parameter(torch.zeros(1, embed_dim))
        scale = initial_scale(layerscale, depth)
        rates = [drop_path] * depth if drop_path_uniform else rising_rates(drop_path, depth)
        self.blocks = nn.ModuleList(
            Block(
                embed_dim,
                num_heads,
                hidden_dim,
                ffn,
                scale,
                rate,
                qkv_bias,
                dropout,
                key_bias=key_bias,
                qk_norm=qk_norm_from is not None and index >= qk_norm_from,
                ffn_align=ffn_align,
                norm=norm,
                norm_eps=norm_eps,
            )
            for index, (rate, dropout) in enumerate(zip(rates, rising_rates(residual_dropout, depth), strict=True))
        )
        position.check(self.head_width)
        self.norm = make_norm(norm, embed_dim, norm_eps)
        self.cls_norm = make_norm(norm, embed_dim, norm_eps) if cls_norm else None
        self.local_cls_norm = make_norm(norm, embed_dim, norm_eps) if local_cls_norm else None
        self._init_weights(mask_token_std, token_std)

    def _init_weights(self, mask_token_std: float, token_std: float) -> None:
        """Draws the initial weights; convolutions keep torch's default. The mask token is drawn last, so that
        it changes no other weight of the same seed, and a position table is drawn where there is none, too."""
        table = torch.empty(1, 1 + self.grid[0] * self.grid[1], self.embed_dim)
        nn.init.trunc_normal_(table if self.pos_embed is None else self.pos_embed, std=0.02)
        nn.init.normal_(self.cls_token, std=token_std)
        if self.register_tokens is not None:
            nn.init.normal_(self.register_tokens, std=token_std)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        if mask_token_std:
            nn.init.normal_(self.mask_token, std=mask_token_std)

    @property
    def prefix(self) -> int:
        """Number of tokens before the patches: the class token and the registers."""
        return 1 if self.register_tokens is None else 1 + self.register_tokens.shape[1]

    def positions(self, grid: tuple[int, int]) -> Tensor | None:
        """Returns the position table [1, 1 + N, D] for a grid of h x w = N patches, None where there is none."""
        if grid == self.grid or self.pos_embed is None:
            return self.pos_embed
        table = resample_positions(
            self.pos_embed[:, 1:], self.grid, grid, self.interpolate_offset, self.interpolate_antialias
        )
        return torch.cat([self.pos_embed[:, :1], table], dim=1)

    def prepare_tokens_with_masks(self, x: Tensor, masks: Tensor | None = None) -> Tensor:
        """Returns the tokens [b, 1 + R + N, D] of crops [b, 3, H, W] under a mask bool [b, N] (True: hidden). Raises
        ValueError where the mask has another shape."""
        grid = self.patch_embed.grid(*x.shape[-2:])
        patches = self.patch_embed(x)
        if masks is not None:
            if masks.shape != patches.shape[:2]:
                raise ValueError(
                    f"masks of shape {list(masks.shape)} for crops with {list(patches.shape[:2])} patches: "
                    f"give one value per patch of the {grid[0]} x {grid[1]} grid"
                )
            patches = torch.where(masks.unsqueeze(-1), self.mask_token.to(patches.dtype), patches)
        cls: Tensor = self.cls_token
        positions = self.positions(grid)
        if positions is not None:
            cls, patches = cls + positions[:, :1], patches + positions[:, 1:]
        parts = [cls.expand(x.shape[0], -1, -1), patches]
        if self.register_tokens is not None:
            parts.insert(1, self.register_tokens.expand(x.shape[0], -1, -1))
        return torch.cat(parts, dim=1)

    @overload
    def forward(
        self,
        crops: Tensor,
        masks: Tensor | None = None,
        patch_rows: Tensor | None = None,
        locals_from: int | None = None,
    ) -> Tokens: ...

    @overload
    def forward(
        self,
        crops: Sequence[Tensor],
        masks: Sequence[Tensor | None] | None = None,
        patch_rows: Sequence[Tensor | None] | None = None,
        locals_from: int | None = None,
    ) -> list[Tokens]: ...

    def forward(self, crops, masks=None, patch_rows=None, locals_from=None):  # type: ignore[no-untyped-def]
        """Returns the normed tokens of crops [b, 3, H, W], one Tokens for each entry of a list.

        `masks` bool [b, N] hides patches. With `patch_rows` only class tokens and these flat rows of b * N are computed
        after the last attention; an entry whose rows are None gives its class tokens alone. The entries from the index
        `locals_from` on are local crops, whose class tokens may have a norm of their own. A list and a plain tensor
        differ in stochastic depth only, see `block`.
        """
        if isinstance(crops, Tensor):
            return self._forward([crops], [masks], None if patch_rows is None else [patch_rows], 1, True)[0]
        first_local = len(crops) if locals_from is None else locals_from
        return self._forward(crops, masks or [None] * len(crops), patch_rows, first_local, False)

    def _forward(
        self,
        crops: Sequence[Tensor],
        masks: Sequence[Tensor | None],
        patch_rows: Sequence[Tensor | None] | None,
        first_local: int,
        single: bool,
    ) -> list[Tokens]:
        """Returns the tokens of each stack of crops, with the patches in `patch_rows` alone where these are given.
        Stacks from `first_local` on are local crops. `single` is whether `forward` was given one tensor, on which
        stochastic depth depends."""
        entries = [self.prepare_tokens_with_masks(x, mask) for x, mask in zip(crops, masks, strict=True)]
        grids = [self.patch_embed.grid(*x.shape[-2:]) for x in crops]
        counts = [len(entries)] if packs_all(entries[0].device) else [1] * len(entries)
        packs = [packed(part) for part in grouped(entries, counts)]
        for index in range(len(self.blocks)):
            if patch_rows is not None and index == len(self.blocks) - 1:
                packs = [
                    pack._replace(rows=self._token_rows(pack.shapes, rows, pack.x.device))
                    for pack, rows in zip(packs, grouped(patch_rows, counts), strict=True)
                ]
            packs = self._run(index, packs, grids, single)
        normed = [self.norm(pack.x) for pack in packs]
        is_local = [place >= first_local for place in range(len(entries))]
        if patch_rows is None:
            before = (part for pack in packs for part in split(pack.x, pack.shapes))
            after = (part for pack, x in zip(packs, normed, strict=True) for part in split(x, pack.shapes))
            return [self._tokens(*entry) for entry in zip(before, after, is_local, strict=True)]
        read: list[tuple[Tensor, Tensor, Tensor]] = []  # class tokens, these and patches after the norm
        for pack, x, rows in zip(packs, normed, grouped(patch_rows, counts), strict=True):
            lengths = [
                length
                for (batch, _), read_rows in zip(pack.shapes, rows, strict=True)
                for length in (batch, _count(read_rows))
            ]
            raw, parts = torch.split(pack.x, lengths), torch.split(x, lengths)  # class tokens, patches, class ...
            read += zip(raw[::2], parts[::2], parts[1::2], strict=True)
        return [
            Tokens(self._normed_cls(raw, cls, local), None, None if rows is None else patch)
            for (raw, cls, patch), rows, local in zip(read, patch_rows, is_local, strict=True)
        ]

    def _tokens(self, raw: Tensor, normed: Tensor, local: bool) -> Tokens:
        """Returns the tokens raw [b, T, D] after their final norms, where `normed` is what that of patches gives."""
        first = self._normed_cls(raw[:, : self.prefix], normed[:, : self.prefix], local)
        return Tokens(first[:, 0], first[:, 1:], normed[:, self.prefix :])

    def _normed_cls(self, raw: Tensor, normed: Tensor, local: bool) -> Tensor:
        """Returns class tokens or registers after their final norm, those of a local or of another crop, where `normed`
        is what that of patches gives."""
        norm = self._norm_of_cls(local)
        return normed if norm is self.norm else norm(raw)

    def _norm_of_cls(self, local: bool) -> nn.Module:
        """Returns the final norm of class token and registers."""
        if local and self.training and self.local_cls_norm is not None:
            return self.local_cls_norm
        return self.norm if self.cls_norm is None else self.cls_norm

    def intermediate_tokens(self, x: Tensor, blocks: Sequence[int], norm: bool = True) -> list[Tokens]:
        """Returns the tokens of crops [b, 3, H, W] after each of these blocks (-1: the last), with or without the final
        norm. Raises ValueError for a block that does not exist."""
        depth = len(self.blocks)
        if any(not -depth <= index < depth for index in blocks):
            raise ValueError(f"blocks={list(blocks)}: the network has {depth}; use -{depth} to {depth - 1}")
        indices = [index % depth for index in blocks]
        raw = {index: tokens for index, tokens in enumerate(self.stream(x)) if index in indices}
        return [
            self._tokens(x, self.norm(x), False) if norm else self._split(x) for x in (raw[index] for index in indices)
        ]

    def stream(self, x: Tensor) -> Iterator[Tensor]:
        """Yields the tokens [b, T, D] of crops [b, 3, H, W] after each block, without a norm. A block is computed when
        its tokens are asked for."""
        packs, grid = [packed([self.prepare_tokens_with_masks(x)])], self.patch_embed.grid(*x.shape[-2:])
        for index in range(len(self.blocks)):
            (pack,) = packs = self._run(index, packs, [grid], True)
            yield torch.unflatten(pack.x, 0, pack.shapes[0])

    def _run(self, index: int, packs: Sequence[Pack], grids: Sequence[tuple[int, int]], single: bool) -> list[Pack]:
        """Returns the packs after the block of this index. Rotations are drawn before it draws its stochastic depth."""
        block = self.blocks[index]
        rotations = self.position.rotations(grids, self.head_width, packs[0].x, self.training, index)
        turned = grouped(rotations, [len(pack.shapes) for pack in packs])
        packs = [pack._replace(rotations=own) for pack, own in zip(packs, turned, strict=True)]
        recompute = self.activation_checkpointing and torch.is_grad_enabled()
        run = partial(checkpoint, block, use_reentrant=False) if recompute else block
        return [pack._replace(x=x) for pack, x in zip(packs, run(packs, single), strict=True)]

    def _split(self, x: Tensor) -> Tokens:
        """Returns a sequence [b, T, D] as class token, registers and patches."""
        return Tokens(x[:, 0], x[:, 1 : self.prefix], x[:, self.prefix :])

    def _token_rows(self, shapes: Sequence[Shape], patch_rows: Sequence[Tensor | None], device: torch.device) -> Tensor:
        """Returns indices into the packed tokens: for each shape those of its class tokens, then those of its patches
        `patch_rows`, which index b * N."""
        rows, start = [], 0
        for (batch, length), patches in zip(shapes, patch_rows, strict=True):
            end = start + batch * length
            rows.append(torch.arange(start, end, length, device=device))
            if patches is not None:
                image = patches // (length - self.prefix)
                rows.append(start + patches + (image + 1) * self.prefix)
            start = end
        return torch.cat(rows)


def _count(rows: Tensor | None) -> int:
    """Returns the number of rows, 0 for None."""
    return 0 if rows is None else len(rows)


def _check(depth: int, registers: int, hidden_dim: int, interpolate_offset: float) -> None:
    """Raises ValueError for a depth, a number of registers, a width or an offset that no network can have."""
    least = {"depth": (depth, 1), "registers": (registers, 0), "hidden width (mlp_ratio)": (hidden_dim, 1)}
    for name, (value, lowest) in least.items():
        if value < lowest:
            raise ValueError(f"{name}={value}: must be at least {lowest}")
    if not 0 <= interpolate_offset < 1:
        raise ValueError(f"interpolate_offset={interpolate_offset}: must be in [0, 1); 0.1 and 0 are usual")


def vit(
    size: Size = "small",
    *,
    embed_dim: int | None = None,
    depth: int | None = None,
    num_heads: int | None = None,
    ffn: Ffn | None = None,
    **others: Any,
) -> VisionTransformer:
    """Returns the network of a size name, with `others` of the arguments of VisionTransformer. Numbers other than None
    override those of the name."""
    named = size_arguments(size, embed_dim=embed_dim, depth=depth, num_heads=num_heads, ffn=ffn)
    return VisionTransformer(**named, **others)


def configured_vit(
    *,
    size: Size,
    img_size: int | tuple[int, int],
    patch_size: int,
    embed_dim: int | None,
    depth: int | None,
    num_heads: int | None,
    mlp_ratio: float,
    ffn: Ffn | None,
    registers: int,
    layerscale: InitialScale,
    drop_path: float,
    drop_path_uniform: bool,
    interpolate_offset: float,
    interpolate_antialias: bool,
    qkv_bias: bool,
    activation_checkpointing: bool,
    residual_dropout: float,
    mask_token_std: float,
    position: Position,
    token_std: float,
    key_bias: bool,
    ffn_align: int,
    norm: NormKind,
    norm_eps: float,
    cls_norm: bool,
    local_cls_norm: bool,
    stem: Stem,
) -> VisionTransformer:
    """Returns what `vit` does, for the section `model` of the config, which has every argument but `img_size` and
    `position`."""
    return vit(
        size,
        img_size=img_size,
        patch_size=patch_size,
        embed_dim=embed_dim,
        depth=depth,
        num_heads=num_heads,
        mlp_ratio=mlp_ratio,
        ffn=ffn,
        registers=registers,
        layerscale=layerscale,
        drop_path=drop_path,
        drop_path_uniform=drop_path_uniform,
        interpolate_offset=interpolate_offset,
        interpolate_antialias=interpolate_antialias,
        qkv_bias=qkv_bias,
        activation_checkpointing=activation_checkpointing,
        residual_dropout=residual_dropout,
        mask_token_std=mask_token_std,
        position=position,
        token_std=token_std,
        key_bias=key_bias,
        ffn_align=ffn_align,
        norm=norm,
        norm_eps=norm_eps,
        cls_norm=cls_norm,
        local_cls_norm=local_cls_norm,
        stem=stem,
    )
