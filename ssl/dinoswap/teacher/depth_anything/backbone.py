"""The backbone of Depth Anything 3, for scenes of a single view: every image is a separate scene.

A DINOv2 vision transformer without registers, to which are added, each from a block on:
 - LayerNorm of queries and keys in each head, and rotary positions (`rope`);
 - a learnt camera token that takes the place of the class token, and blocks that in turns attend within a view (local)
   and across all views (global). With one view both attend to the same tokens; the positions alone differ.
Tokens of an out layer are [x of the most recent local block, norm(x of this block)]: the first half is the raw residual
stream.
Follows model/dinov2/vision_transformer.py of ByteDance-Seed/Depth-Anything-3 @ 2c21ea8, with its parameter names, for
B = N scenes of S = 1 view. With batches as one scene (B = 1, S = N) the tokens of an image would depend on the others.
"""

from collections.abc import Collection, Iterator, Sequence
from itertools import islice

import torch
from torch import Tensor, nn

from dinoswap.nn.packs import Pack, split
from dinoswap.nn.vit import VisionTransformer
from dinoswap.teacher.depth_anything.rope import DA3Position
from dinoswap.teacher.depth_anything.variants import Architecture


class DA3Backbone(VisionTransformer):
    """The backbone. Letters: N images, each a scene of one view; P patches; E width; D channels of an out layer, 2 E
    or E."""

    def __init__(self, architecture: Architecture) -> None:
        super().__init__(
            img_size=architecture.img_size,
            patch_size=architecture.patch_size,
            embed_dim=architecture.embed_dim,
            depth=architecture.depth,
            num_heads=architecture.num_heads,
            ffn=architecture.ffn,
            layerscale=1.0,
            position=DA3Position(architecture),
            qk_norm_from=architecture.qknorm_start,
        )
        self.architecture = architecture
        self.norm = nn.LayerNorm(architecture.embed_dim, eps=1e-5)
        del self.mask_token  # which no file has, and no image needs
        if architecture.alt_start is not None:  # of the reference view, which a single view is, and of any other
            self.camera_token = nn.Parameter(torch.randn(1, 2, architecture.embed_dim))

    def _run(self, index: int, packs: Sequence[Pack], grids: Sequence[tuple[int, int]], single: bool) -> list[Pack]:
        """Returns the packs after the block of this index. Those from `alt_start` on see the camera token."""
        if index == self.architecture.alt_start:
            packs = [
                pack._replace(x=torch.cat([self._with_camera(x).flatten(0, 1) for x in split(pack.x, pack.shapes)]))
                for pack in packs
            ]
        return super()._run(index, packs, grids, single)

    def _with_camera(self, x: Tensor) -> Tensor:
        """Returns the sequences x [b, T, D] with the camera token of the first view in place of the class token."""
        return torch.cat([self.camera_token[:, :1].expand(x.shape[0], -1, -1), x[:, 1:]], dim=1)

    def layers(self, images: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Yields the tokens [N, 1 + P, E] after the most recent local block and after this block, for each block,
        without a norm. Both are the same for a local block."""
        for index, x in enumerate(self.stream(images)):
            if not self.architecture.is_global(index):
                local = x
            elif index == self.architecture.alt_start:  # officially the camera token is written into the older tokens
                local = self._with_camera(local)
            yield local, x

    def out_layers(self, images: Tensor, blocks: Collection[int]) -> list[tuple[Tensor, Tensor]]:
        """Returns the patch tokens [N, P, D] and the special token [N, D], which is never normed, of each of these
        blocks, in ascending order."""
        return [self._out_layer(*pair) for index, pair in enumerate(self.layers(images)) if index in blocks]

    def _out_layer(self, local: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the patch tokens, normed, and the special token of an out layer. With `cat_token` both have the
        channels of the last local block before their own."""
        special, patches = x[:, 0], self.norm(x[:, 1:])
        if not self.architecture.cat_token:
            return patches, special
        return torch.cat([local[:, 1:], patches], dim=-1), torch.cat([local[:, 0], special], dim=-1)

    def forward(self, images: Tensor, layer: int | None = None) -> Tensor:  # type: ignore[override]
        """Returns the patch tokens [N, P, D] of the last block, which is the last out layer in every release. With
        `layer` it returns those of the official feature export: norm(x) of that block alone, [N, P, E]."""
        last = self.architecture.depth - 1 if layer is None else layer
        local, x = next(islice(self.layers(images), last, None))
        tokens: Tensor = self._out_layer(local, x)[0] if layer is None else self.norm(x[:, 1:])
        return tokens
