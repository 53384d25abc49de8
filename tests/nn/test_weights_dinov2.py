"""Weight files of DINOv2, DINO v1 and timm's DINOv2 load, exports come back, and what does not fit is named."""

import argparse
import random
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from vit_fixture import VIT, error, official

from dinoswap.nn.vit import VisionTransformer
from dinoswap.nn.weights import dinov2, save
from dinoswap.nn.weights.files import read_weights
from dinoswap.nn.weights.layout import infer_architecture
from dinoswap.nn.weights.load import load_backbone, load_into
from options import build_option

FLAT = {key.removeprefix("sd/"): VIT[key] for key in VIT.keys("sd/")}
HEADS = 3
# Blocks 0, 1, 2 of a model built with block_chunks=3: chunk i begins with i placeholders, so block i is blocks.i.i.
CHUNKED = {re.sub(r"^blocks\.(\d)", r"blocks.\1.\1", key): value for key, value in FLAT.items()}


def prefixed(prefix: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {prefix + key: value for key, value in state.items()}


STUDENT = {key: value + 1 for key, value in FLAT.items()}
LAYOUTS: dict[str, Any] = {
    "flat": FLAT,
    "chunked": CHUNKED,
    "teacher": {"teacher": {**prefixed("backbone.", CHUNKED), "dino_head.mlp.0.bias": torch.zeros(3)}},
    "data parallel": prefixed("module.backbone.", FLAT),
    "training": {
        "model": {
            **prefixed("student.backbone.", {k: v + 1 for k, v in FLAT.items()}),
            **prefixed("teacher.backbone.", FLAT),
        },
        "iteration": 7,
    },
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_loads(layout: str, tmp_path: Path) -> None:
    torch.save(LAYOUTS[layout], tmp_path / "weights.pth")
    state = load_backbone(tmp_path / "weights.pth", HEADS).state
    assert state.keys() == FLAT.keys()
    assert all(torch.equal(state[key], FLAT[key]) for key in FLAT)


def test_a_loaded_network_computes_the_official_tokens(tmp_path: Path) -> None:
    save_file(CHUNKED, tmp_path / "weights.safetensors")
    backbone = load_backbone(tmp_path / "weights.safetensors", HEADS).network()
    assert error(backbone(VIT["in/x32"]), "single32") < 2e-6


@pytest.mark.parametrize("numbers", [
    {"img_size": 16, "patch_size": 8, "embed_dim": 64, "depth": 2, "num_heads": 1, "registers": 0, "layerscale": None},
    {"img_size": 28, "patch_size": 14, "embed_dim": 128, "depth": 3, "num_heads": 2, "registers": 4, "ffn": "swiglu"},
    {"img_size": 16, "patch_size": 4, "embed_dim": 64, "depth": 1, "num_heads": 1, "mlp_ratio": 2.5, "qkv_bias": False},
])  # fmt: skip
def test_architecture_is_read_off_the_weights(numbers: dict[str, Any]) -> None:
    state = VisionTransformer(**numbers).state_dict()
    backbone = VisionTransformer(**infer_architecture(state))
    load_into(backbone, state)
    assert backbone.grid == (numbers["img_size"] // numbers["patch_size"],) * 2
    assert backbone.blocks[0].attn.num_heads == numbers["num_heads"]


@pytest.mark.parametrize("hidden", [53, 87, 106, 152, 155])
@pytest.mark.parametrize("ffn", ["mlp", "swiglu"])
def test_feed_forward_layers_of_any_width_are_built_again(ffn: Any, hidden: int) -> None:
    """76 * (hidden / 76) in floating point is below `hidden`, and a SwiGLU of a width without divisors is one, too."""
    with torch.device("meta"):
        state = VisionTransformer(16, 8, 76, 1, 2, mlp_ratio=(hidden + 0.5) / 76, ffn=ffn, ffn_align=1).state_dict()
        again = VisionTransformer(**infer_architecture(state, num_heads=2)).state_dict()
    assert {name: value.shape for name, value in state.items()} == {name: value.shape for name, value in again.items()}


def test_a_giant_has_the_usual_mlp_ratio() -> None:
    with torch.device("meta"):
        state = VisionTransformer(28, 14, embed_dim=1536, depth=1, num_heads=24, ffn="swiglu").state_dict()
    assert state["blocks.0.mlp.w12.weight"].shape == (8192, 1536)
    assert infer_architecture(state)["mlp_ratio"] == 4
    assert infer_architecture(state)["num_heads"] == 24


@pytest.mark.parametrize(("block_chunks", "expected"), [(0, FLAT), (3, CHUNKED)])
def test_export_has_the_official_names(block_chunks: int, expected: dict[str, Tensor]) -> None:
    exported = dinov2.export(official(), block_chunks)
    assert exported.keys() == expected.keys()
    assert all(torch.equal(exported[key], expected[key]) for key in expected)


def test_export_in_chunks_of_several_blocks(tmp_path: Path) -> None:
    backbone = VisionTransformer(16, 8, embed_dim=64, depth=4, num_heads=1)
    exported = dinov2.export(backbone, block_chunks=2)
    assert sorted({key.rsplit(".", 2)[0] for key in exported if key.endswith("norm1.bias")}) == [
        "blocks.0.0", "blocks.0.1", "blocks.1.2", "blocks.1.3"
    ]  # fmt: skip
    torch.save(exported, tmp_path / "weights.pth")
    back = load_backbone(tmp_path / "weights.pth").state
    assert all(torch.equal(back[key], value) for key, value in backbone.state_dict().items())


def test_exports_share_no_memory_with_the_network() -> None:
    backbone = official()
    exported = dinov2.export(backbone)
    backbone.cls_token.data.add_(1)
    assert torch.equal(exported["cls_token"], FLAT["cls_token"])


def test_position_table_is_resampled_only_when_asked() -> None:
    """Resampled once at loading or on the fly: the tokens are the same."""
    larger = official().state_dict()
    backbone = VisionTransformer(16, 8, embed_dim=48, depth=3, num_heads=3, registers=2, layerscale=0.1)
    with pytest.raises(ValueError, match=r"pos_embed is \[1, 17, 48\], not \[1, 5, 48\].*resample"):
        load_into(backbone, larger)
    load_into(backbone, larger, resample=True)
    assert error(backbone(VIT["in/x16"]), "single16") < 2e-6


def test_keys_that_do_not_fit_are_named(tmp_path: Path) -> None:
    state = {**FLAT, "extra": torch.zeros(1), "norm.bias": torch.zeros(5)}
    del state["blocks.1.ls1.gamma"]
    named = r"missing blocks.1.ls1.gamma, norm.bias is \[5\], not \[48\], unexpected extra"
    with pytest.raises(ValueError, match=named):
        load_into(official(), state)
    torch.save(state, tmp_path / "weights.pth")
    with pytest.raises(ValueError, match=f"weights.pth: {named}; give the weights of one whole backbone"):
        load_backbone(tmp_path / "weights.pth", HEADS)


class Payload:
    """Unpickling it would create a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return Path.touch, (self.path,)


def test_loading_never_executes_code(tmp_path: Path) -> None:
    torch.save({"cls_token": Payload(tmp_path / "executed")}, tmp_path / "weights.pth")
    with pytest.raises(ValueError, match="not a whole file of tensors alone"):
        load_backbone(tmp_path / "weights.pth")
    assert not (tmp_path / "executed").exists()


def test_other_files_are_refused(tmp_path: Path) -> None:
    torch.save({"encoder.weight": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match=r"no cls_token among its keys \(encoder.weight\)"):
        load_backbone(tmp_path / "other.pth")
    torch.save([torch.zeros(1)], tmp_path / "list.pth")
    with pytest.raises(ValueError, match="holds a list"):
        load_backbone(tmp_path / "list.pth")
    (tmp_path / "broken.safetensors").write_bytes(b"0123456789")
    with pytest.raises(ValueError, match="not a whole file of tensors alone"):
        load_backbone(tmp_path / "broken.safetensors")
    whole = tmp_path / "whole.pth"
    torch.save(FLAT, whole)
    (tmp_path / "half.pth").write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    with pytest.raises(ValueError, match="not a whole file of tensors alone"):
        load_backbone(tmp_path / "half.pth")


@pytest.mark.parametrize("zipped", [True, False])
def test_damaged_files_are_refused_in_a_line(zipped: bool, tmp_path: Path) -> None:
    """Whichever bytes are wrong, and files that are none of weights."""
    path, generator = tmp_path / "damaged.pth", random.Random(0)
    torch.save({"a": torch.zeros(3), "b": {"c": torch.ones(2)}}, path, _use_new_zipfile_serialization=zipped)
    whole, refused = path.read_bytes(), 0
    for number in range(300):
        damaged = (
            bytearray(whole)
            if number % 2
            else bytearray(generator.choices(b"abcINS(]}0.\n", k=generator.randrange(40)))
        )
        for place in generator.choices(range(len(damaged)), k=2) if damaged else []:
            damaged[place] = generator.randrange(256)
        path.write_bytes(damaged)
        try:
            read_weights(path)
        except ValueError as error:
            refused += str(error).startswith(f"{path}: ")
    assert refused > 150


def test_what_cannot_be_inferred_is_asked_for() -> None:
    with pytest.raises(ValueError, match="give num_heads"):
        infer_architecture(FLAT)
    table = {**FLAT, "pos_embed": torch.zeros(1, 7, 48)}
    with pytest.raises(ValueError, match="give img_size"):
        infer_architecture(table, num_heads=3)
    assert infer_architecture(table, num_heads=3, img_size=(16, 24))["img_size"] == (16, 24)
    with pytest.raises(ValueError, match="block_chunks=2: must divide the depth of 3"):
        dinov2.export(official(), block_chunks=2)


def dino_v1(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same network without what DINO v1 does not have."""
    return {key: value for key, value in state.items() if key != "mask_token" and ".ls" not in key}


def test_a_file_of_dino_v1_loads_without_mask_token_and_layer_scale(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pth"
    inside = {"teacher": prefixed("backbone.", dino_v1(FLAT)), "args": argparse.Namespace(arch="vit_small"), "epoch": 3}
    torch.save(inside, path)
    backbone = load_backbone(path, HEADS).network().eval()
    reference = VisionTransformer(**infer_architecture(FLAT, HEADS)).eval()
    load_into(reference, FLAT | {key: torch.ones_like(value) for key, value in FLAT.items() if ".ls" in key})
    images = VIT["in/x32"]
    with torch.no_grad():
        assert torch.equal(backbone(images).patch, reference(images).patch)


def test_timm_names_and_its_class_token_without_a_position(tmp_path: Path) -> None:
    """timm adds the table to the patches alone: what it calls cls_token already holds the position."""
    dim, registers = FLAT["cls_token"].shape[-1], torch.randn(1, 2, FLAT["cls_token"].shape[-1])
    renamed = {key: value for key, value in FLAT.items() if key not in ("mask_token", "register_tokens")}
    timm = renamed | {
        "reg_token": registers,
        "cls_token": FLAT["cls_token"] + FLAT["pos_embed"][:, :1],
        "pos_embed": FLAT["pos_embed"][:, 1:],
    }
    torch.save(timm, tmp_path / "timm.pth")
    weights = load_backbone(tmp_path / "timm.pth", HEADS)
    assert torch.equal(weights.state["pos_embed"][:, :1], torch.zeros(1, 1, dim))
    ours, theirs = weights.network(), VisionTransformer(**weights.architecture)
    load_into(theirs, FLAT | {"register_tokens": registers})
    with torch.no_grad():
        torch.testing.assert_close(ours(VIT["in/x32"]).patch, theirs(VIT["in/x32"]).patch)


def test_what_tensors_do_not_say_is_in_the_metadata_of_an_export(tmp_path: Path) -> None:
    path = tmp_path / "export.safetensors"
    backbone = VisionTransformer(32, 8, 64, 1, num_heads=4, registers=2, interpolate_offset=0.1)
    tensors, metadata = save.exported(backbone)
    save_file(tensors, path, metadata)
    stated = load_backbone(path)
    assert not stated.assumed
    assert (stated.architecture["num_heads"], stated.architecture["interpolate_offset"]) == (4, 0.1)
    assert stated.architecture["interpolate_antialias"] is False
    assert load_backbone(path, num_heads=2).architecture["num_heads"] == 2

    save_file(dinov2.export(backbone), path)
    silent = load_backbone(path)
    assert (silent.architecture["num_heads"], silent.architecture["interpolate_offset"]) == (1, 0.0)
    assert silent.assumed == ["num_heads 1", "interpolate_offset 0.0", "interpolate_antialias True"]


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"position": build_option("position/rope")}, "position=rope"),
        ({"stem": ((8, 2),)}, "model.stem"),
        ({"norm": "rmsnorm"}, "model.norm"),
        ({"norm_eps": 1e-5}, "model.norm_eps"),
        ({"cls_norm": True, "local_cls_norm": True}, "model.cls_norm, model.local_cls_norm"),
    ],
)
def test_a_network_that_the_layout_cannot_say_is_not_exported(changes: dict[str, Any], named: str) -> None:
    backbone = VisionTransformer(img_size=32, patch_size=8, embed_dim=32, depth=1, num_heads=2, **changes)
    with pytest.raises(ValueError, match=f"{named}.*: dinov2's models have no such network"):
        dinov2.export(backbone)
