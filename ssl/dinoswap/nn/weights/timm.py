"""timm's names of the networks of DINOv2 and DINOv3, where they differ from the official ones.

timm calls registers reg_token. Of DINOv2 it gives the class token no position where there are registers, and packs
SwiGLU into mlp.fc1 and mlp.fc2. Of DINOv3 it has neither a mask token nor a bias of keys, calls LayerScale gamma_1 and
gamma_2, and the parts of a SwiGLU fc1_g, fc1_x and fc2. Follows the names of timm 1.0.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from dinoswap.nn.weights import dinov2
from dinoswap.nn.weights.files import WeightFile
from dinoswap.nn.weights.layout import Named
from dinoswap.nn.weights.names import joined, renamed


def knows(tensors: Mapping[str, Tensor]) -> bool:
    """Tells whether these are timm's names, where they differ from the official ones."""
    return "cls_token" in tensors and ("reg_token" in tensors or _packs_swiglu(tensors))


def read(file: WeightFile) -> Named:
    """Returns the tensors by our names, with a position of 0 where the class token has none."""
    return _read_dinov2(file) if "pos_embed" in file.tensors else _read_dinov3(file)


def _read_dinov3(file: WeightFile) -> Named:
    parts = (".attn.q_bias", ".attn.k_bias", ".attn.v_bias")
    stated = {**file.stated, "key_bias": any(name.endswith(parts[1]) for name in file.tensors)}
    tensors = joined(file.tensors, parts, ".attn.qkv.bias", absent_is_zero=True)
    if any(".mlp.fc1_g." in name for name in tensors):
        for kind in ("weight", "bias"):
            tensors = joined(tensors, (f".mlp.fc1_g.{kind}", f".mlp.fc1_x.{kind}"), f".mlp.w12.{kind}")
        tensors = renamed(tensors, {".mlp.fc2.": ".mlp.w3."})
    tensors = renamed(tensors, {"reg_token": "register_tokens", ".gamma_1": ".ls1.gamma", ".gamma_2": ".ls2.gamma"})
    tensors["mask_token"] = torch.zeros_like(tensors["cls_token"][0])
    return Named(tensors, stated, ["timm keeps no mask token: that of masked images is zero"])


def _read_dinov2(file: WeightFile) -> Named:
    tensors = dict(file.tensors)
    if "reg_token" in tensors:
        tensors["register_tokens"] = tensors.pop("reg_token")
        table = tensors["pos_embed"]
        if math.isqrt(table.shape[1]) ** 2 == table.shape[1]:
            tensors["pos_embed"] = torch.cat([torch.zeros_like(tensors["cls_token"]), table], dim=1)
    if _packs_swiglu(tensors):
        packed = {"mlp.fc1.": "mlp.w12.", "mlp.fc2.": "mlp.w3."}
        tensors = {re.sub(r"mlp\.fc[12]\.", lambda found: packed[found[0]], k): value for k, value in tensors.items()}
    return dinov2.read(replace(file, tensors=tensors))


def _packs_swiglu(tensors: Mapping[str, Tensor]) -> bool:
    first, second = tensors.get("blocks.0.mlp.fc1.weight"), tensors.get("blocks.0.mlp.fc2.weight")
    return first is not None and second is not None and len(first) == 2 * second.shape[1]
