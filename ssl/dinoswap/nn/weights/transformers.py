"""The layout of vision models of the package transformers, in and out, whose config.json lies in the same folder.

These are DINOv3ViTModel, which has rotary positions, and Dinov2Model, Dinov2WithRegistersModel and ViTModel, which have
a table. Queries, keys and values have a linear map each. A gated feed-forward layer computes
down(silu(gate(x)) * up(x)). A table is resampled to the size of the grid. Follows the names of transformers 4.56 and 5,
in files and in networks, which differ.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from dinoswap.files.weights import CONFIG, json_beside
from dinoswap.nn.vit import VisionTransformer
from dinoswap.nn.weights.files import WeightFile
from dinoswap.nn.weights.layout import Named, infer_architecture
from dinoswap.nn.weights.names import cut, joined, renamed
from dinoswap.nn.weights.written import (
    explicit_arguments,
    resamples_otherwise,
    rounded_rotation,
    tensors_of,
    unlike_libraries,
    with_layerscale,
)


@dataclass(frozen=True)
class Kind:
    """A model class of transformers: the `model_type` of its config.json is its key in KINDS. `arguments` are those of
    VisionTransformer that each of them has, `default_eps` is the epsilon of one whose config is not known."""

    model: str
    default_eps: float
    arguments: Mapping[str, Any] = field(default_factory=dict)


KINDS = {
    "dinov3_vit": Kind("DINOv3ViTModel", 1e-5),
    "dinov2": Kind("Dinov2Model", 1e-6, {"interpolate_offset": 0.0, "interpolate_antialias": False}),
    "dinov2_with_registers": Kind(
        "Dinov2WithRegistersModel", 1e-6, {"interpolate_offset": 0.0, "interpolate_antialias": True}
    ),
    "vit": Kind("ViTModel", 1e-12, {"interpolate_offset": 0.0, "interpolate_antialias": False}),
}
BLOCK = re.compile(r"^(?:encoder\.layer|model\.layer|layers?)\.")
NAMES = {
    **{f".attention.attention.{whole}.": f".attention.{part}_proj." for whole, part in
       (("query", "q"), ("key", "k"), ("value", "v"))},
    ".attention.output.dense.": ".attn.proj.",
    ".attention.o_proj.": ".attn.proj.",
    ".layernorm_before.": ".norm1.",
    ".layernorm_after.": ".norm2.",
    ".intermediate.dense.": ".mlp.fc1.",
    ".output.dense.": ".mlp.fc2.",
    ".mlp.weights_in.": ".mlp.w12.",
    ".mlp.weights_out.": ".mlp.w3.",
    ".layer_scale1.lambda1": ".ls1.gamma",
    ".layer_scale2.lambda1": ".ls2.gamma",
    "embeddings.patch_embeddings.projection.": "patch_embed.proj.",
    "embeddings.patch_embeddings.": "patch_embed.proj.",
    "embeddings.position_embeddings": "pos_embed",
    "embeddings.": "",
}  # fmt: skip
PLAIN = {".mlp.up_proj.": ".mlp.fc1.", ".mlp.down_proj.": ".mlp.fc2."}
GATED = {".mlp.down_proj.": ".mlp.w3."}
PARTS = tuple(f".attention.{part}_proj" for part in "qkv")


def knows(file: WeightFile) -> bool:
    """Tells whether the names are those of transformers."""
    return "embeddings.cls_token" in file.tensors


def read(file: WeightFile) -> Named:
    """Returns the tensors by our names. Raises ValueError for another model of transformers, and for one that
    VisionTransformer cannot be."""
    config = json_beside(file.path, CONFIG)
    kind = _kind(config, file.tensors)
    if any(name.startswith("pooler.") for name in file.tensors):
        raise ValueError(
            "pooler.dense: a layer behind the tokens, which this network has not; save the model without it, "
            "ViTModel.from_pretrained(FOLDER, add_pooling_layer=False).save_pretrained(OTHER)"
        )
    tensors = {BLOCK.sub("blocks.", name): value for name, value in file.tensors.items()}
    gated = any(".mlp.gate_proj." in name for name in tensors)
    _check_activation(config, "silu" if gated and kind == "dinov3_vit" else "gelu")
    stated = {**KINDS[kind].arguments, **_stated(config), **file.stated}
    notes = []
    if "norm_eps" not in stated:
        stated["norm_eps"] = KINDS[kind].default_eps
        notes.append(f"no {CONFIG} beside it: norm_eps {stated['norm_eps']}, {KINDS[kind].model}'s default")
    tensors = renamed(tensors, NAMES | (GATED if gated else PLAIN))
    tensors = {re.sub(r"^layernorm\.", "norm.", name): value for name, value in tensors.items()}
    stated["key_bias"] = any(name.endswith(f"{PARTS[1]}.bias") for name in tensors)
    tensors = joined(tensors, [f"{part}.bias" for part in PARTS], ".attn.qkv.bias", absent_is_zero=True)
    tensors = joined(tensors, [f"{part}.weight" for part in PARTS], ".attn.qkv.weight")
    for which in ("weight", "bias") if gated else ():
        tensors = joined(tensors, (f".mlp.gate_proj.{which}", f".mlp.up_proj.{which}"), f".mlp.w12.{which}")
    if "mask_token" in tensors:
        tensors["mask_token"] = tensors["mask_token"].flatten(0, -2)  # [1, 1, D], of some models -> [1, D]
    if "register_tokens" in tensors and not tensors["register_tokens"].shape[1]:
        del tensors["register_tokens"]
    return Named(tensors, stated, notes)


def _kind(config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str:
    """Returns the key in KINDS that config.json says or, without one, that the tensors have the names of. Raises
    ValueError for another model."""
    if "model_type" in config:
        model_type = str(config["model_type"])
    elif "embeddings.position_embeddings" not in tensors:
        model_type = "dinov3_vit"
    elif "embeddings.register_tokens" in tensors:
        model_type = "dinov2_with_registers"
    else:
        model_type = "dinov2" if any(".layer_scale1." in name for name in tensors) else "vit"
    if model_type not in KINDS:
        known = ", ".join(kind.model for kind in KINDS.values())
        raise ValueError(f"model_type={model_type} in {CONFIG}: another network; of transformers' models give {known}")
    return model_type


def _stated(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the arguments of VisionTransformer that config.json says beside the tensors."""
    stated = {"num_heads": "num_attention_heads", "norm_eps": "layer_norm_eps"}
    arguments = {ours: config[theirs] for ours, theirs in stated.items() if theirs in config}
    if "rope_theta" in config:
        arguments["position"] = {
            "base": config["rope_theta"],
            "periods": None,
            "normalise": "separate",
            "dtype": "fp32",
        }
    if "image_size" in config:
        size = config["image_size"]
        arguments["img_size"] = [size, size] if isinstance(size, int) else list(size)
    return arguments


