"""timm's names of the networks of DINOv2 and DINOv3, in and out, where they differ from the official ones.

timm has no mask token and calls registers reg_token. Of DINOv2 it gives the class token no position where there are
registers, packs SwiGLU into mlp.fc1 and mlp.fc2, and resamples the table to the size of the grid, with antialiasing. Of
DINOv3 it has no bias of keys, calls LayerScale gamma_1 and gamma_2, and the parts of a SwiGLU fc1_g, fc1_x and fc2.
Follows the names of timm 1.0.
"""

import math
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from dinoswap.nn.vit import VisionTransformer
from dinoswap.nn.weights import dinov2
from dinoswap.nn.weights.dinov3 import PERIODS
from dinoswap.nn.weights.files import WeightFile
from dinoswap.nn.weights.layout import Named, infer_architecture, ratio
from dinoswap.nn.weights.names import cut, joined, renamed
from dinoswap.nn.weights.written import (
    explicit_arguments,
    resamples_otherwise,
    rounded_rotation,
    tensors_of,
    unlike_libraries,
    with_layerscale,
)

RESAMPLING = {"interpolate_offset": 0.0, "interpolate_antialias": True}
OF_DINOV3 = {"register_tokens": "reg_token", ".ls1.gamma": ".gamma_1", ".ls2.gamma": ".gamma_2"}


def knows(file: WeightFile) -> bool:
    """Tells whether the names are timm's, where they differ from the official ones. Of networks without a mask token
    those with LayerScale, or with rotary positions, are timm's; DINO v1's have neither."""
    names = file.tensors
    rotary = "pos_embed" not in names and PERIODS not in names
    without_mask = "mask_token" not in names and ("blocks.0.ls1.gamma" in names or rotary)
    return "cls_token" in names and ("reg_token" in names or _packs_swiglu(names) or without_mask)


def read(file: WeightFile) -> Named:
    """Returns the tensors by our names, with a position of 0 where the class token has none."""
    return _read_dinov2(file) if "pos_embed" in file.tensors else _read_dinov3(file)


def _read_dinov3(file: WeightFile) -> Named:
    """Returns, by our names, the tensors of a network of timm with rotary positions. A bias of queries and values alone
    is completed by zeros for the keys."""
    parts = (".attn.q_bias", ".attn.k_bias", ".attn.v_bias")
    stated = {**file.stated, "key_bias": any(name.endswith((parts[1], ".attn.qkv.bias")) for name in file.tensors)}
    tensors = joined(file.tensors, parts, ".attn.qkv.bias", absent_is_zero=True)
    if any(".mlp.fc1_g." in name for name in tensors):
        for kind in ("weight", "bias"):
            tensors = joined(tensors, (f".mlp.fc1_g.{kind}", f".mlp.fc1_x.{kind}"), f".mlp.w12.{kind}")
        tensors = renamed(tensors, {".mlp.fc2.": ".mlp.w3."})
    return Named(renamed(tensors, {theirs: ours for ours, theirs in OF_DINOV3.items()}), stated)


def _read_dinov2(file: WeightFile) -> Named:
    """Returns, by our names, the tensors of a network of timm with a table of positions. Where there are registers its
    table is of patches alone, and gets a row of zeros for the class token."""
    tensors = dict(file.tensors)
    if "reg_token" in tensors:
        tensors["register_tokens"] = tensors.pop("reg_token")
        table = tensors["pos_embed"]
        if math.isqrt(table.shape[1]) ** 2 == table.shape[1]:
            tensors["pos_embed"] = torch.cat([torch.zeros_like(tensors["cls_token"]), table], dim=1)
    if _packs_swiglu(tensors):
        tensors = renamed(tensors, {".mlp.fc1.": ".mlp.w12.", ".mlp.fc2.": ".mlp.w3."})
    return dinov2.read(replace(file, tensors=tensors, stated=RESAMPLING | file.stated))


def _packs_swiglu(tensors: Mapping[str, Tensor]) -> bool:
    """Tells whether the first layer of the feed-forward part is twice as wide as the second one reads, as that of a
    packed SwiGLU is."""
    first, second = tensors.get("blocks.0.mlp.fc1.weight"), tensors.get("blocks.0.mlp.fc2.weight")
    return first is not None and second is not None and len(first) == 2 * second.shape[1]


