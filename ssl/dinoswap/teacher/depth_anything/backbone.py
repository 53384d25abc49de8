"""The backbone of Depth Anything 3, for scenes of a single view: every image is a separate scene.

A DINOv2 vision transformer without registers and without a mask token, to which are added, each from a block on:
 - LayerNorm of queries and keys in each head, and then a 2-D rotary embedding (`rope`);
 - a learnt camera token that takes the place of the class token, and blocks that in turns attend within a view (local)
   and across all views (global). With one view both attend to the same tokens; the positions alone differ.
Tokens of an out layer are [x of the most recent local block, norm(x of this block)]: the first half is the raw residual
stream. The final norm and those of queries and keys have an eps of 1e-5, the blocks' norms 1e-6.
Follows model/dinov2/vision_transformer.py of ByteDance-Seed/Depth-Anything-3 @ 2c21ea8, with its parameter names, for
B = N scenes of S = 1 view. With batches as one scene (B = 1, S = N) the tokens of an image would depend on the others.
"""

from collections.abc import Collection, Iterator
from itertools import islice
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from dinoswap.nn.block import LayerScale, Mlp, SwiGLU
from dinoswap.nn.patch_embed import PatchEmbed, resample_positions
from dinoswap.teacher.depth_anything.rope import global_positions, local_positions, rotate, rotation_table
from dinoswap.teacher.depth_anything.variants import Architecture

MLP_RATIO = 4
OFFSET = 0.1
TABLES = ("resampled", "local_rotation", "global_rotation")


