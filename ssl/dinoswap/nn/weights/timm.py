"""timm's names of DINOv2's networks, for dinoswap.nn.weights.load.

timm calls registers reg_token, gives the class token no position where there are registers, and packs SwiGLU into
mlp.fc1 and mlp.fc2. Follows the names of timm 1.0.
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


def knows(tensors: Mapping[str, Tensor]) -> bool:
    """Tells whether these are timm's names, where they differ from the official ones."""
    return "reg_token" in tensors or _packs_swiglu(tensors)


def read(file: WeightFile) -> Named:
    """Returns the tensors by our names, with a position of 0 where the class token has none."""
    tensors = dict(file.tensors)
    if "reg_token" in tensors:
        tensors["register_tokens"] = tensors.pop("reg_token")
        table = tensors.get("pos_embed")
        if table is not None and math.isqrt(table.shape[1]) ** 2 == table.shape[1]:
            tensors["pos_embed"] = torch.cat([torch.zeros_like(tensors["cls_token"]), table], dim=1)
    if _packs_swiglu(tensors):
        packed = {"mlp.fc1.": "mlp.w12.", "mlp.fc2.": "mlp.w3."}
        tensors = {re.sub(r"mlp\.fc[12]\.", lambda found: packed[found[0]], k): value for k, value in tensors.items()}
    return dinov2.read(replace(file, tensors=tensors))


def _packs_swiglu(tensors: Mapping[str, Tensor]) -> bool:
    first, second = tensors.get("blocks.0.mlp.fc1.weight"), tensors.get("blocks.0.mlp.fc2.weight")
    return first is not None and second is not None and len(first) == 2 * second.shape[1]
