"""What every layout is read to: tensors by the names of `vit`, and which arguments of VisionTransformer they show."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from dinoswap.nn.weights.names import require

HEAD_WIDTH = 64
"""Channels per attention head of nearly all published models; it cannot be read off the weights."""
EVALUATED_AT = 224
"""Side in pixels of the crops that published models are evaluated on."""


@dataclass
class Named:
    """A backbone's tensors by the names of `vit`. `stated` are arguments of VisionTransformer that the file says beside
    them, `notes` sentences for the user."""

    state: dict[str, Tensor]
    stated: dict[str, Any]
    notes: list[str] = field(default_factory=list)


def infer_architecture(
    state: Mapping[str, Tensor], num_heads: int | None = None, img_size: tuple[int, int] | None = None
) -> dict[str, Any]:
    """Returns the arguments of VisionTransformer that a state dict with its names shows.

    The number of heads is embed_dim / 64 unless given; `img_size` (H, W) is needed for a table that is not square.
    Raises ValueError where the tensors do not determine the architecture.
    """
    require(state, "patch_embed.proj.weight", "blocks.0.norm1.weight")
    dim, _, patch_size, _ = state["patch_embed.proj.weight"].shape
    if num_heads is None and dim % HEAD_WIDTH:
        raise ValueError(f"embed_dim={dim}: not a multiple of {HEAD_WIDTH}; give num_heads")
    if img_size is None:
        side = table_side(state["pos_embed"]) if "pos_embed" in state else EVALUATED_AT // patch_size
        img_size = (side * patch_size, side * patch_size)
    return {
        "img_size": img_size,
        "patch_size": patch_size,
        "embed_dim": dim,
        "depth": len({key.split(".")[1] for key in state if key.startswith("blocks.")}),
        "num_heads": dim // HEAD_WIDTH if num_heads is None else num_heads,
        **_ffn(state, dim),
        "registers": state["register_tokens"].shape[1] if "register_tokens" in state else 0,
        "layerscale": 1e-5 if "blocks.0.ls1.gamma" in state else None,
        "qkv_bias": "blocks.0.attn.qkv.bias" in state,
        "qk_norm_from": min((int(key.split(".")[1]) for key in state if key.endswith(".q_norm.weight")), default=None),
        "norm": "layernorm" if "blocks.0.norm1.bias" in state else "rmsnorm",
        "cls_norm": "cls_norm.weight" in state,
        "local_cls_norm": "local_cls_norm.weight" in state,
    }


def _ffn(state: Mapping[str, Tensor], dim: int) -> dict[str, Any]:
    """Returns the arguments of the feed-forward layers, as VisionTransformer computes their width from them."""
    if "blocks.0.mlp.w12.weight" not in state:
        require(state, "blocks.0.mlp.fc1.weight")
        return {"ffn": "mlp", "mlp_ratio": ratio(state["blocks.0.mlp.fc1.weight"].shape[0], dim)}
    width = state["blocks.0.mlp.w12.weight"].shape[0] // 2
    align = math.gcd(width, 8)
    return {"ffn": "swiglu", "mlp_ratio": ratio(math.ceil(1.5 * width), dim), "ffn_align": align}


def ratio(hidden: int, dim: int) -> float:
    """Returns hidden / dim, or the next number above it where its product with `dim` would be below `hidden`."""
    quotient = hidden / dim
    return quotient if int(dim * quotient) == hidden else math.nextafter(quotient, math.inf)


def table_side(pos_embed: Tensor) -> int:
    """Returns the patches along a side of a square position table [1, 1 + N, D]. Raises ValueError where it is not
    square."""
    positions = pos_embed.shape[1] - 1
    side = math.isqrt(positions)
    if side * side != positions:
        raise ValueError(
            f"pos_embed: a table of {positions} positions is not square; give img_size and do not resample"
        )
    return side
