"""A DINOv3 weight file as the teacher: the patch tokens of one block after the final norm.

Files of Meta, of timm and of transformers are read. Positions are computed in float32.
Follows facebookresearch/dinov3 @ 6876159 (models/vision_transformer.py, hub/backbones.py); the statistics of satellite
images are those of timm 1.0 (models/eva.py).
"""

from typing import Literal

from dinoswap.nn.sizes import Size
from dinoswap.nn.vit import VisionTransformer, vit
from dinoswap.nn.weights.dinov3 import EPS, released_position
from dinoswap.teacher.base import IMAGENET_MEAN, IMAGENET_STD, Triple
from dinoswap.teacher.published import PublishedTeacher

PATCH_SIZE, REGISTERS = 16, 4
"""The side of a patch in pixels and the number of registers of every published model."""
STATISTICS: dict[str, tuple[Triple, Triple]] = {
    "lvd1689m": (IMAGENET_MEAN, IMAGENET_STD),
    "sat493m": ((0.430, 0.411, 0.296), (0.213, 0.156, 0.143)),
}
"""Mean and deviation of the pixels that the network was trained with."""


class Dinov3Teacher(PublishedTeacher):
    """The normed patch tokens of one block."""

    kind = "dinov3"
    published_as = "DINOv3"
    licence = "DINOv3 License, also for derivative works,"
    has_table = False

    def __init__(
        self,
        ckpt_path: str,
        *,
        variant: str | None,
        layer: int | None,
        trained_on: Literal["lvd1689m", "sat493m"],
    ) -> None:
        """`variant` is the size of a network with random weights, None the small one; `layer` None is the last block.
        `trained_on` are the images whose statistics the network expects."""
        mean, std = STATISTICS[trained_on]
        super().__init__(ckpt_path, variant=variant, num_heads=None, layer=layer, mean=mean, std=std)

    def random(self, size: Size, num_heads: int | None) -> VisionTransformer:
        """Returns a network with random weights."""
        return vit(
            size,
            patch_size=PATCH_SIZE,
            num_heads=num_heads,
            registers=REGISTERS,
            norm_eps=EPS,
            key_bias=False,
            position=released_position(),
        )
