"""Depth Anything 3 as a teacher, computed by the backbone of this package."""

import torch
from torch import nn

from dinoswap.teacher.base import fixed_seed
from dinoswap.teacher.depth_anything.backbone import DA3Backbone
from dinoswap.teacher.depth_anything.source import Source, read_weights
from dinoswap.teacher.depth_anything.teacher import DA3Teacher


class NativeTeacher(DA3Teacher):
    """The teacher of an official model.safetensors or its folder, or with random weights."""

    kind = "native"

    def network_of(self, source: Source) -> nn.Module:
        """Returns the backbone of `source`. Raises ValueError for weights that do not fit."""
        if source.path is None:
            with fixed_seed():
                return DA3Backbone(source.architecture)
        with torch.device("meta"):
            backbone = DA3Backbone(source.architecture)
        backbone.load_state_dict(read_weights(source.path, source.prefix, backbone.state_dict()), assign=True)
        return backbone
