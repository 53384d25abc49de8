"""The teacher of `native`, computed by the code of the installed package `depth_anything_3`.

Only the module of the backbone is imported, which has few dependencies. Mind one limit of that code: it keeps the
positions of a grid on the device where the grid was first used, so move the teacher before its first use.
"""

import importlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from dinoswap.da3.native import DA3Teacher
from dinoswap.da3.protocol import Teacher, TeacherSettings
from dinoswap.da3.source import locate, read_weights
from dinoswap.da3.variants import NETS, Architecture
from dinoswap.nn.sizes import SIZES
from dinoswap.rng import seed_torch

MODULE = "depth_anything_3.model.dinov2.dinov2"
PACKAGE_PREFIX = "pretrained."


def build(settings: TeacherSettings) -> Teacher:
    """Returns the teacher. Raises ValueError where the package is missing or does not have that network, and for
    settings and weights that `native` refuses."""
    factory = _factory()
    source = locate(settings)
    with torch.random.fork_rng(devices=[]):
        seed_torch(0, "init/da3_teacher")
        network = PackageBackbone(factory, source.architecture)
    if source.path is not None:
        network_state = {
            name.removeprefix(PACKAGE_PREFIX): value for name, value in network.backbone.state_dict().items()
        }
        state = read_weights(source.path, source.prefix, network_state)
        network.backbone.load_state_dict({PACKAGE_PREFIX + name: value for name, value in state.items()})
    return DA3Teacher(network, source, settings)


def _factory() -> Callable[..., nn.Module]:
    """Returns the package's class of the backbone. Raises ValueError where it cannot be imported."""
    try:
        factory: Callable[..., nn.Module] = importlib.import_module(MODULE).DinoV2
    except ImportError as error:
        raise ValueError(
            f"backend=package: cannot import {MODULE} ({error}); use backend=native, which needs no package"
        ) from error
    return factory


class PackageBackbone(nn.Module):
    """The package's backbone with the interface of `DA3Backbone`: every image is a scene of its own."""

    def __init__(self, factory: Callable[..., nn.Module], architecture: Architecture) -> None:
        super().__init__()
        sizes = (architecture.embed_dim, architecture.depth, architecture.num_heads, architecture.ffn)
        name = next((name for name, size in NETS.items() if SIZES[size] == sizes), None)
        if name is None:
            raise ValueError(f"backend=package: it has no network of {architecture}; use backend=native")

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
