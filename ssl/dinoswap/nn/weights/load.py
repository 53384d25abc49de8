"""Reads a backbone from a weight file in any layout that this package knows, and copies weights into a backbone."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dinoswap.files.weights import preparation_of, weights_in
from dinoswap.nn.patch_embed import resample_positions
from dinoswap.nn.vit import VisionTransformer
from dinoswap.nn.weights import dinov2, dinov3, own, timm, transformers
from dinoswap.nn.weights.files import WeightFile, read_file
from dinoswap.nn.weights.layout import EVALUATED_AT, table_side
from dinoswap.nn.weights.names import misfits, require, some
from dinoswap.position.base import Grid

LAYOUTS = (own, transformers, timm, dinov3, dinov2)
"""The first that knows the names of a file reads it."""


@dataclass(frozen=True)
class Weights:
    """A backbone as a file holds it: a complete state dict of VisionTransformer and the arguments to build it with.
    `assumed` says which of these the file does not show, with their values, as published models have them; `notes` are
    sentences on what a user may not expect. `preparation` is what is said of how images are prepared, see
    `files.weights.preparation_of`."""

    state: dict[str, Tensor]
    architecture: dict[str, Any]
    assumed: list[str]
    notes: list[str]
    preparation: dict[str, Any] = field(default_factory=dict)

    @property
    def crop(self) -> int:
        """The side in pixels of the crops to evaluate on: that which is said, or what published models are evaluated
        on, no more than the network's own."""
        patch: int = self.architecture["patch_size"]
        sides = self.preparation.get("size", (EVALUATED_AT, *self.architecture["img_size"]))
        return int(min(sides)) // patch * patch

    def network(self) -> VisionTransformer:
        """Returns the backbone with these weights, in float32 on the CPU."""
        with torch.device("meta"):
            backbone = VisionTransformer(**self.architecture)
        backbone.to_empty(device="cpu").load_state_dict(self.state)
        return backbone


def load_backbone(path: str | Path, num_heads: int | None = None) -> Weights:
    """Reads the backbone in a .pth or .safetensors file, or in a folder with model.safetensors or its parts.
    `num_heads` overrides what the file states or, as most do not, the 64 channels per head of published models. Raises
    ValueError for a file of anything but the tensors of one backbone, all of them, and where they do not determine its
    architecture."""
    path = weights_in(Path(path))
    file = read_file(path)
    if num_heads is not None:
        file.stated["num_heads"] = num_heads
    try:
        return replace(interpreted(file), preparation=preparation_of(path))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def interpreted(file: WeightFile) -> Weights:
    """Returns the weights in `file`, whichever layout it has. Raises ValueError as `load_backbone` does."""
    layout = next(layout for layout in LAYOUTS if layout.knows(file))
    named = layout.read(file)
    notes = [*file.notes, *named.notes]
    if "mask_token" not in named.state:
        require(named.state, "cls_token")
        named.state["mask_token"] = torch.zeros_like(named.state["cls_token"][0])
        notes.append("there is no mask token: that of masked images is zero")
    if "blocks.0.ls1.gamma" not in named.state:
        notes.append("there is no LayerScale: the blocks have none")
    family = dinov2 if "pos_embed" in named.state else dinov3
    architecture, assumed = family.completed(named.state, named.stated)
    with torch.device("meta"):
        expected = VisionTransformer(**architecture).state_dict()
    if problems := misfits(expected, named.state):
        raise ValueError(f"{some(problems)}; give the weights of one whole backbone")
    return Weights(named.state, architecture, assumed, notes)


def load_into(backbone: VisionTransformer, state: Mapping[str, Tensor], resample: bool = False) -> None:
    """Copies the state dict of `Weights` into a backbone.

    With `resample` a square position table of another size is resampled to the backbone's grid. Raises ValueError
    naming the keys that are missing, unexpected or of another shape.
    """
    state = dict(state)
    table, own_table = state.get("pos_embed"), backbone.pos_embed
    if resample and table is not None and own_table is not None and table.shape[1] != own_table.shape[1]:
        state["pos_embed"] = resampled_table(backbone, table)
    if problems := misfits(backbone.state_dict(), state):
        remedy = "build the backbone from the architecture of the weights"
        if any(problem.startswith("pos_embed is") for problem in problems):
            remedy += ", or resample the position table"
        raise ValueError(f"the weights do not fit: {some(problems)}; {remedy}")
    backbone.load_state_dict(state)


def resampled_table(backbone: VisionTransformer, table: Tensor, grid: Grid | None = None) -> Tensor:
    """Returns a position table [1, 1 + N, D] of `grid`, None for a square, resampled to the grid of the backbone, as
    the official code does on the fly. Raises ValueError where it is not square and has no grid."""
    if grid is None:
        side = table_side(table)
        grid = side, side
    offset, antialias = backbone.interpolate_offset, backbone.interpolate_antialias
    return torch.cat([table[:, :1], resample_positions(table[:, 1:], grid, backbone.grid, offset, antialias)], dim=1)
