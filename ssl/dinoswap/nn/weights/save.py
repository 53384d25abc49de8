"""Writes a backbone in our own layout, or in that of the official code that has such networks."""

import json
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from dinoswap.nn.vit import VisionTransformer
from dinoswap.nn.weights import dinov2, dinov3
from dinoswap.nn.weights.files import LAYOUT, OWN
from dinoswap.nn.weights.written import explicit_arguments, tensors_of


def own(backbone: VisionTransformer, beside: Mapping[str, Any]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Returns the backbone's weights by the names of `vit`, and metadata for a safetensors file with them: all that the
    tensors do not show, and what stands in `beside`. Every network can be written so."""
    return tensors_of(backbone), in_metadata({LAYOUT: OWN, **explicit_arguments(backbone), **beside})


def in_metadata(values: Mapping[str, Any]) -> dict[str, str]:
    """Returns the metadata of a safetensors file that states these values, texts as they are and others as JSON;
    `format` marks its tensors as torch's."""
    texts = {name: value if isinstance(value, str) else json.dumps(value) for name, value in values.items()}
    return {"format": "pt", **texts}


def exported(backbone: VisionTransformer, block_chunks: int = 0) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Returns the backbone's weights (detached, on the CPU), and metadata for a safetensors file with them: in dinov2's
    layout where there is a table of positions, in dinov3's otherwise. `block_chunks` is that of a dinov2 model. Raises
    ValueError where this does not divide the depth, and for a network that the code of the layout has not."""
    if backbone.pos_embed is not None:
        return dinov2.export(backbone, block_chunks), in_metadata(explicit_arguments(backbone))
    if block_chunks:
        raise ValueError(f"block_chunks={block_chunks}: dinov3's models, whose layout this is, have none; leave it out")
    return dinov3.export(backbone), in_metadata(explicit_arguments(backbone))