def _check_activation(config: Mapping[str, Any], ours: str) -> None:
    """Raises ValueError for a network with another activation than ours have."""
    if config.get("hidden_act", ours) != ours:
        raise ValueError(f"hidden_act={config['hidden_act']} in {CONFIG}: this network is computed with {ours} alone")


# --- out --------------------------------------------------------------------------------------------------------------

SHARED = {".ls1.gamma": ".layer_scale1.lambda1", ".ls2.gamma": ".layer_scale2.lambda1"}
ROTARY = {
    **SHARED,
    "blocks.": "layer.",
    ".attn.proj.": ".attention.o_proj.",
    ".attn.": ".attention.",
    ".mlp.fc1.": ".mlp.up_proj.",
    ".mlp.fc2.": ".mlp.down_proj.",
    ".mlp.w3.": ".mlp.down_proj.",
    "patch_embed.proj.": "embeddings.patch_embeddings.",
}
WITH_TABLE = {
    **SHARED,
    "blocks.": "encoder.layer.",
    ".attn.proj.": ".attention.output.dense.",
    ".attn.q_proj.": ".attention.attention.query.",
    ".attn.k_proj.": ".attention.attention.key.",
    ".attn.v_proj.": ".attention.attention.value.",
    ".mlp.w12.": ".mlp.weights_in.",
    ".mlp.w3.": ".mlp.weights_out.",
    "patch_embed.proj.": "embeddings.patch_embeddings.projection.",
    "pos_embed": "embeddings.position_embeddings",
}
TOKENS = ("cls_token", "mask_token", "register_tokens")


