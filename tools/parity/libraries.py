"""Networks of timm and transformers with random weights and files of them, and ours in files that these libraries read.

All weights matter: LayerScale and registers would begin at almost nothing.
"""

import contextlib
import functools
import io
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import save_file
from timm.models import eva, vision_transformer
from torch import Tensor, nn

from dinoswap import export
from dinoswap.backbone import Backbone, read
from dinoswap.build import initial_backbone
from dinoswap.config.command_line import compose_config
from dinoswap.nn.vit import VisionTransformer
from dinoswap.nn.weights.dinov3 import released_position
from dinoswap.nn.weights.save import own

Features = Callable[[Tensor], Tensor]
"""Images [B, 3, H, W] -> [class token, registers, patches] [B, T, D]."""


def images(size: tuple[int, int], seed: int = 1) -> Tensor:
    return torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def shaken(network: nn.Module, scale: float = 0.05) -> nn.Module:
    """The network, in evaluation mode, with noise on all of its weights."""
    generator = torch.Generator().manual_seed(0)
    for parameter in network.parameters():
        parameter += scale * torch.randn(parameter.shape, generator=generator)
    return network.eval()


def ours(backbone: VisionTransformer | Backbone) -> Features:
    def features(crops: Tensor) -> Tensor:
        tokens = backbone(crops)
        return torch.cat(
            [part for part in (tokens.cls[:, None], tokens.registers, tokens.patch) if part is not None], 1
        )

    return features


# --- theirs, which we read --------------------------------------------------------------------------------------------

TIMM_ROTARY = [
    ("vit_small_patch16_dinov3", {"depth": 4}),
    ("vit_small_patch16_dinov3_qkvb", {"depth": 4}),
    ("vit_small_plus_patch16_dinov3", {"depth": 4}),
]
_SMALL_TABLE = {
    "depth": 2, "patch_size": 16, "img_size": 64, "dynamic_img_size": True, "embed_dim": 128, "num_heads": 2,
}  # fmt: skip
TIMM_WITH_TABLE = [
    (f"vit_{size}_patch14{registers}_dinov2", _SMALL_TABLE)
    for size in ("small", "giant")
    for registers in ("", "_reg4")
]
"""Names of timm's models and arguments of create_model; a giant has a SwiGLU."""

SMALL = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 64, "patch_size": 16}
_ROTARY = {"hidden_size": 96, "intermediate_size": 200, "num_hidden_layers": 3, "num_attention_heads": 3}
_GATED = {"use_gated_mlp": True, "hidden_act": "silu"}
_OTHER = {"num_register_tokens": 0, "key_bias": True, "rope_theta": 20.0, "layer_norm_eps": 1e-3}
TRANSFORMERS_ROTARY: list[tuple[str, dict[str, Any]]] = [
    ("DINOv3ViT", {**_ROTARY, "num_register_tokens": 4}),
    ("DINOv3ViT", {**_ROTARY, "num_register_tokens": 4, **_GATED}),
    ("DINOv3ViT", {**_ROTARY, **_OTHER}),
    ("DINOv3ViT", {**_ROTARY, **_OTHER, **_GATED}),
]
TRANSFORMERS_WITH_TABLE: list[tuple[str, dict[str, Any]]] = [
    ("Dinov2", {}),
    ("Dinov2", {"use_swiglu_ffn": True, "layer_norm_eps": 1e-3}),
    ("Dinov2", {"qkv_bias": False, "mlp_ratio": 2, "use_mask_token": False}),
    ("Dinov2WithRegisters", {"num_register_tokens": 3}),
    ("Dinov2WithRegisters", {"num_register_tokens": 0, "use_swiglu_ffn": True}),
    ("ViT", {"intermediate_size": 200}),
    ("ViT", {"intermediate_size": 200, "layer_norm_eps": 1e-6, "qkv_bias": False}),
]
"""Names of transformers' models without their Model, and what is not as in `SMALL`."""


def of_timm(name: str, arguments: dict[str, Any], file: Path) -> Features:
    """Writes a network of timm as a file of its tensors."""
    network = shaken(timm.create_model(name, **arguments))
    save_file(network.state_dict(), file)
    return features_of(network)


def network_of_transformers(model: str, changes: dict[str, Any], **arguments: Any) -> nn.Module:
    import transformers  # takes seconds

    config = getattr(transformers, f"{model}Config")(**{**SMALL, **changes})
    return shaken(getattr(transformers, f"{model}Model")(config, **arguments))


def folder_of_transformers(model: str, changes: dict[str, Any], folder: Path) -> nn.Module:
    """Writes a network of transformers as its save_pretrained does, and returns it."""
    network = network_of_transformers(model, changes, **({"add_pooling_layer": False} if model == "ViT" else {}))
    network.save_pretrained(folder)  # type: ignore[operator]
    return network


def features_of(network: nn.Module) -> Features:
    """Of a network of timm or transformers; a ViTModel has to be asked to take images of other sizes."""
    if hasattr(network, "forward_features"):
        return network.forward_features  # type: ignore[return-value]
    asked = {"interpolate_pos_encoding": True} if type(network).__name__ == "ViTModel" else {}
    return lambda crops: network(crops, **asked).last_hidden_state  # type: ignore[no-any-return]


