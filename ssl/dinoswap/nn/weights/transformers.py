"""The layout of DINOv3ViTModel of the package transformers, whose config.json lies in the same folder.

Queries, keys and values have a linear map each, and keys usually no bias. A gated feed-forward layer computes
down(silu(gate(x)) * up(x)). Follows the names of transformers 4.56 and 5.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from dinoswap.nn.weights.files import WeightFile
from dinoswap.nn.weights.layout import Named
from dinoswap.nn.weights.names import joined, renamed, require

KIND = "dinov3_vit"
NAMES = {
    ".layer_scale1.lambda1": ".ls1.gamma",
    ".layer_scale2.lambda1": ".ls2.gamma",
    ".attention.o_proj.": ".attn.proj.",
    "embeddings.patch_embeddings.": "patch_embed.proj.",
    "embeddings.": "",
}
PLAIN = {".mlp.up_proj.": ".mlp.fc1.", ".mlp.down_proj.": ".mlp.fc2."}
GATED = {".mlp.down_proj.": ".mlp.w3."}
BIASES = tuple(f".attention.{part}_proj.bias" for part in "qkv")


def knows(tensors: Mapping[str, Tensor]) -> bool:
    """Tells whether these are names of transformers."""
    return "embeddings.cls_token" in tensors


def read(file: WeightFile) -> Named:
    """Returns the tensors by our names. Raises ValueError for another model of transformers, and for one that
    VisionTransformer cannot be."""
    config = _config(file.path.with_name("config.json"))
    if config.get("model_type", KIND) != KIND or "embeddings.position_embeddings" in file.tensors:
        kind = config.get("model_type", "is not said")
        raise ValueError(f"is a model of transformers, but no DINOv3ViTModel (model_type={kind}): give one of these")
    require(file.tensors, "embeddings.mask_token")
    tensors = {re.sub(r"^(?:model\.)?layer\.", "blocks.", name): value for name, value in file.tensors.items()}
    gated = any(".mlp.gate_proj." in name for name in tensors)
    _check_activation(config, gated)
    stated = _stated(config) | file.stated
    stated["key_bias"] = any(name.endswith(BIASES[1]) for name in tensors)
    tensors = joined(tensors, BIASES, ".attn.qkv.bias", absent_is_zero=True)
    tensors = joined(tensors, [f".attention.{part}_proj.weight" for part in "qkv"], ".attn.qkv.weight")
    for which in ("weight", "bias") if gated else ():
        tensors = joined(tensors, (f".mlp.gate_proj.{which}", f".mlp.up_proj.{which}"), f".mlp.w12.{which}")
    tensors = renamed(tensors, NAMES | (GATED if gated else PLAIN))
    tensors["mask_token"] = tensors["mask_token"][0]  # [1, 1, D] -> [1, D]
    if "register_tokens" in tensors and not tensors["register_tokens"].shape[1]:
        del tensors["register_tokens"]
    return Named(tensors, stated)


def _config(path: Path) -> dict[str, Any]:
    """Returns the content of config.json, {} where there is none. Raises ValueError where it cannot be read."""
    try:
        return dict(json.loads(path.read_text())) if path.is_file() else {}
    except (OSError, ValueError) as error:
        raise ValueError(f"{path.name} cannot be read ({error}); give it as transformers wrote it") from error


def _stated(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the arguments of VisionTransformer that config.json says beside the tensors."""
    stated = {"num_heads": "num_attention_heads", "norm_eps": "layer_norm_eps"}
    found = {ours: config[theirs] for ours, theirs in stated.items() if theirs in config}
    if "rope_theta" in config:
        found["position"] = {"base": config["rope_theta"], "periods": None, "normalise": "separate", "dtype": "fp32"}
    return found


def _check_activation(config: Mapping[str, Any], gated: bool) -> None:
    """Raises ValueError for a network with another activation than ours have."""
    ours = "silu" if gated else "gelu"
    if config.get("hidden_act", ours) != ours:
        raise ValueError(
            f"hidden_act={config['hidden_act']} in config.json: this network is computed with {ours} alone"
        )
