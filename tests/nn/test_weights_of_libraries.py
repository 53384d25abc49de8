"""Networks of timm and transformers with DINOv3's architecture, and random weights of their own, against ours."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.models.eva import checkpoint_filter_fn
from torch import Tensor, nn

from dinoswap.nn.vit import VisionTransformer
from dinoswap.nn.weights import dinov3
from dinoswap.nn.weights.files import WeightFile
from dinoswap.nn.weights.load import interpreted, load_backbone
from options import build_option

SIZES = [(64, 96), (112, 112), (224, 160)]


@pytest.fixture(autouse=True)
def no_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


def shaken(network: nn.Module, seed: int = 0) -> nn.Module:
    """With weights that all matter: LayerScale and registers would begin at almost nothing."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in network.parameters():
        parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    return network.eval()


def images(size: tuple[int, int]) -> Tensor:
    return torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(1))


def assert_equal_features(ours: VisionTransformer, theirs: Callable[[Tensor], Tensor]) -> None:
    """`theirs` gives [cls, registers, patches] [B, T, D]."""
    for size in SIZES:
        found, expected = ours.eval()(images(size)), theirs(images(size))
        for value, wanted in ((found.cls, expected[:, 0]), (found.patch, expected[:, ours.prefix :])):
            torch.testing.assert_close(value, wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "name", ["vit_small_patch16_dinov3", "vit_small_patch16_dinov3_qkvb", "vit_small_plus_patch16_dinov3"]
)
def test_a_network_of_timm(name: str, tmp_path: Path) -> None:
    network = shaken(timm.create_model(name, depth=4))
    save_file(network.state_dict(), tmp_path / "timm.safetensors")
    weights = load_backbone(tmp_path / "timm.safetensors")
    assert weights.assumed[:3] == ["num_heads 6", "norm_eps 1e-05", "position.base 100.0"]
    assert weights.architecture["qkv_bias"] is name.endswith("_qkvb")
    assert "no mask token" in weights.notes[0]
    assert_equal_features(weights.network(), network.forward_features)


def test_the_heads_of_timms_7b_are_those_of_the_released_one() -> None:
    """Twice as wide as all others, which no tensor shows."""
    with torch.device("meta"):
        network = timm.create_model("vit_7b_patch16_dinov3", depth=1)
    weights = interpreted(WeightFile(Path(), network.state_dict(), {}))
    assert weights.architecture["num_heads"] == network.blocks[0].attn.num_heads == 32


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("vit_small_patch16_dinov3_qkvb", {}),
        ("vit_small_plus_patch16_dinov3_qkvb", {"ffn": "swiglu", "mlp_ratio": 6.0}),
    ],
)
def test_timm_reads_an_export(name: str, changes: dict[str, Any]) -> None:
    """By its own filter for official files, and strictly."""
    position = build_option("position/rope", dtype="fp32")
    arguments = {"registers": 4, "key_bias": False, "norm_eps": 1e-5, "position": position} | changes
    backbone = VisionTransformer(224, 16, 384, 4, 6, **arguments)
    shaken(backbone)
    network = timm.create_model(name, depth=4).eval()
    network.load_state_dict(checkpoint_filter_fn(dinov3.export(backbone), network))
    assert_equal_features(backbone, network.forward_features)


@pytest.mark.parametrize("gated", [False, True], ids=["mlp", "gated"])
@pytest.mark.parametrize(
    "beside", [{}, {"key_bias": True, "rope_theta": 20.0, "layer_norm_eps": 1e-3}], ids=["", "other"]
)
def test_a_folder_of_transformers(gated: bool, beside: dict[str, Any], tmp_path: Path) -> None:
    from transformers import DINOv3ViTConfig, DINOv3ViTModel  # takes seconds

    config = DINOv3ViTConfig(
        hidden_size=96,
        intermediate_size=200,
        num_hidden_layers=3,
        num_attention_heads=3,
        num_register_tokens=0 if beside else 4,
        use_gated_mlp=gated,
        hidden_act="silu" if gated else "gelu",
        **beside,
    )
    network = shaken(DINOv3ViTModel(config))
    network.save_pretrained(tmp_path)
    weights = load_backbone(tmp_path)
    assert weights.assumed == []
    assert_equal_features(weights.network(), lambda x: network(x).last_hidden_state)
    mask = torch.rand(2, 24, generator=torch.Generator().manual_seed(2)) < 0.5
    found = weights.network().eval()(images((64, 96)), mask).patch
    expected = network(images((64, 96)), bool_masked_pos=mask).last_hidden_state[:, weights.network().prefix :]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


