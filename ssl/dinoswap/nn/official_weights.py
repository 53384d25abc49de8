"""Reads and writes weight files of backbones: those of DINOv2, DINO v1, timm's DINOv2, and our own exports.

A file holds a flat state dict with the names of `vit`. Models built with block_chunks name their blocks
blocks.<chunk>.<i> instead of blocks.<i>; training checkpoints nest the dict under "teacher" or "model" and put
"backbone." before each name. DINO v1 has neither a mask token nor LayerScale. timm calls registers reg_token, gives the
class token no position where there are registers, and packs SwiGLU into mlp.fc1 and mlp.fc2.
Tensors do not show the number of heads, nor how the position table is resampled: our exports state it in the metadata
of the safetensors file (`architecture_metadata`).
Follows facebookresearch/dinov2 @ b8931f7 (models/vision_transformer.py, utils/utils.py), facebookresearch/dino @
7c446df (vision_transformer.py), and the names of timm 1.0.
"""

import argparse
import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, cast

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from dinoswap.nn.block import Block
from dinoswap.nn.patch_embed import resample_positions
from dinoswap.nn.vit import VisionTransformer

HEAD_DIM = 64
"""Channels per attention head of every published model; it cannot be read off the weights."""

NESTS = ("teacher", "model", "state_dict")
PREFIXES = ("teacher.backbone.", "backbone.", "")
UNSAID = ("num_heads", "interpolate_offset", "interpolate_antialias")
"""Arguments of VisionTransformer that change its outputs and cannot be read off its tensors."""


def load_official(path: str | Path) -> dict[str, Tensor]:
    """Returns the backbone's state dict from a .pth or .safetensors file, with the names of `vit` and complete.

    Raises ValueError for a file that holds anything but tensors in such a layout.
    """
    path = Path(path)
    state = read_weights(path)
    for nest in NESTS:
        if isinstance(state.get(nest), Mapping):
            state = state[nest]
            break
    state = {key.removeprefix("module."): value for key, value in state.items()}
    prefix = next((p for p in PREFIXES if f"{p}cls_token" in state), None)
    if prefix is None:
        raise ValueError(f"{path}: no cls_token among its keys ({some(state)}); give the weights of a DINOv2 backbone")
    backbone = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    plain = {re.sub(r"^blocks\.\d+\.(\d+)\.", r"blocks.\1.", key): value for key, value in backbone.items()}
    state = _renamed(plain)
    state.setdefault("mask_token", torch.zeros_like(state["cls_token"][0]))  # used for masked images only
    return state


