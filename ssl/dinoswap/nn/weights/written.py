"""What every layout is written from: a backbone's tensors, and what they do not show; and what libraries compute in
another way.
"""

from typing import Any, cast

import torch
from torch import Tensor, nn

from dinoswap.nn.block import Block
from dinoswap.nn.vit import VisionTransformer
from dinoswap.position.rope import TYPES, Rope


def explicit_arguments(backbone: VisionTransformer) -> dict[str, Any]:
    """Returns the arguments of VisionTransformer that change its outputs and that its tensors do not show, by name, as
    JSON has them. `position` is that of rotary positions, without what augments them in training; `img_size` (H, W) in
    pixels is that of the crops that the network was made for."""
    attention = cast(Block, backbone.blocks[0]).attn
    return {
        "num_heads": attention.num_heads,
        "key_bias": attention.key_bias,
        "norm_eps": cast(nn.LayerNorm | nn.RMSNorm, backbone.norm).eps,
        "img_size": [side * backbone.patch_size for side in backbone.grid],
        **_positions(backbone),
        **_stem(backbone),
    }


def _positions(backbone: VisionTransformer) -> dict[str, Any]:
    """Returns how a table is resampled, or the rotation."""
    position = backbone.position
    if not isinstance(position, Rope):
        return {
            "interpolate_offset": backbone.interpolate_offset,
            "interpolate_antialias": backbone.interpolate_antialias,
        }
    (dtype,) = (name for name, type_ in TYPES.items() if type_ == position.dtype)
    rotation = {"base": position.base, "periods": position.limits, "normalise": position.normalise, "dtype": dtype}
    return {"position": rotation}


def _stem(backbone: VisionTransformer) -> dict[str, Any]:
    """Returns the convolutions before that of patches, whose own kernel then does not show the patch size."""
    stem = backbone.patch_embed.stem_layers
    return {"patch_size": backbone.patch_size, "stem": [list(layer) for layer in stem]} if stem else {}


def unlike_libraries(backbone: VisionTransformer) -> list[str]:
    """Returns what of a backbone neither timm nor transformers can compute, as the config names it."""
    explicit, unlike = explicit_arguments(backbone), []
    if backbone.patch_embed.stem_layers:
        unlike.append("model.stem")
    if not isinstance(backbone.norm, nn.LayerNorm):
        unlike.append("model.norm=rmsnorm")
    if backbone.cls_norm is not None:
        unlike.append("model.cls_norm")
    if any(".q_norm." in name for name, _ in backbone.named_parameters()):
        unlike.append("norms of queries and keys")
    if backbone.pos_embed is not None and len(set(backbone.grid)) > 1:
        unlike.append(f"a table that is not square, of {backbone.grid[0]} x {backbone.grid[1]}")
    rotation = explicit.get("position", {})
    if rotation.get("periods") is not None:
        unlike.append(f"position.periods={rotation['periods']}")
    if rotation.get("normalise", "separate") != "separate":
        unlike.append(f"position.normalise={rotation['normalise']}")
    return unlike


def rounded_rotation(backbone: VisionTransformer) -> list[str]:
    """Returns the sentence that a rotation in bfloat16 is computed in float32 elsewhere, nothing for another one."""
    if explicit_arguments(backbone)["position"]["dtype"] == "fp32":
        return []
    return ["position.dtype=bf16: rotations are computed in float32 there, so all features differ a little"]


def resamples_otherwise(backbone: VisionTransformer, offset: float, antialias: bool) -> list[str]:
    """Returns the sentence that a table is resampled with another `offset` and `antialias` elsewhere, nothing where
    these are the backbone's."""
    ours = (backbone.interpolate_offset, backbone.interpolate_antialias)
    if ours == (offset, antialias):
        return []
    height, width = (side * backbone.patch_size for side in backbone.grid)
    return [
        f"model.interpolate_offset={ours[0]}, interpolate_antialias={ours[1]}: positions are resampled with {offset} "
        f"and {antialias} there, so features of images of other sizes than {height} x {width} differ"
    ]


def with_layerscale(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Returns `state` with a LayerScale of ones where there is none, for libraries whose networks all have one."""
    blocks = sorted({key.split(".")[1] for key in state if key.startswith("blocks.")}, key=int)
    ones = torch.ones_like(state["cls_token"].flatten())
    return {f"blocks.{block}.{name}.gamma": ones.clone() for block in blocks for name in ("ls1", "ls2")} | state


def tensors_of(backbone: VisionTransformer) -> dict[str, Tensor]:
    """Returns the backbone's weights, detached, on the CPU, and sharing no memory with it."""
    return {name: value.detach().cpu().clone() for name, value in backbone.state_dict().items()}
