"""Networks of timm and transformers with DINOv3's architecture, and random weights of their own, against ours."""

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import timm
import torch

from dinoswap.backbone import read
from dinoswap.files.weights import digest_of, weight_file
from dinoswap.nn.vit import VisionTransformer
from dinoswap.nn.weights.files import WeightFile
from dinoswap.nn.weights.load import interpreted, load_backbone
from dinoswap.nn.weights.save import exported
from parity.libraries import (
    OFFICIAL_LAYOUTS,
    SMALL,
    TIMM_ROTARY,
    TIMM_WITH_TABLE,
    TRANSFORMERS_ROTARY,
    TRANSFORMERS_WITH_TABLE,
    Features,
    features_of,
    folder_of_transformers,
    images,
    network_of_transformers,
    of_timm,
    ours,
    read_by_timm,
    shaken,
)

SIZES = [(64, 96), (112, 112), (224, 160)]


@pytest.fixture(autouse=True)
def no_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


def assert_equal_features(backbone: VisionTransformer, theirs: Features) -> None:
    for size in SIZES:
        torch.testing.assert_close(ours(backbone.eval())(images(size)), theirs(images(size)), rtol=0, atol=1e-5)


def assert_equal_masked(backbone: VisionTransformer, network: torch.nn.Module) -> None:
    mask = torch.rand(2, 24, generator=torch.Generator().manual_seed(2)) < 0.5
    found = backbone.eval()(images((64, 96)), mask).patch
    expected = network(images((64, 96)), bool_masked_pos=mask).last_hidden_state[:, backbone.prefix :]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("name", "arguments"), TIMM_ROTARY, ids=[name for name, _ in TIMM_ROTARY])
def test_a_network_of_timm(name: str, arguments: dict[str, Any], tmp_path: Path) -> None:
    theirs = of_timm(name, arguments, tmp_path / "timm.safetensors")
    weights = load_backbone(tmp_path / "timm.safetensors")
    assert weights.assumed[:3] == ["num_heads 6", "norm_eps 1e-05", "position.base 100.0"]
    assert weights.architecture["qkv_bias"] is name.endswith("_qkvb")
    assert "no mask token" in weights.notes[0]
    assert_equal_features(weights.network(), theirs)


def test_the_heads_of_timms_7b_are_those_of_the_released_one() -> None:
    """Twice as wide as all others, which no tensor shows."""
    with torch.device("meta"):
        network = timm.create_model("vit_7b_patch16_dinov3", depth=1)
    weights = interpreted(WeightFile(Path(), network.state_dict(), {}))
    assert weights.architecture["num_heads"] == network.blocks[0].attn.num_heads == 32


@pytest.mark.parametrize(
    ("layout", "name", "arguments", "of_ours"), OFFICIAL_LAYOUTS, ids=[name for _, name, *_ in OFFICIAL_LAYOUTS]
)
def test_timm_reads_an_export(layout: str, name: str, arguments: dict[str, Any], of_ours: dict[str, Any]) -> None:
    """By its own filter for official files, and strictly."""
    backbone = VisionTransformer(**of_ours)
    shaken(backbone)
    assert_equal_features(backbone, read_by_timm(layout, exported(backbone)[0], name, arguments))


@pytest.mark.parametrize(("model", "changes"), TRANSFORMERS_ROTARY, ids=["mlp", "gated", "mlp-other", "gated-other"])
def test_a_folder_of_transformers(model: str, changes: dict[str, Any], tmp_path: Path) -> None:
    network = folder_of_transformers(model, changes, tmp_path)
    weights = load_backbone(tmp_path)
    assert weights.assumed == []
    assert_equal_features(weights.network(), features_of(network))
    assert_equal_masked(weights.network(), network)


@pytest.mark.parametrize(("model", "changes"), TRANSFORMERS_WITH_TABLE, ids=str)
def test_a_folder_of_transformers_with_a_table(model: str, changes: dict[str, Any], tmp_path: Path) -> None:
    network = folder_of_transformers(model, changes, tmp_path)
    weights = load_backbone(tmp_path)
    assert weights.assumed == []
    without_mask = model == "ViT" or not changes.get("use_mask_token", True)
    assert [note.split(":")[0] for note in weights.notes] == ["there is no mask token"] * without_mask + [
        "there is no LayerScale"
    ] * (model == "ViT")
    assert_equal_features(weights.network(), features_of(network))
    if not without_mask:
        assert_equal_masked(weights.network(), network)


@pytest.mark.parametrize("model", ["Dinov2", "Dinov2WithRegisters", "ViT"])
def test_the_names_of_a_network_without_its_config(model: str, tmp_path: Path) -> None:
    """As torch.save writes them, which differ from those that save_pretrained writes; the heads cannot be told."""
    network = network_of_transformers(model, {}, **({"add_pooling_layer": False} if model == "ViT" else {}))
    torch.save(network.state_dict(), tmp_path / "weights.pth")
    weights = load_backbone(tmp_path / "weights.pth", num_heads=4)
    eps = "1e-12" if model == "ViT" else "1e-06"
    assert weights.notes[0] == f"no config.json beside it: norm_eps {eps}, {type(network).__name__}'s default"
    assert_equal_features(weights.network(), features_of(network))
    silent = load_backbone(tmp_path / "weights.pth")
    assert silent.assumed == ["num_heads 1"]