def _renamed(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Returns `state` with the official names instead of timm's, and with a position of 0 where the class token has
    none."""
    registers = state.pop("reg_token", None)
    if registers is not None:
        state["register_tokens"] = registers
        if "pos_embed" in state and math.isqrt(positions := state["pos_embed"].shape[1]) ** 2 == positions:
            state["pos_embed"] = torch.cat([torch.zeros_like(state["cls_token"]), state["pos_embed"]], dim=1)
    first, second = state.get("blocks.0.mlp.fc1.weight"), state.get("blocks.0.mlp.fc2.weight")
    if first is None or second is None or len(first) != 2 * second.shape[1]:
        return state
    packed = {"mlp.fc1.": "mlp.w12.", "mlp.fc2.": "mlp.w3."}
    return {re.sub(r"mlp\.fc[12]\.", lambda match: packed[match[0]], key): value for key, value in state.items()}


def architecture_metadata(backbone: VisionTransformer) -> dict[str, str]:
    """Returns the metadata of an exported safetensors file: the arguments in `UNSAID` as JSON, and `format`, which
    marks its tensors as torch's."""
    heads = cast(Block, backbone.blocks[0]).attn.num_heads
    values = (heads, backbone.interpolate_offset, backbone.interpolate_antialias)
    return {"format": "pt", **{name: json.dumps(value) for name, value in zip(UNSAID, values, strict=True)}}


def read_metadata(path: Path) -> dict[str, Any]:
    """Returns the arguments that `architecture_metadata` wrote into a safetensors file, {} for another file. Raises
    ValueError where the metadata cannot be read."""
    if path.suffix != ".safetensors":
        return {}
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
        return {name: json.loads(metadata[name]) for name in UNSAID if name in metadata}
    except (SafetensorError, ValueError) as error:
        raise ValueError(f"{path}: its metadata cannot be read ({error}); export it again") from error


def read_weights(path: Path) -> dict[str, Any]:
    """Returns the dict in a .pth or .safetensors file, read without executing code from it. Raises ValueError for
    another file."""
    try:
        if path.suffix == ".safetensors":
            return dict(load_file(path))
        with torch.serialization.safe_globals([argparse.Namespace]):  # the arguments that training checkpoints keep
            state = torch.load(path, map_location="cpu", weights_only=True)
    except (UnpicklingError, SafetensorError, EOFError, KeyError, RuntimeError) as error:  # whatever a non-weight is
        raise ValueError(
            f"{path}: not a whole file of tensors alone ({type(error).__name__}); save its state dict again"
        ) from error
    if not isinstance(state, dict):
        raise ValueError(f"{path}: holds a {type(state).__name__}; a state dict is needed")
    return state


def infer_architecture(
    state: Mapping[str, Tensor], num_heads: int | None = None, img_size: tuple[int, int] | None = None
) -> dict[str, Any]:
    """Returns the arguments of VisionTransformer for a state dict of `load_official`.

    The number of heads is embed_dim / 64 unless given; `img_size` (H, W) is needed for a table that is not square.
    Raises ValueError where the tensors do not determine the architecture.
    """
    _require(state, "pos_embed", "patch_embed.proj.weight", "blocks.0.norm1.weight")
    dim, _, patch_size, _ = state["patch_embed.proj.weight"].shape
    swiglu = "blocks.0.mlp.w12.weight" in state
    hidden = state["blocks.0.mlp.w3.weight"].shape[1] * 1.5 if swiglu else state["blocks.0.mlp.fc1.weight"].shape[0]
    if num_heads is None and dim % HEAD_DIM:
        raise ValueError(f"embed_dim={dim}: not a multiple of {HEAD_DIM}; give num_heads")
    if img_size is None:
        side = _side(state["pos_embed"])
        img_size = (side * patch_size, side * patch_size)
    return {
        "img_size": img_size,
        "patch_size": patch_size,
        "embed_dim": dim,
        "depth": len({key.split(".")[1] for key in state if key.startswith("blocks.")}),
        "num_heads": dim // HEAD_DIM if num_heads is None else num_heads,
        "mlp_ratio": hidden / dim,
        "ffn": "swiglu" if swiglu else "mlp",
        "registers": state["register_tokens"].shape[1] if "register_tokens" in state else 0,
        "layerscale": 1e-5 if "blocks.0.ls1.gamma" in state else None,
        "qkv_bias": "blocks.0.attn.qkv.bias" in state,
    }


def architecture_of_file(
    path: Path, state: Mapping[str, Tensor], num_heads: int | None = None
) -> tuple[dict[str, Any], list[str]]:
    """Returns the arguments of VisionTransformer for the weights `state` that `load_official` read from `path`, and a
    list of those that were assumed: arguments in `UNSAID` that neither `num_heads` nor the file's metadata gives. They
    are as in the published models: 64 channels per head, and a resampling that depends on whether there are registers.
    """
    stated = read_metadata(path) | ({} if num_heads is None else {"num_heads": num_heads})
    inferred = infer_architecture(state, stated.get("num_heads"))
    with_registers = bool(inferred["registers"])
    published = {"interpolate_offset": 0.0 if with_registers else 0.1, "interpolate_antialias": with_registers}
    architecture = inferred | published | stated
    return architecture, [f"{name} {architecture[name]}" for name in UNSAID if name not in stated]


def load_into(backbone: VisionTransformer, state: Mapping[str, Tensor], resample: bool = False) -> None:
    """Copies a state dict of `load_official` into a backbone.

    With `resample` a square position table of another size is resampled to the backbone's grid, as the official code
    does on the fly. Raises ValueError naming the keys that are missing, unexpected or of another shape.
    """
    state = dict(state)
    backbone_state = backbone.state_dict()
    table = state.get("pos_embed")
    if resample and table is not None and table.shape[1] != backbone_state["pos_embed"].shape[1]:
        side = _side(table)
        patches = resample_positions(
            table[:, 1:], (side, side), backbone.grid, backbone.interpolate_offset, backbone.interpolate_antialias
        )
        state["pos_embed"] = torch.cat([table[:, :1], patches], dim=1)
    if problems := misfits(backbone_state, state):
        remedy = "build the backbone from infer_architecture(state)"
        if any(problem.startswith("pos_embed is") for problem in problems):
            remedy += ", or resample the position table"
        raise ValueError(f"the weights do not fit: {some(problems)}; {remedy}")
    backbone.load_state_dict(state)


def misfits(expected: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> list[str]:
    """Returns the differences that keep `state` from being loaded into a module with the state dict `expected`: missing
    and unexpected keys, and other shapes."""
    problems = [f"missing {key}" for key in expected.keys() - state.keys()]
    problems += [f"unexpected {key}" for key in state.keys() - expected.keys()]
    for key in expected.keys() & state.keys():
        if expected[key].shape != state[key].shape:
            problems.append(f"{key} is {list(state[key].shape)}, not {list(expected[key].shape)}")
    return problems


def export_official(backbone: VisionTransformer, block_chunks: int = 0) -> dict[str, Tensor]:
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

    return {rename(key): value.detach().cpu().clone() for key, value in backbone.state_dict().items()}


def _unlike_dinov2(backbone: VisionTransformer) -> str:
    """Returns what of a backbone a file in dinov2's layout would be silent about, "" where it is nothing: a model that
    is built from such a file would compute something else."""
    norm = backbone.norm
    unlike = {
        "positions without a table (position=rope)": backbone.pos_embed is None,
        "model.norm": not isinstance(norm, nn.LayerNorm),
        "model.norm_eps": isinstance(norm, nn.LayerNorm) and norm.eps != 1e-6,
        "model.cls_norm": backbone.cls_norm is not None,
        "model.local_cls_norm": backbone.local_cls_norm is not None,
    }
    return ", ".join(name for name, found in unlike.items() if found)


def _side(pos_embed: Tensor) -> int:
    """Returns the patches along a side of a square position table [1, 1 + N, D]. Raises ValueError where it is not
    square."""
    positions = pos_embed.shape[1] - 1
    side = math.isqrt(positions)
    if side * side != positions:
        raise ValueError(
            f"pos_embed: a table of {positions} positions is not square; give img_size and do not resample"
        )
    return side


def _require(state: Mapping[str, Tensor], *keys: str) -> None:
    """Raises ValueError where `state` lacks one of `keys`."""
    missing = [key for key in keys if key not in state]
    if missing:
        raise ValueError(f"missing {', '.join(missing)}: not the state dict of a DINOv2 backbone")


def some(names: Any, limit: int = 8) -> str:
    """Returns the first `limit` names of a collection, sorted, as text, and how many more there are."""
    names = sorted(names)
    return ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")
