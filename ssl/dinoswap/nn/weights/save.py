"""Writes a backbone in the layout of the official code that has such networks."""

from torch import Tensor

from dinoswap.nn.vit import VisionTransformer
from dinoswap.nn.weights import dinov2, dinov3


def exported(backbone: VisionTransformer, block_chunks: int = 0) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Returns the backbone's weights (detached, on the CPU), and metadata for a safetensors file with them: in dinov2's
    layout where there is a table of positions, in dinov3's otherwise. `block_chunks` is that of a dinov2 model. Raises
    ValueError where this does not divide the depth, and for a network that the code of the layout has not."""
    if backbone.pos_embed is not None:
        return dinov2.export(backbone, block_chunks), dinov2.metadata(backbone)
    if block_chunks:
        raise ValueError(f"block_chunks={block_chunks}: dinov3's models, whose layout this is, have none; leave it out")
    return dinov3.export(backbone), dinov3.metadata(backbone)