# --- ours, which they read --------------------------------------------------------------------------------------------

BY_SIZE = ["model.interpolate_offset=0", "model.interpolate_antialias=true", "model.registers=2"]
SWIGLU = ["preset=dinov3", "model.ffn=swiglu", "model.registers=1", "model.key_bias=false"]
WRITTEN: list[tuple[str, list[str], bool]] = [  # changes, whether features are the same off the size of the crops
    ("official", ["model.interpolate_antialias=false", "model.interpolate_offset=0.1"], False),
    ("antialiased", ["model.interpolate_offset=0", "model.interpolate_antialias=true"], True),
    ("registers", BY_SIZE, True),
    ("swiglu", ["model.ffn=swiglu", "model.qkv_bias=false", *BY_SIZE], True),
    ("no LayerScale", ["model.layerscale=null", *BY_SIZE], True),
    ("rotary", ["preset=dinov3", "position.dtype=fp32"], True),
    ("rotary swiglu", [*SWIGLU, "position.dtype=fp32", "position.base=50", "model.qkv_bias=false"], True),
]
"""Changes of recipe=smoke, whose crops have sides of 32 pixels."""

_VIT_S: dict[str, Any] = {"patch_size": 16, "embed_dim": 384, "depth": 4, "num_heads": 6}
_TABLE: dict[str, Any] = {**_VIT_S, "img_size": 64, "interpolate_offset": 0.0, "interpolate_antialias": True}
_ROPE: dict[str, Any] = {
    **_VIT_S, "img_size": 224, "registers": 4, "key_bias": False, "norm_eps": 1e-5, "position": released_position(),
}  # fmt: skip
_OF_TABLE = {"depth": 4, "patch_size": 16, "img_size": 64, "dynamic_img_size": True}
OFFICIAL_LAYOUTS: list[tuple[str, str, dict[str, Any], dict[str, Any]]] = [
    ("dinov2", "vit_small_patch14_dinov2", _OF_TABLE, _TABLE),
    ("dinov2", "vit_small_patch14_reg4_dinov2", _OF_TABLE, {**_TABLE, "registers": 4}),
    ("dinov3", "vit_small_patch16_dinov3_qkvb", {"depth": 4}, _ROPE),
    ("dinov3", "vit_small_plus_patch16_dinov3_qkvb", {"depth": 4}, {**_ROPE, "ffn": "swiglu", "mlp_ratio": 6.0}),
]
"""Layouts of official codes, timm's models that read files in them, with their arguments, and those of ours."""
_FILTERS = {"dinov2": vision_transformer.checkpoint_filter_fn, "dinov3": eva.checkpoint_filter_fn}


def own_file(network: VisionTransformer, file: Path) -> Backbone:
    """Writes the network, with noise on its weights, in our own layout, and reads it."""
    shaken(network, 0.1)
    tensors, metadata = own(network, {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]})
    save_file(tensors, file, metadata)
    return read(file)


def configured_file(changes: list[str], file: Path) -> Backbone:
    """The same of the network of recipe=smoke with these changes."""
    return own_file(initial_backbone(compose_config(["recipe=smoke", *changes])), file)


def printed_call(printed: str, library: str) -> Any:
    """What the call that dinoswap-export printed returns."""
    (line,) = re.findall(rf"^  ({library}\..*)$", printed, re.MULTILINE)
    return eval(line, {library: __import__(library), "functools": functools, "torch": torch})


def exported(file: Path, layout: str, out: Path) -> str:
    """Writes a file of ours with dinoswap-export, and returns what it prints. Raises ValueError where it refuses."""
    with contextlib.redirect_stdout(io.StringIO()) as printed, contextlib.redirect_stderr(io.StringIO()) as refused:
        status = export.main([str(file), "--format", layout, "-o", str(out), "--allow-differences"])
    if status:
        raise ValueError(refused.getvalue())
    return printed.getvalue()


def read_by_library(file: Path, layout: str, out: Path) -> Features:
    """A file of ours as timm, transformers (layout huggingface) or onnxruntime compute it from what dinoswap-export
    writes."""
    printed = exported(file, layout, out)
    if layout == "onnx":
        return of_onnx(out)
    return features_of(printed_call(printed, "timm" if layout == "timm" else "transformers").eval())


def of_onnx(file: Path) -> Features:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(file))

    def features(crops: Tensor) -> Tensor:
        cls, *others = map(torch.from_numpy, session.run(None, {"images": crops.numpy()}))
        return torch.cat([cls[:, None], *others], dim=1)

    return features


def read_by_timm(layout: str, tensors: dict[str, Tensor], name: str, arguments: dict[str, Any]) -> Features:
    """Tensors in the layout of an official code, as a network of timm computes them: by its own filter for official
    files, and strictly."""
    network = timm.create_model(name, **arguments).eval()
    network.load_state_dict(_FILTERS[layout](dict(tensors), network))
    return features_of(network)
