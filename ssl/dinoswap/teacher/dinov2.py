"""A DINOv2 weight file as the teacher: the patch tokens of one block after the final norm.

Weights do not show the number of attention heads. Follows facebookresearch/dinov2 @ b8931f7
(models/vision_transformer.py, hub/backbones.py).
"""

from dinoswap.nn.sizes import Size
from dinoswap.nn.vit import VisionTransformer, vit
from dinoswap.teacher.published import PublishedTeacher

PATCH_SIZE = 14
"""Patch size in pixels of every published model."""


class Dinov2Teacher(PublishedTeacher):
    """The normed patch tokens of one block."""

    kind = "dinov2"
    published_as = "DINOv2"
    licence = "Apache-2.0"
    has_table = True

    def __init__(self, ckpt_path: str, *, variant: str | None, num_heads: int | None, layer: int | None) -> None:
        """`variant` is the size of a network with random weights, None the small one. `num_heads` None means 64
        channels per head, `layer` None is the last block."""
        super().__init__(ckpt_path, variant=variant, num_heads=num_heads, layer=layer)

    def random(self, size: Size, num_heads: int | None) -> VisionTransformer:
        """Returns a network with random weights."""
        return vit(size, patch_size=PATCH_SIZE, num_heads=num_heads)
