"""The layout of DINOv2, in and out, which has the names of `vit`, and those of DINO v1 and iBOT, which differ in some.

Models built with block_chunks name their blocks blocks.<chunk>.<i> instead of blocks.<i>. DINO v1 has neither a mask
token nor LayerScale. iBOT calls the one masked_embed and the other, which few of its models have, gamma_1 and gamma_2.
Follows facebookresearch/dinov2 @ b8931f7 (models/vision_transformer.py, utils/utils.py), facebookresearch/dino
@ 7c446df (vision_transformer.py) and bytedance/ibot @ c24f870 (models/vision_transformer.py).
"""

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from dinoswap.nn.vit import VisionTransformer
from dinoswap.nn.weights.files import WeightFile
from dinoswap.nn.weights.layout import Named, infer_architecture
from dinoswap.nn.weights.names import renamed
from dinoswap.nn.weights.written import tensors_of

EXPLICIT = ("num_heads", "interpolate_offset", "interpolate_antialias")
"""Arguments of VisionTransformer that change its outputs and cannot be read off its tensors."""
OF_IBOT = {"masked_embed": "mask_token", ".gamma_1": ".ls1.gamma", ".gamma_2": ".ls2.gamma"}


def knows(file: WeightFile) -> bool:
    """Tells whether the names are those of this layout."""
    return "cls_token" in file.tensors


def read(file: WeightFile) -> Named:
    """Returns the tensors by our names."""
    state = {re.sub(r"^blocks\.\d+\.(\d+)\.", r"blocks.\1.", key): value for key, value in file.tensors.items()}
    return Named(renamed(state, OF_IBOT), dict(file.stated))


def completed(state: Mapping[str, Tensor], stated: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Returns the arguments of VisionTransformer for a network with a position table, and those in `EXPLICIT` that
    `stated` does not have. They are as in the published models: 64 channels per head, and a resampling that depends on
    whether there are registers."""
    inferred = infer_architecture(state, stated.get("num_heads"), stated.get("img_size"))
    with_registers = bool(inferred["registers"])
    published = {"interpolate_offset": 0.0 if with_registers else 0.1, "interpolate_antialias": with_registers}
    architecture = inferred | published | dict(stated)
    return architecture, [f"{name} {architecture[name]}" for name in EXPLICIT if name not in stated]


def export(backbone: VisionTransformer, block_chunks: int = 0) -> dict[str, Tensor]:
    """Returns the backbone's weights (detached, on the CPU) with the official names for a model of `block_chunks`.
    Raises ValueError where these do not divide the depth, and for a network that dinov2's models cannot be."""
    if unlike := _unlike_dinov2(backbone):
        raise ValueError(f"{unlike}: dinov2's models have no such network, and its layout cannot say it")
    depth = len(backbone.blocks)
    if block_chunks and (block_chunks < 0 or depth % block_chunks):
        raise ValueError(f"block_chunks={block_chunks}: must divide the depth of {depth}, or be 0")

    def rename(key: str) -> str:
        if not block_chunks or not key.startswith("blocks."):
            return key
        _, index, rest = key.split(".", 2)
        return f"blocks.{int(index) // (depth // block_chunks)}.{index}.{rest}"

    return {rename(key): value for key, value in tensors_of(backbone).items()}


def _unlike_dinov2(backbone: VisionTransformer) -> str:
    """Returns what of a backbone a file in dinov2's layout would be silent about, "" where it is nothing: a model that
    is built from such a file would compute something else."""
    norm = backbone.norm
    unlike = {
        "positions without a table (position=rope)": backbone.pos_embed is None,
        "model.stem": bool(backbone.patch_embed.stem_layers),
        "model.norm": not isinstance(norm, nn.LayerNorm),
        "model.norm_eps": isinstance(norm, nn.LayerNorm) and norm.eps != 1e-6,
        "model.cls_norm": backbone.cls_norm is not None,
        "model.local_cls_norm": backbone.local_cls_norm is not None,
        "norms of queries and keys": any(".q_norm." in name for name, _ in backbone.named_parameters()),
    }
    return ", ".join(name for name, differs in unlike.items() if differs)
