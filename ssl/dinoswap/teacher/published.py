"""A network that Meta published as the teacher: the patch tokens of one block after the final norm.

The architecture is read off the weights, in whichever layout they are.
"""

from abc import abstractmethod
from typing import ClassVar, cast

from torch import Tensor

from dinoswap.files.weights import digest_of, weight_file
from dinoswap.nn.block import Block
from dinoswap.nn.sizes import SIZES, Size
from dinoswap.nn.vit import VisionTransformer
from dinoswap.nn.weights.load import load_backbone
from dinoswap.teacher.base import IMAGENET_MEAN, IMAGENET_STD, Teacher, Triple, fixed_seed


class PublishedTeacher(Teacher):
    """The base class of these teachers: the normed patch tokens of one block."""

    kind: ClassVar[str]
    """The name of the option, with which the identity begins."""
    published_as: ClassVar[str]
    licence: ClassVar[str]
    has_table: ClassVar[bool]
    """Whether these networks have a table of positions, and are not those of another option."""

    def __init__(
        self,
        ckpt_path: str,
        *,
        variant: str | None,
        num_heads: int | None,
        layer: int | None,
        mean: Triple = IMAGENET_MEAN,
        std: Triple = IMAGENET_STD,
    ) -> None:
        """`variant` is the size of a network with random weights, None the small one. `num_heads` None means 64
        channels per head, `layer` None is the last block. Raises ValueError for settings that do not apply and for
        weights that do not fit."""
        if ckpt_path and variant is not None:
            raise ValueError(f"variant={variant}: the architecture is read off the weights; leave it null")
        path, notes = weight_file(ckpt_path) if ckpt_path else None, list[str]()
        with fixed_seed():
            if path is None:
                backbone = self.random(_size(variant or "small"), num_heads)
            else:
                weights = load_backbone(path, num_heads)
                backbone, notes = weights.network(), weights.notes
        if (backbone.pos_embed is not None) != self.has_table:
            positions = "rotary positions" if self.has_table else "a table of positions"
            other = "dinov3" if self.has_table else "dinov2"
            raise ValueError(f"ckpt_path={ckpt_path}: has {positions}; choose teacher@da3.teacher={other}")
        depth, heads = len(backbone.blocks), cast(Block, backbone.blocks[0]).attn.num_heads
        backbone.blocks = backbone.blocks[: _block(layer, depth) + 1]  # later blocks are not needed
        name = f"{self.kind} {backbone.embed_dim} channels, {heads} heads, {len(backbone.blocks)} of {depth} blocks"
        if path is None:
            weights_of = "random weights"
            origin = f"with RANDOM WEIGHTS, of use for tests alone; set ckpt_path to a {self.published_as} weight file"
        else:
            weights_of = f"sha256:{digest_of(path)[:16]}"
            published = f"if the file is one of those that Meta published as {self.published_as}"
            origin = "; ".join([f"of {path}, licence: {self.licence} {published}", *notes])
        super().__init__(
            embed_dim=backbone.embed_dim,
            patch_size=backbone.patch_size,
            identity=f"{name} {weights_of}",
            notice=f"teacher: {name} {origin}",
            mean=mean,
            std=std,
        )
        self.backbone = backbone

    @abstractmethod
    def random(self, size: Size, num_heads: int | None) -> VisionTransformer:
        """Returns a network of this kind with random weights."""

    def forward(self, images: Tensor) -> Tensor:
        """Returns the patch tokens [N, P, D] of images [N, 3, H, W]."""
        patch: Tensor = self.backbone(images).patch
        return patch


def _size(variant: str) -> Size:
    """Returns the size that `variant` names. Raises ValueError where there is none of this name."""
    if variant not in SIZES:
        raise ValueError(f"variant={variant}: without ckpt_path, use one of {', '.join(SIZES)}")
    return variant


def _block(layer: int | None, depth: int) -> int:
    """Returns the index of the block that is read, from 0. Raises ValueError where there is no such block."""
    if layer is None:
        return depth - 1
    if not -depth <= layer < depth:
        raise ValueError(f"layer={layer}: the network has {depth} blocks; use 0 to {depth - 1}, or null for the last")
    return layer % depth