# --- out --------------------------------------------------------------------------------------------------------------


def export(backbone: VisionTransformer) -> tuple[dict[str, Tensor], str]:
    """Returns the backbone's weights by timm's names, and the call that builds the network, up to its checkpoint_path.
    The mask token and a norm of local crops alone are left out; where there is no LayerScale there is one of ones.
    Raises ValueError for a network that timm cannot build."""
    if unlike := unlike_libraries(backbone):
        raise ValueError(f"{', '.join(unlike)}: timm's models have no such network, and its arguments cannot say it")
    explicit, state = explicit_arguments(backbone), with_layerscale(tensors_of(backbone))
    inferred = infer_architecture(state, explicit["num_heads"], tuple(explicit["img_size"]))
    state = {name: value for name, value in state.items() if name != "mask_token" and "local_cls_norm" not in name}
    arguments = {name: inferred[name] for name in ("patch_size", "embed_dim", "depth", "num_heads", "qkv_bias")}
    arguments["img_size"] = explicit["img_size"][0]
    gated = inferred["ffn"] == "swiglu"
    hidden = state[f"blocks.0.mlp.{'w3' if gated else 'fc2'}.weight"].shape[1]
    if "position" in explicit:
        model, eps = f"vit_small_{'plus_' * gated}patch16_dinov3", 1e-5
        arguments |= {"num_reg_tokens": inferred["registers"], "rope_temperature": explicit["position"]["base"]}
        arguments |= {"mlp_ratio": ratio(hidden, backbone.embed_dim), "global_pool": "token"}
        arguments |= {"swiglu_align_to": 1} if gated else {}
        biased_keys = inferred["qkv_bias"] and explicit["key_bias"]
        arguments |= {"attn_type": "rope"} if biased_keys else {}
        state = _as_dinov3(state, biased_keys)
    else:
        model, eps = f"vit_{'giant' if gated else 'small'}_patch14_{'reg4_' * bool(inferred['registers'])}dinov2", 1e-6
        arguments |= {"reg_tokens": inferred["registers"]}
        arguments |= {"mlp_ratio": ratio(hidden * (1 + gated), backbone.embed_dim)}
        arguments |= {} if differs(backbone) else {"dynamic_img_size": True}
        state = _as_dinov2(state)
    given = [f"{name}={value!r}" for name, value in arguments.items()]
    if explicit["norm_eps"] != eps:
        given.append(f"norm_layer=functools.partial(torch.nn.LayerNorm, eps={explicit['norm_eps']!r})")
    return state, f'timm.create_model("{model}", {", ".join(given)}'


def differs(backbone: VisionTransformer) -> list[str]:
    """Returns in which the network that `export` writes computes something else than the backbone, as sentences."""
    return rounded_rotation(backbone) if backbone.pos_embed is None else resamples_otherwise(backbone, 0.0, True)


def _as_dinov3(state: Mapping[str, Tensor], biased_keys: bool) -> dict[str, Tensor]:
    """Returns, by timm's names, the tensors of a network with rotary positions. Without `biased_keys` the bias is cut,
    and the part of the keys left out."""
    parts: dict[str, tuple[str, ...]] = {".mlp.w12.": (".mlp.fc1_g.", ".mlp.fc1_x.")}
    if not biased_keys:
        parts[".attn.qkv.bias"] = (".attn.q_bias", ".attn.k_bias", ".attn.v_bias")
    out = renamed(cut(state, parts), {**OF_DINOV3, ".mlp.w3.": ".mlp.fc2."})
    return {name: value for name, value in out.items() if not name.endswith(".k_bias")}


def _as_dinov2(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns, by timm's names, the tensors of a network with a table of positions. Where there are registers the class
    token's position is added to the class token, as timm's table has none for it."""
    out = renamed(state, {"register_tokens": "reg_token", ".mlp.w12.": ".mlp.fc1.", ".mlp.w3.": ".mlp.fc2."})
    if "reg_token" in out:  # then the table is of patches alone
        table = out["pos_embed"]
        out |= {"pos_embed": table[:, 1:].clone(), "cls_token": out["cls_token"] + table[:, :1]}
    return out