def export(backbone: VisionTransformer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Returns the backbone's weights by the names that transformers writes, and the content of config.json. A norm of
    local crops alone is left out; where there is no LayerScale there is one of ones. Raises ValueError for a network
    that no model of transformers can be."""
    explicit, state = explicit_arguments(backbone), with_layerscale(tensors_of(backbone))
    inferred = infer_architecture(state, explicit["num_heads"], tuple(explicit["img_size"]))
    hidden = state[f"blocks.0.mlp.{'w3' if inferred['ffn'] == 'swiglu' else 'fc2'}.weight"].shape[1]
    rotary, ratio = "position" in explicit, _ratio(hidden, backbone.embed_dim, inferred["ffn"])
    unlike = [*unlike_libraries(backbone), *([] if rotary or ratio else [f"feed-forward layers of {hidden} channels"])]
    if unlike:
        raise ValueError(f"{', '.join(unlike)}: no model of transformers is such a network")
    if rotary:
        kind, specific = "dinov3_vit", _of_rotary(inferred, explicit, hidden)
    else:
        kind = "dinov2_with_registers" if inferred["registers"] or backbone.interpolate_antialias else "dinov2"
        specific = {"mlp_ratio": ratio, "use_swiglu_ffn": inferred["ffn"] == "swiglu", "qkv_bias": inferred["qkv_bias"]}
    if kind != "dinov2":
        specific["num_register_tokens"] = inferred["registers"]
        state.setdefault("register_tokens", torch.empty(1, 0, backbone.embed_dim))
    config = {
        "architectures": [KINDS[kind].model],
        "model_type": kind,
        "hidden_size": backbone.embed_dim,
        "num_hidden_layers": inferred["depth"],
        "num_attention_heads": explicit["num_heads"],
        "patch_size": backbone.patch_size,
        "image_size": explicit["img_size"][0],
        "layer_norm_eps": explicit["norm_eps"],
        "dtype": "float32",
        **specific,
    }
    return _theirs(state, rotary, key_bias=specific.get("key_bias", True)), config


def differs(backbone: VisionTransformer) -> list[str]:
    """Returns in which the model that `export` writes computes something else than the backbone, as sentences."""
    if backbone.pos_embed is None:
        return rounded_rotation(backbone)
    resampled = (0.0, backbone.prefix > 1 or backbone.interpolate_antialias)
    return resamples_otherwise(backbone, *resampled)


def _of_rotary(inferred: Mapping[str, Any], explicit: Mapping[str, Any], hidden: int) -> dict[str, Any]:
    """Returns what of config.json is that of rotary positions alone."""
    gated, bias = inferred["ffn"] == "swiglu", inferred["qkv_bias"]
    return {
        "intermediate_size": hidden,
        "use_gated_mlp": gated,
        "hidden_act": "silu" if gated else "gelu",
        "rope_theta": explicit["position"]["base"],
        "query_bias": bias,
        "key_bias": bias and explicit["key_bias"],
        "value_bias": bias,
    }


def _ratio(hidden: int, dim: int, ffn: str) -> int | None:
    """Returns the whole number from which the models with a table compute this width, None where there is none."""
    widths = ((int(dim * ratio * 2 / 3) + 7) // 8 * 8 if ffn == "swiglu" else dim * ratio for ratio in range(1, 33))
    return next((ratio for ratio, width in enumerate(widths, 1) if width == hidden), None)


def _theirs(state: Mapping[str, Tensor], rotary: bool, key_bias: bool) -> dict[str, Tensor]:
    """Returns the tensors by their names."""
    cuts = {".attn.qkv.": tuple(f".attn.{part}_proj." for part in "qkv")}
    if rotary:
        cuts[".mlp.w12."] = (".mlp.gate_proj.", ".mlp.up_proj.")
    out = cut({name: value for name, value in state.items() if "local_cls_norm" not in name}, cuts)
    if not key_bias:
        out = {name: value for name, value in out.items() if not name.endswith(".k_proj.bias")}
    if rotary:
        out["mask_token"] = out["mask_token"][None]  # [1, D] -> [1, 1, D]
    else:
        out = {re.sub(r"^norm\.", "layernorm.", name): value for name, value in out.items()}
    out = {f"embeddings.{name}" if name in TOKENS else name: value for name, value in out.items()}
    return renamed(out, ROTARY if rotary else WITH_TABLE)
