"""The layout of DINOv3, in and out, for networks with rotary positions.

It differs from the names of `vit` in these. Registers are storage_tokens. A SwiGLU has w1 and w2 where `vit` has both
in one, w12. rope_embed.periods [F] are the periods of the rotation, each for four channels of a head. Where keys are to
have no bias, attn.qkv.bias_mask, of 0 and 1, is a factor of the bias of queries, keys and values. Neither the norms'
epsilon nor how coordinates are normalised, and in which type they are computed, is in the tensors: our exports state it
in the metadata of the safetensors file.
Follows facebookresearch/dinov3 @ 6876159 (models/vision_transformer.py, layers/attention.py, hub/backbones.py).
"""

from collections.abc import Iterator, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from dinoswap.nn.block import Block
from dinoswap.nn.vit import VisionTransformer
from dinoswap.nn.weights.files import WeightFile
from dinoswap.nn.weights.layout import Named, infer_architecture
from dinoswap.nn.weights.names import joined, require
from dinoswap.nn.weights.written import tensors_of
from dinoswap.position.rope import TYPES, Rope

PERIODS, MASK = "rope_embed.periods", ".attn.qkv.bias_mask"
RELEASED: dict[str, Any] = {"base": 100.0, "periods": None, "normalise": "separate", "dtype": "fp32"}
"""The rotation of every released model, as its code builds it."""
EXPLICIT = ("num_heads", "norm_eps")
"""Arguments of VisionTransformer, besides the position, that change its outputs and that its tensors do not show."""
HEADS_OF_WIDTH = {4096: 32}
"""The heads of the one released model, the 7B, that has not 64 channels for each."""
EPS, EPS_OF_LAYERNORM = 1e-5, 1e-6
"""The epsilon of all released models, and that of norm_layer=layernorm, the default of the training code."""
ROUNDED = (
    f"{PERIODS} is rounded, as training in bfloat16 leaves it; the network computes its periods in float32, as timm "
    "and transformers do, up to 0.4 % from these"
)
UNTRAINED = (
    "the biases of queries, keys and values are zero, as in the released distilled models, whose mask holds them "
    "there; here those of queries and values are trained where training goes on"
)


def knows(file: WeightFile) -> bool:
    """Tells whether the names are those of this layout."""
    return "cls_token" in file.tensors and "pos_embed" not in file.tensors


