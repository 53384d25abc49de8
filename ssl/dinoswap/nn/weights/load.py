"""Reads a backbone from a weight file in any layout that this package knows, and copies weights into a backbone."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dinoswap.nn.patch_embed import resample_positions
from dinoswap.nn.vit import VisionTransformer
from dinoswap.nn.weights import dinov2, timm
from dinoswap.nn.weights.files import read_file
from dinoswap.nn.weights.layout import table_side
from dinoswap.nn.weights.names import misfits, some

LAYOUTS = (timm, dinov2)
"""The first that knows the names of a file reads it."""


@dataclass(frozen=True)
class Weights:
    """A backbone as a file holds it: a complete state dict of VisionTransformer and the arguments to build it with.
    `assumed` says which of these the file does not show, with their values, as published models have them; `notes` are
    sentences on what a user may not expect."""

    state: dict[str, Tensor]
    architecture: dict[str, Any]
    assumed: list[str]
    notes: list[str]

    def network(self) -> VisionTransformer:
        """Returns the backbone with these weights, in float32 on the CPU."""
        with torch.device("meta"):
            backbone = VisionTransformer(**self.architecture)
        backbone.to_empty(device="cpu").load_state_dict(self.state)
        return backbone


def load_backbone(path: str | Path, num_heads: int | None = None) -> Weights:
    """Reads the backbone in a .pth or .safetensors file. `num_heads` overrides what the file states or, as most do not,
    the 64 channels per head of published models. Raises ValueError for a file of anything but the tensors of one
    backbone, all of them, and where they do not determine its architecture."""
    path = Path(path)
    file = read_file(path)
    layout = next(layout for layout in LAYOUTS if layout.knows(file.tensors))
    try:
        named = layout.read(file)
        stated = named.stated | ({} if num_heads is None else {"num_heads": num_heads})
        architecture, assumed = dinov2.completed(named.state, stated)
        with torch.device("meta"):
            expected = VisionTransformer(**architecture).state_dict()
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    if problems := misfits(expected, named.state):
        raise ValueError(f"{path}: {some(problems)}; give the weights of one whole backbone")
    return Weights(named.state, architecture, assumed, named.notes)


def load_into(backbone: VisionTransformer, state: Mapping[str, Tensor], resample: bool = False) -> None:
    """Copies the state dict of `Weights` into a backbone.

    With `resample` a square position table of another size is resampled to the backbone's grid, as the official code
    does on the fly. Raises ValueError naming the keys that are missing, unexpected or of another shape.
    """
    state = dict(state)
    backbone_state = backbone.state_dict()
    table = state.get("pos_embed")
    if resample and table is not None and table.shape[1] != backbone_state["pos_embed"].shape[1]:
        side = table_side(table)
        patches = resample_positions(
            table[:, 1:], (side, side), backbone.grid, backbone.interpolate_offset, backbone.interpolate_antialias
        )
        state["pos_embed"] = torch.cat([table[:, :1], patches], dim=1)
    if problems := misfits(backbone_state, state):
        remedy = "build the backbone from the architecture of the weights"
        if any(problem.startswith("pos_embed is") for problem in problems):
            remedy += ", or resample the position table"
        raise ValueError(f"the weights do not fit: {some(problems)}; {remedy}")
    backbone.load_state_dict(state)
