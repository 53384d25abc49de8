"""Finds one backbone's tensors in a .pth or .safetensors file, and what stands beside them.

Checkpoints of trainings nest the state dict under "teacher" or "model" and put prefixes before each name. The metadata
of a safetensors file that this package wrote states the arguments of VisionTransformer that tensors do not show.
"""

import argparse
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from dinoswap.nn.weights.names import some

NESTS = ("teacher", "model", "state_dict")
PREFIXES = ("teacher.backbone.", "backbone.", "")
CLASS_TOKENS = ("cls_token", "embeddings.cls_token")
"""Names of the class token, by which a backbone is found among other networks."""
STATED = ("num_heads", "interpolate_offset", "interpolate_antialias", "norm_eps", "position", "img_size")
"""What the metadata of a file may state: arguments of VisionTransformer, as JSON."""


@dataclass(frozen=True)
class WeightFile:
    """A backbone's tensors by the names of the file at `path`, without what wraps them. `stated` are arguments of
    VisionTransformer that are known beside them."""

    path: Path
    tensors: dict[str, Tensor]
    stated: dict[str, Any]


def read_file(path: Path) -> WeightFile:
    """Reads the backbone in a file, with what its metadata states. Raises ValueError where there is none, and for a
    file of anything but tensors."""
    state = read_weights(path)
    for nest in NESTS:
        if isinstance(state.get(nest), Mapping):
            state = state[nest]
            break
    state = {key.removeprefix("module."): value for key, value in state.items()}
    prefix = next((p for p in PREFIXES if any(f"{p}{name}" in state for name in CLASS_TOKENS)), None)
    if prefix is None:
        raise ValueError(f"{path}: no cls_token among its keys ({some(state)}); give the weights of a backbone")
    tensors = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    return WeightFile(path, tensors, read_metadata(path))


def read_metadata(path: Path) -> dict[str, Any]:
    """Returns the arguments that an export states in the metadata of a safetensors file, {} for another file. Raises
    ValueError where the metadata cannot be read."""
    if path.suffix != ".safetensors":
        return {}
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
        return {name: json.loads(metadata[name]) for name in STATED if name in metadata}
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


def in_metadata(arguments: Mapping[str, Any]) -> dict[str, str]:
    """Returns the metadata of a safetensors file that states these arguments; `format` marks its tensors as torch's."""
    return {"format": "pt", **{name: json.dumps(value) for name, value in arguments.items()}}