def read(file: WeightFile) -> Named:
    """Returns the tensors by our names. Raises ValueError for periods that no `position` has or that are of other
    heads than stated, for masks of other values than 0 and 1, and for half of a SwiGLU."""
    tensors = dict(file.tensors)
    if PERIODS not in tensors:
        raise ValueError(
            f"missing {PERIODS}, and pos_embed too: the file does not say where patches are; give an official file, or "
            "one that dinoswap-export wrote"
        )
    dim, head_width = tensors["cls_token"].shape[-1], 4 * len(tensors[PERIODS])
    heads = file.stated.get("num_heads", dim // head_width)
    if heads * head_width != dim:
        raise ValueError(
            f"num_heads={heads}: {PERIODS} is of heads of {head_width} channels, and the network is {dim} wide"
        )
    position, notes = _position(tensors.pop(PERIODS), file.stated.get("position", {}))
    stated = {**file.stated, "num_heads": heads, "position": position}
    masks = {name: tensors.pop(name) for name in list(tensors) if name.endswith(MASK)}
    if masks:
        biases = dict(_masked(tensors, masks))
        tensors |= biases
        stated["key_bias"] = any(bool(mask.chunk(3)[1].any()) for mask in masks.values())
        notes += [] if any(bool(bias.any()) for bias in biases.values()) else [UNTRAINED]
    if "storage_tokens" in tensors:
        tensors["register_tokens"] = tensors.pop("storage_tokens")
    for kind in ("weight", "bias"):
        tensors = joined(tensors, (f".mlp.w1.{kind}", f".mlp.w2.{kind}"), f".mlp.w12.{kind}")
    return Named(tensors, stated, notes)


def completed(state: Mapping[str, Tensor], stated: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Returns the arguments of VisionTransformer for a network with rotary positions, and those of `EXPLICIT` and of
    the rotation that `stated` does not have. They are as in the released models, but for the epsilon of a LayerNorm
    where there are no registers, as in the training code's default."""
    inferred = infer_architecture(state, stated.get("num_heads", HEADS_OF_WIDTH.get(state["cls_token"].shape[-1])))
    by_default = inferred["norm"] == "layernorm" and not inferred["registers"]
    published = {"norm_eps": EPS_OF_LAYERNORM if by_default else EPS}
    rotation = RELEASED | stated.get("position", {})
    architecture = inferred | published | dict(stated) | {"position": _rope(rotation)}
    assumed = [f"{name} {architecture[name]}" for name in EXPLICIT if name not in stated]
    assumed_of_rotation = [
        name for name in RELEASED if name not in stated.get("position", {}) and rotation[name] is not None
    ]
    return architecture, assumed + [f"position.{name} {rotation[name]}" for name in assumed_of_rotation]


def export(backbone: VisionTransformer) -> dict[str, Tensor]:
    """Returns the backbone's weights (detached, on the CPU) with the official names. Raises ValueError for a network
    that dinov3's models cannot be."""
    position, eps = _rotary(backbone), _eps(backbone)
    if backbone.patch_embed.stem_layers:
        raise ValueError("model.stem: dinov3's models have no such network, and its layout cannot say it")
    if eps != EPS and (eps != EPS_OF_LAYERNORM or isinstance(backbone.norm, nn.RMSNorm)):
        raise ValueError(f"model.norm_eps={eps}: dinov3's models have no such network, and its layout cannot say it")
    tensors: dict[str, Tensor] = {}
    for name, value in tensors_of(backbone).items():
        if ".mlp.w12." in name:
            first, second = value.chunk(2)
            tensors[name.replace("w12", "w1")], tensors[name.replace("w12", "w2")] = first.clone(), second.clone()
        else:
            tensors[name.replace("register_tokens", "storage_tokens")] = value
    if not cast(Block, backbone.blocks[0]).attn.key_bias:
        mask = torch.ones(3, backbone.embed_dim)
        mask[1] = 0
        tensors |= {f"blocks.{index}{MASK}": mask.flatten().clone() for index in range(len(backbone.blocks))}
    tensors[PERIODS] = position.periods(backbone.head_width, {"device": torch.device("cpu"), "dtype": position.dtype})
    return tensors


def released_position() -> Rope:
    """Returns the position of every released model."""
    return _rope(RELEASED)


def _rotary(backbone: VisionTransformer) -> Rope:
    """Returns the rotary position of a backbone. Raises ValueError where it has another one."""
    if not isinstance(backbone.position, Rope):
        raise ValueError("positions that are not position=rope: dinov3's models have no such network")
    return backbone.position


def _eps(backbone: VisionTransformer) -> float | None:
    """Returns the epsilon of a backbone's norms; None where RMSNorm takes that of the type."""
    return cast(nn.LayerNorm | nn.RMSNorm, backbone.norm).eps


def _rope(rotation: Mapping[str, Any]) -> Rope:
    """Returns the position with this rotation, which training does not augment."""
    return Rope(**rotation, shift=None, jitter=None, rescale=None)


def _position(periods: Tensor, stated: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Returns the arguments of Rope that `periods` [F] show, with those `stated` in the metadata, and notes. Raises
    ValueError for periods that no such rotation has, or another one than stated."""
    if unknown := stated.keys() - RELEASED.keys():
        raise ValueError(f"its metadata states {', '.join(sorted(unknown))} of the position, which is not known here")
    for candidate in [dict(stated)] if stated else _candidates(periods.double()):
        exact, rounded = (_periods(len(periods), candidate, dtype) for dtype in ("fp32", "bf16"))
        if _same(periods, exact):
            return candidate, []
        if any(_same(periods, table) for table in (rounded, exact.bfloat16(), exact.to(periods.dtype))):
            return candidate, [] if candidate.get("dtype") == "bf16" else [ROUNDED]
    expected = (
        f"those of position.base={stated.get('base')}, position.periods={stated.get('periods')} as its metadata says"
    )
    raise ValueError(
        f"{PERIODS}: from {float(periods[0]):g} to {float(periods[-1]):g}, not "
        + (
            expected
            if stated
            else "in geometric progression, as all that position.base and position.periods can set are"
        )
    )


def _candidates(periods: Tensor) -> Iterator[dict[str, Any]]:
    """Yields the rotations that periods [F] may be of: the released one, that of the base whose F-th period they end
    with, to 7 and, as they may be rounded, to 2 digits, and that of the first and the last one."""
    yield {"base": RELEASED["base"], "periods": None}
    first, last, count = float(periods[0]), float(periods[-1]), len(periods)
    if count > 1 and last > 0:
        base = last ** (count / (count - 1))
        yield from ({"base": float(f"{base:.{digits}g}"), "periods": None} for digits in (7, 2))
    if 0 < first <= last:
        yield {"base": None, "periods": [float(f"{first:.7g}"), float(f"{last:.7g}")]}


def _periods(count: int, rotation: Mapping[str, Any], dtype: str) -> Tensor:
    """Returns the `count` periods of a rotation in the type `dtype`, on the CPU."""
    position = _rope({**RELEASED, **rotation, "dtype": dtype})
    return position.periods(4 * count, {"device": torch.device("cpu"), "dtype": TYPES[dtype]})


def _same(periods: Tensor, expected: Tensor) -> bool:
    """Tells whether two lists of periods are the same but for the rounding of float32."""
    return torch.allclose(periods.double(), expected.double(), rtol=2e-6, atol=0)


def _masked(tensors: Mapping[str, Tensor], masks: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Yields name and value of each bias after its mask. Raises ValueError where one is without the other."""
    require(tensors, *(name.removesuffix("_mask") for name in masks))
    require(masks, *(f"{name}_mask" for name in tensors if name.endswith(MASK.removesuffix("_mask"))))
    for name, mask in masks.items():
        bias = name.removesuffix("_mask")
        if mask.shape != tensors[bias].shape or not bool(((mask == 0) | (mask == 1)).all()):
            raise ValueError(
                f"{name}: must be 0 or 1 for each channel of the bias, as the official code initialises it"
            )
        yield bias, torch.where(mask == 1, tensors[bias], 0)
