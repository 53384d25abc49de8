"""Any network of timm (pytorch-image-models) as the teacher: one of its feature maps, each position a token.

`layer` counts the maps of timm's `forward_intermediates`: the stages of a convolutional network, the blocks of a vision
transformer, whose map goes through the final norm. Nothing is ever downloaded.
"""

import difflib
import importlib
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import Tensor

from dinoswap.files.weights import digest_of, weight_file
from dinoswap.nn.weights.files import read_weights
from dinoswap.nn.weights.names import misfits, some
from dinoswap.teacher.base import Teacher, fixed_seed


class TimmTeacher(Teacher):
    """The feature map `layer` of a timm network as tokens, in row-major order."""

    def __init__(self, ckpt_path: str, *, variant: str, layer: int | None) -> None:
        """`variant` is the name of the network, `layer` None its last map. Raises ValueError for an unknown network or
        map, and for weights that do not fit."""
        network = _created(variant)
        index = _map(network, variant, layer)
        name = f"timm {variant} layer {index}"
        if ckpt_path:
            path = weight_file(ckpt_path)
            _load(network, path)
            weights, origin = f"sha256:{digest_of(path)[:16]}", f"of {path}, licence: whatever its weights came with"
        else:
            weights = "random weights"
            origin = "with RANDOM WEIGHTS, of use for tests alone; set ckpt_path to a state dict of it"
        info, config = network.feature_info[index], network.pretrained_cfg
        super().__init__(
            embed_dim=info.get("num_chs_norm", info["num_chs"]),  # a norm may project, as SAM's neck does
            patch_size=info["reduction"],
            identity=f"{name} {weights}",
            notice=f"teacher: {name} {origin}",
            mean=config["mean"],
            std=config["std"],
        )
        self.network = network
        self.options = {"indices": [index], "stop_early": True, "intermediates_only": True, "output_fmt": "NCHW"}
        self.options["norm"] = not type(network).__name__.startswith("Hiera")  # which refuses the option
        any_size = getattr(network, "dynamic_img_size", False) or not config.get("fixed_input_size")
        self.only_size = None if any_size else tuple(config["input_size"][1:])

    def forward(self, images: Tensor) -> Tensor:
        """Returns tokens [N, P, D] of images [N, 3, H, W]. Raises ValueError for a size that the network refuses."""
        size = height, width = tuple(images.shape[-2:])
        grid = height // self.patch_size, width // self.patch_size
        if size != (grid[0] * self.patch_size, grid[1] * self.patch_size) or self.only_size not in (None, size):
            only_size = f", and {self.only_size} alone" if self.only_size else ""
            raise ValueError(
                f"images of {size} pixels: {self.identity} takes multiples of {self.patch_size}{only_size}; give it "
                "such images, or choose another network or layer"
            )
        (features,) = self.network.forward_intermediates(images, **self.options)
        if features.shape[1:] != (self.embed_dim, *grid):
            raise ValueError(
                f"images of {size} pixels: {self.identity} gives a map {list(features.shape[1:])} where timm's "
                f"feature_info says {[self.embed_dim, *grid]}; use another layer or network"
            )
        tokens: Tensor = features.flatten(2).transpose(1, 2)  # [N, D, h, w] -> [N, D, P] -> [N, P, D]
        return tokens


def _created(variant: str) -> Any:
    """Returns the network `variant` of timm, a name with or without a tag of weights, without its classifier. Raises
    ValueError for any other name, as some forms would start a download, and for a network without feature maps."""
    timm = _timm()
    names = {*timm.list_models(), *timm.list_models(include_tags=True)}
    if variant not in names:
        similar = difflib.get_close_matches(variant, sorted(names)) or ["timm.list_models() has all"]
        raise ValueError(f"variant={variant}: no network of timm {timm.__version__}; {', '.join(similar)}?")
    with fixed_seed():
        network = _for_images_of_any_size(timm, variant)
    if not hasattr(network, "forward_intermediates"):
        raise ValueError(f"variant={variant}: timm {timm.__version__} gives no feature maps of it; use another network")
    return network


def _timm() -> ModuleType:
    """Returns the package timm. Raises ValueError, with the command that installs it, where it cannot be imported."""
    try:
        return importlib.import_module("timm")
    except ImportError as error:
        raise ValueError(f"cannot import timm ({error}); pip install 'dinoswap[timm]'") from error


def _for_images_of_any_size(timm: ModuleType, variant: str) -> Any:
    """Returns a vision transformer made for images of any size; other networks refuse that option and need none."""
    try:
        return timm.create_model(variant, num_classes=0, dynamic_img_size=True)
    except TypeError as error:
        if "dynamic_img_size" not in str(error):
            raise
        return timm.create_model(variant, num_classes=0)


def _map(network: Any, variant: str, layer: int | None) -> int:
    """Returns the index of the feature map `layer`, from 0. Raises ValueError where there is no such map."""
    strides = [described["reduction"] for described in network.feature_info]
    if layer is None:
        return len(strides) - 1
    if not -len(strides) <= layer < len(strides):
        raise ValueError(
            f"layer={layer}: {variant} has {len(strides)} feature maps, of strides {', '.join(map(str, strides))}; "
            f"use 0 to {len(strides) - 1}, or null for the last"
        )
    return layer % len(strides)


def _load(network: Any, path: Path) -> None:
    """Loads the weights of a file. The classifier is ignored, and the counters of batch norms may be missing. Raises
    ValueError where anything else is missing or of another shape."""
    state, network_state = read_weights(path), network.state_dict()
    heads = network.pretrained_cfg.get("classifier") or ()
    heads = tuple(f"{name}." for name in ([heads] if isinstance(heads, str) else heads))
    state = {key: value for key, value in state.items() if key in network_state or not key.startswith(heads)}
    needed = {
        key: value for key, value in network_state.items() if key in state or not key.endswith(".num_batches_tracked")
    }
    if problems := misfits(needed, state):
        raise ValueError(f"ckpt_path={path}: {some(problems)}; give the state dict of exactly this timm network")
    network.load_state_dict(state, strict=False)