def test_the_backbone_of_a_classifier_of_transformers(tmp_path: Path) -> None:
    import transformers

    config = transformers.Dinov2Config(**SMALL)
    network = shaken(transformers.Dinov2ForImageClassification(config))
    network.save_pretrained(tmp_path)
    assert_equal_features(load_backbone(tmp_path).network(), features_of(network.dinov2))


@pytest.mark.parametrize(
    ("model", "changes", "message"),
    [
        ("DINOv3ViT", {"hidden_act": "relu"}, r"hidden_act=relu in config\.json: .* gelu alone"),
        ("Dinov2", {"hidden_act": "gelu_new"}, r"hidden_act=gelu_new in config\.json: .* gelu alone"),
        ("ViT", {}, r"pooler\.dense: a layer behind the tokens.*add_pooling_layer=False"),
        ("ViTMSN", {}, r"model_type=vit_msn in config\.json: another network; .* give DINOv3ViTModel, Dinov2Model"),
    ],
)
def test_a_model_of_transformers_that_is_another_network(
    model: str, changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    network_of_transformers(model, changes).save_pretrained(tmp_path)  # type: ignore[operator]
    with pytest.raises(ValueError, match=message):
        load_backbone(tmp_path)


def in_parts(network: torch.nn.Module, folder: Path) -> Path:
    """A folder of transformers with its weights in several files."""
    network.save_pretrained(folder, max_shard_size="100KB")  # type: ignore[operator]
    assert len(list(folder.glob("model-*.safetensors"))) > 2
    assert not (folder / "model.safetensors").exists()
    return folder


def test_weights_in_several_files(tmp_path: Path) -> None:
    """Are those of one file, and known by the bytes of all, whatever the names and the order of the files are."""
    network = folder_of_transformers("Dinov2", {}, tmp_path / "whole")
    folder = in_parts(network, tmp_path / "parts")
    whole, parts = load_backbone(tmp_path / "whole"), load_backbone(folder)
    assert (parts.architecture, parts.assumed, parts.notes) == (whole.architecture, [], [])
    assert all(torch.equal(value, parts.state[name]) for name, value in whole.state.items())
    assert_equal_features(parts.network(), features_of(network))
    assert read(folder).config["num_heads"] == 4  # as the commands read it
    single = weight_file(str(tmp_path / "whole"))
    assert digest_of(single) == hashlib.sha256(single.read_bytes()).hexdigest()

    index = weight_file(str(folder))
    before = digest_of(index)
    listed = json.loads(index.read_text())
    placed, first = listed["weight_map"], sorted(set(listed["weight_map"].values()))[0]
    (folder / first).rename(folder / "zz.safetensors")
    reversed_map = {name: placed[name].replace(first, "zz.safetensors") for name in reversed(placed)}
    index.write_text(json.dumps({"weight_map": reversed_map}))
    assert digest_of(index) == before
    assert torch.equal(load_backbone(folder).state["norm.weight"], whole.state["norm.weight"])
    with (folder / "zz.safetensors").open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\x01")
    assert digest_of(index) != before


def test_an_index_that_does_not_fit_its_files(tmp_path: Path) -> None:
    folder = in_parts(network_of_transformers("Dinov2", {}), tmp_path / "parts")
    index = weight_file(str(folder))
    listed = json.loads(index.read_text())
    first, second, *_ = sorted(set(listed["weight_map"].values()))

    def refused(content: Any, message: str) -> None:
        index.write_text(content if isinstance(content, str) else json.dumps({"weight_map": content}))
        with pytest.raises(ValueError, match=message):
            load_backbone(folder)

    outside = {name: f"../parts/{part}" for name, part in listed["weight_map"].items()}
    refused(outside, r"index\.json: lists \.\./parts/model-00001-of.*, which is outside of its folder")
    refused(
        {"norm.weight": "/etc/x.safetensors"}, r"index\.json: lists /etc/x\.safetensors, which is outside of its folder"
    )
    refused({"norm.weight": index.name}, r"lists model\.safetensors\.index\.json, which is no safetensors file")
    refused({"norm.weight": first}, r"its parts have other tensors than it lists \(embeddings")
    refused({}, r"has no weight_map, from tensors to files")
    refused({"norm.weight": 3}, r"has no weight_map, from tensors to files")
    refused("{", r"index\.json: cannot be read")
    (folder / second).unlink()
    refused(listed["weight_map"], rf"index\.json: lists {second}, which is missing; put it beside the others")
    with pytest.raises(ValueError, match=rf"^path={folder}: .*{second}, which is missing"):
        weight_file(str(folder), "path")


@pytest.mark.parametrize(("name", "arguments"), TIMM_WITH_TABLE, ids=[name for name, _ in TIMM_WITH_TABLE])
def test_a_network_of_timm_with_a_table(name: str, arguments: dict[str, Any], tmp_path: Path) -> None:
    theirs = of_timm(name, arguments, tmp_path / "timm.safetensors")
    weights = load_backbone(tmp_path / "timm.safetensors")
    assert weights.assumed == ["num_heads 2"]
    assert_equal_features(weights.network(), theirs)