SMALL = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 64, "patch_size": 16}
WITH_TABLE: list[tuple[str, dict[str, Any]]] = [
    ("Dinov2", {}),
    ("Dinov2", {"use_swiglu_ffn": True, "layer_norm_eps": 1e-3}),
    ("Dinov2", {"qkv_bias": False, "mlp_ratio": 2, "use_mask_token": False}),
    ("Dinov2WithRegisters", {"num_register_tokens": 3}),
    ("Dinov2WithRegisters", {"num_register_tokens": 0, "use_swiglu_ffn": True}),
    ("ViT", {"intermediate_size": 200}),
    ("ViT", {"intermediate_size": 200, "layer_norm_eps": 1e-6, "qkv_bias": False}),
]


def of_transformers(model: str, changes: dict[str, Any], **arguments: Any) -> nn.Module:
    import transformers  # takes seconds

    config = getattr(transformers, f"{model}Config")(**{**SMALL, **changes})
    return shaken(getattr(transformers, f"{model}Model")(config, **arguments))


def features(network: nn.Module) -> Callable[[Tensor], Tensor]:
    """Of a ViTModel it has to be asked to take images of other sizes."""
    asked = {"interpolate_pos_encoding": True} if type(network).__name__ == "ViTModel" else {}
    return lambda x: network(x, **asked).last_hidden_state  # type: ignore[no-any-return]


@pytest.mark.parametrize(("model", "changes"), WITH_TABLE, ids=str)
def test_a_folder_of_transformers_with_a_table(model: str, changes: dict[str, Any], tmp_path: Path) -> None:
    arguments = {"add_pooling_layer": False} if model == "ViT" else {}
    network = of_transformers(model, changes, **arguments)
    network.save_pretrained(tmp_path)  # type: ignore[operator]
    weights = load_backbone(tmp_path)
    assert weights.assumed == []
    without_mask = model == "ViT" or not changes.get("use_mask_token", True)
    assert [note.split(":")[0] for note in weights.notes] == ["there is no mask token"] * without_mask + [
        "there is no LayerScale"
    ] * (model == "ViT")
    assert_equal_features(weights.network(), features(network))
    if not without_mask:
        mask = torch.rand(2, 24, generator=torch.Generator().manual_seed(2)) < 0.5
        found = weights.network().eval()(images((64, 96)), mask).patch
        expected = network(images((64, 96)), bool_masked_pos=mask).last_hidden_state[:, weights.network().prefix :]
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("model", ["Dinov2", "Dinov2WithRegisters", "ViT"])
def test_the_names_of_a_network_without_its_config(model: str, tmp_path: Path) -> None:
    """As torch.save writes them, which differ from those that save_pretrained writes; the heads cannot be told."""
    network = of_transformers(model, {}, **({"add_pooling_layer": False} if model == "ViT" else {}))
    torch.save(network.state_dict(), tmp_path / "weights.pth")
    weights = load_backbone(tmp_path / "weights.pth", num_heads=4)
    eps = "1e-12" if model == "ViT" else "1e-06"
    assert weights.notes[0] == f"no config.json beside it: norm_eps {eps}, {type(network).__name__}'s default"
    assert_equal_features(weights.network(), features(network))
    silent = load_backbone(tmp_path / "weights.pth")
    assert silent.assumed == ["num_heads 1"]


def test_the_backbone_of_a_classifier_of_transformers(tmp_path: Path) -> None:
    import transformers

    config = transformers.Dinov2Config(**SMALL)
    network = shaken(transformers.Dinov2ForImageClassification(config))
    network.save_pretrained(tmp_path)
    assert_equal_features(load_backbone(tmp_path).network(), features(network.dinov2))


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
    of_transformers(model, changes).save_pretrained(tmp_path)  # type: ignore[operator]
    with pytest.raises(ValueError, match=message):
        load_backbone(tmp_path)


def test_weights_in_several_files_are_refused(tmp_path: Path) -> None:
    of_transformers("Dinov2", {}).save_pretrained(tmp_path, max_shard_size="100KB")  # type: ignore[operator]
    with pytest.raises(ValueError, match=r"has its weights in several files; write them as one: .*max_shard_size"):
        load_backbone(tmp_path)


@pytest.mark.parametrize("name", ["vit_small_patch14_dinov2", "vit_small_patch14_reg4_dinov2"])
@pytest.mark.parametrize("changes", [{}, {"swiglu": True}], ids=["mlp", "swiglu"])
def test_a_network_of_timm_with_a_table(name: str, changes: dict[str, Any], tmp_path: Path) -> None:
    sizes = {"depth": 2, "patch_size": 16, "img_size": 64, "dynamic_img_size": True}
    name = name.replace("small", "giant") if changes else name
    network = shaken(timm.create_model(name, embed_dim=128, num_heads=2, **sizes))
    save_file(network.state_dict(), tmp_path / "timm.safetensors")
    weights = load_backbone(tmp_path / "timm.safetensors")
    assert weights.assumed == ["num_heads 2"]
    assert_equal_features(weights.network(), network.forward_features)
