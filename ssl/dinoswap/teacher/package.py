"""The teacher of `native`, computed by the code of the installed package `depth_anything_3`.

Only the module of the backbone is imported, which has few dependencies. Mind one limit of that code: it keeps the
positions of a grid on the device where the grid was first used, so move the teacher before its first use.
"""

import importlib
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from dinoswap.nn.sizes import SIZES
from dinoswap.teacher.base import fixed_seed
from dinoswap.teacher.depth_anything.source import Source, read_weights
from dinoswap.teacher.depth_anything.teacher import DA3Teacher
from dinoswap.teacher.depth_anything.variants import NETS, Architecture

MODULE = "depth_anything_3.model.dinov2.dinov2"
PACKAGE_PREFIX = "pretrained."


class PackageTeacher(DA3Teacher):
    """The teacher of an official model.safetensors or its folder, or with random weights."""

    kind = "package"

    def network_of(self, source: Source) -> nn.Module:
        """Returns the package's backbone of `source`. Raises ValueError where the package is missing or does not have
        that network, and for weights that do not fit."""
        factory = _factory()
        with fixed_seed():
            network = PackageBackbone(factory, source.architecture)
        if source.path is not None:
            network_state = {
                name.removeprefix(PACKAGE_PREFIX): value for name, value in network.backbone.state_dict().items()
            }
            state = read_weights(source.path, source.prefix, network_state)
            network.backbone.load_state_dict({PACKAGE_PREFIX + name: value for name, value in state.items()})
        return network


def _factory() -> Callable[..., nn.Module]:
    """Returns the package's class of the backbone. Raises ValueError where it cannot be imported."""
    try:
        factory: Callable[..., nn.Module] = importlib.import_module(MODULE).DinoV2
    except ImportError as error:
        raise ValueError(
            f"cannot import {MODULE} ({error}); choose teacher@da3.teacher=native, which needs no package"
        ) from error
    return factory


class PackageBackbone(nn.Module):
    """The package's backbone with the interface of `DA3Backbone`: every image is a scene of its own."""

    def __init__(self, factory: Callable[..., nn.Module], architecture: Architecture) -> None:
        super().__init__()
        sizes = (architecture.embed_dim, architecture.depth, architecture.num_heads, architecture.ffn)
        name = next((name for name, size in NETS.items() if SIZES[size] == sizes), None)
        if name is None:
            raise ValueError(f"the package has no network of {architecture}; choose teacher@da3.teacher=native")

        def start(block: int | None) -> int:
            return -1 if block is None else block

        self.patch_size = architecture.patch_size
        self.backbone = factory(
            name=name,
            out_layers=[architecture.depth - 1],
            alt_start=start(architecture.alt_start),
            qknorm_start=start(architecture.qknorm_start),
            rope_start=start(architecture.rope_start),
            cat_token=architecture.cat_token,
        )

    def forward(self, images: Tensor, layer: int | None = None) -> Tensor:
        """Returns the patch tokens [N, P, D] of images [N, 3, H, W], as `DA3Backbone.forward`. Raises ValueError for
        sides that are no multiples of the patch size."""
        if any(side % self.patch_size for side in images.shape[-2:]):
            raise ValueError(f"images of {list(images.shape[-2:])} pixels: give multiples of {self.patch_size}")
        scenes = images[:, None]  # [N, 3, H, W] -> [N, S = 1, 3, H, W]
        outputs: Any = self.backbone(scenes, export_feat_layers=[] if layer is None else [layer])
        features, exported = outputs
        tokens: Tensor = features[-1][0] if layer is None else exported[0]
        return tokens[:, 0]  # [N, S, P, D] -> [N, P, D]