class Attention(nn.Module):
    """Self-attention up to its output projection, which the block applies."""

    def __init__(self, dim: int, num_heads: int, qk_norm: bool) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.q_norm = nn.LayerNorm(dim // num_heads, eps=1e-5) if qk_norm else nn.Identity()
        self.k_norm = nn.LayerNorm(dim // num_heads, eps=1e-5) if qk_norm else nn.Identity()
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, rotation: Tensor | None) -> Tensor:
        """Returns the attended tokens [b, T, E] of tokens [b, T, E], heads side by side; b may be 0. `rotation`
        [2, T, d] is a `rope.rotation_table`."""
        batch, length, dim = x.shape
        shape = batch, length, 3, self.num_heads, dim // self.num_heads
        qkv = self.qkv(x).view(shape)  # [b, T, 3 E] -> [b, T, 3, h, d]
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # [b, h, T, d] each
        q, k = self.q_norm(q), self.k_norm(k)
        if rotation is not None:
            q, k = rotate(q, rotation), rotate(k, rotation)
        mixed = functional.scaled_dot_product_attention(q.to(v.dtype), k.to(v.dtype), v)
        return mixed.transpose(1, 2).flatten(2)  # [b, h, T, d] -> [b, T, E]


class Block(nn.Module):
    """A transformer block: x + ls1(attention(norm1 x)), then x + ls2(ffn(norm2 x)). As in the official code, ls1 and
    ls2 multiply the outputs: folded into the weights, as in `nn.block`, they would round differently."""

    def __init__(self, architecture: Architecture, index: int) -> None:
        super().__init__()
        dim, start = architecture.embed_dim, architecture.qknorm_start
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = Attention(dim, architecture.num_heads, start is not None and index >= start)
        self.ls1 = LayerScale(dim, 1.0)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = (Mlp if architecture.ffn == "mlp" else SwiGLU)(dim, MLP_RATIO * dim)
        self.ls2 = LayerScale(dim, 1.0)

    def forward(self, x: Tensor, rotation: Tensor | None) -> Tensor:
        """Returns the tokens after the block, [b, T, E] as `x`."""
        x = x + self.attn.proj(self.attn(self.norm1(x), rotation)) * self.ls1.gamma
        out: Tensor = x + self.mlp.last(self.mlp.hidden(self.norm2(x))) * self.ls2.gamma
        return out


class DA3Backbone(nn.Module):
    """The backbone. Letters: N images, each a scene of one view; P patches; E width; D channels of an out layer, 2 E
    or E.

    The position table and the rotary tables of the last grid are non-persistent buffers. They are computed without a
    gradient when the grid changes, and again after .to() or new weights: the rotary ones are always float32.
    """

    resampled: Tensor | None  # [1, 1 + P, E]; None at the table's own grid
    local_rotation: Tensor | None  # [2, 1 + P, d]
    global_rotation: Tensor | None  # [2, 1 + P, d]

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        dim, heads = architecture.embed_dim, architecture.num_heads
        if dim % heads or (architecture.rope_start is not None and dim // heads % 4):
            raise ValueError(f"num_heads={heads}: {dim} channels must make heads of whole multiples of 4 channels")
        self.architecture = architecture
        self.patch_embed = PatchEmbed(architecture.patch_size, dim)
        self.own_grid = self.patch_embed.grid(architecture.img_size, architecture.img_size)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        if architecture.alt_start is not None:  # of the reference view, which a single view is, and of any other
            self.camera_token = nn.Parameter(torch.randn(1, 2, dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + self.own_grid[0] * self.own_grid[1], dim))
        self.blocks = nn.ModuleList(Block(architecture, index) for index in range(architecture.depth))
        self.norm = nn.LayerNorm(dim, eps=1e-5)
        nn.init.trunc_normal_(self.pos_embed, std=0.02)  # zeros officially, where only trained weights are used
        for name in TABLES:
            self.register_buffer(name, None, persistent=False)
        self.forget_tables()
        self.register_load_state_dict_post_hook(DA3Backbone.forget_tables)  # type: ignore[no-untyped-call]

    def forget_tables(self, _: Any = None) -> None:
        """Drops the tables, so that the next forward pass computes them. Call it after weights changed in place."""
        self.grid: tuple[int, int] | None = None
        for name in TABLES:
            setattr(self, name, None)

    def _apply(self, *args: Any, **kwargs: Any) -> Self:
        """Drops the tables before the module is moved or cast: .to(), .half() and .cuda() call this method."""
        self.forget_tables()
        moved: Self = super()._apply(*args, **kwargs)  # type: ignore[no-untyped-call]
        return moved

    @torch.no_grad()
    def _make_tables(self, grid: tuple[int, int]) -> None:
        table, device = self.pos_embed, self.pos_embed.device
        self.resampled = None
        if grid != self.own_grid:
            patches = resample_positions(table[:, 1:], self.own_grid, grid, OFFSET)
            self.resampled = torch.cat([table[:, :1], patches], dim=1)
        if self.architecture.rope_start is not None:
            head_dim = self.architecture.embed_dim // self.architecture.num_heads
            self.local_rotation = rotation_table(local_positions(grid, device), head_dim)
            self.global_rotation = rotation_table(global_positions(grid, device), head_dim)
        self.grid = grid

    def embed(self, images: Tensor) -> Tensor:
        """Returns the tokens [N, 1 + P, E] of images [N, 3, H, W] that the first block reads. Raises ValueError for
        sides that are no multiples of the patch size."""
        grid = self.patch_embed.grid(*images.shape[-2:])
        if grid != self.grid:
            self._make_tables(grid)
        cls = self.cls_token.expand(images.shape[0], -1, -1)
        return torch.cat([cls, self.patch_embed(images)], dim=1) + (
            self.pos_embed if self.resampled is None else self.resampled
        )

    def stream(self, images: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Yields the raw residual stream after each block, computed lazily: [N, 1 + P, E] after the most recent local
        block, and after this block. Both are the same for a local block."""
        spec = self.architecture
        local = x = self.embed(images)
        for index, block in enumerate(self.blocks):
            if index == spec.alt_start:  # the camera token also in `local`: it is officially written into the stream
                camera = self.camera_token[:, :1].expand(x.shape[0], -1, -1)
                local = x = torch.cat([camera, x[:, 1:]], dim=1)
            rotates = spec.rope_start is not None and index >= spec.rope_start
            table = self.global_rotation if spec.is_global(index) else self.local_rotation
            x = block(x, table if rotates else None)
            local = local if spec.is_global(index) else x
            yield local, x

    def out_layers(self, images: Tensor, blocks: Collection[int]) -> list[tuple[Tensor, Tensor]]:
        """Returns the patch tokens [N, P, D] and the special token [N, D], which is never normed, of each of these
        blocks, in ascending order."""
        return [self._out_layer(*pair) for index, pair in enumerate(self.stream(images)) if index in blocks]

    def _out_layer(self, local: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        special, patches = x[:, 0], self.norm(x[:, 1:])
        if not self.architecture.cat_token:
            return patches, special
        return torch.cat([local[:, 1:], patches], dim=-1), torch.cat([local[:, 0], special], dim=-1)

    def forward(self, images: Tensor, layer: int | None = None) -> Tensor:
        """Returns the patch tokens [N, P, D] of the last block, which is the last out layer in every release. With
        `layer` it returns those of the official feature export: norm(x) of that block alone, [N, P, E]."""
        last = self.architecture.depth - 1 if layer is None else layer
        local, x = next(islice(self.stream(images), last, None))
        tokens: Tensor = self._out_layer(local, x)[0] if layer is None else self.norm(x[:, 1:])
        return tokens
