"""Weight files of DINOv3: official ones load strictly, timm's and transformers' networks compute what ours do, exports
come back, and what cannot be told from a file is said or refused.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from dinoswap.nn.vit import VisionTransformer
from dinoswap.nn.weights import dinov3, save
from dinoswap.nn.weights.files import WeightFile
from dinoswap.nn.weights.load import Weights, interpreted, load_backbone, load_into
from fixtures import DINOV3, Fixture, load_json
from options import build_option
from parity.dinov3_networks import TOKENS, hub_tensors

VIT = Fixture("vit_dinov3.npz", DINOV3)
VARIANTS: dict[str, dict[str, Any]] = VIT.meta["variants"]
HUB = load_json("keys_dinov3.json", DINOV3)["models"]
MASK = ".attn.qkv.bias_mask"


@pytest.fixture(autouse=True)
def no_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


# --- the official layout ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", HUB)
def test_each_released_model_loads_strictly(name: str) -> None:
    model = HUB[name]
    weights = interpreted(WeightFile(Path(), hub_tensors(model), {}))
    with torch.device("meta"):
        backbone = VisionTransformer(**weights.architecture)
    backbone.load_state_dict(weights.state, assign=True)  # raises where a name or a shape differs
    assert sum(p.numel() for p in backbone.parameters()) == model["parameters"]
    first: Any = backbone.blocks[0]
    assert (len(backbone.blocks), first.attn.num_heads) == (model["depth"], model["num_heads"])
    assert (backbone.prefix - 1, first.norm1.eps) == (model["registers"], model["norm_eps"])
    with_biases = "blocks.*.attn.qkv.bias" in model["keys"]
    assert (first.attn.qkv.bias is not None, first.attn.key_bias) == (with_biases, not with_biases)
    assert [note.partition(" ")[0] for note in weights.notes] == ["the"] * with_biases
    assert weights.assumed == ["norm_eps 1e-05", "position.normalise separate", "position.dtype fp32"]


def stored(variant: str | None = None) -> dict[str, Tensor]:
    """The state dict of the official network of the fixture, by official names."""
    prefix, arguments = f"variant/{variant}/sd/", VIT.meta["model_kwargs"]
    state = {key.removeprefix("sd/"): VIT[key] for key in VIT.keys("sd/")}
    if variant is None:
        return state
    state |= {key.removeprefix(prefix): VIT[key] for key in VIT.keys(prefix)}
    arguments = arguments | VARIANTS[variant]["model_kwargs"]
    absent = {
        "storage_tokens": not arguments["n_storage_tokens"],
        "attn.qkv.bias": not arguments["qkv_bias"],
        ".bias_mask": not arguments["mask_k_bias"] or not arguments["qkv_bias"],
        ".ls": arguments["layerscale_init"] is None,
        ".mlp.fc": "swiglu" in arguments["ffn_layer"],
        "norm.bias": arguments["norm_layer"] == "rmsnorm",
        "norm1.bias": arguments["norm_layer"] == "rmsnorm",
        "norm2.bias": arguments["norm_layer"] == "rmsnorm",
    }
    state = {name: value for name, value in state.items() if not any(k in name for k, gone in absent.items() if gone)}
    if VARIANTS[variant]["bias_mask"] == "zero":
        state |= {name: torch.zeros_like(value) for name, value in state.items() if name.endswith(MASK)}
    if variant == "rope_periods":
        state["rope_embed.periods"] = VIT["rope/periods_0.5_30/periods"]
    return state


OTHERS = ["cls_norm", "rmsnorm", "swiglu", "swiglu64", "no_qkv_bias", "key_bias", "zero_bias_mask"]
OTHERS += ["no_registers", "no_layerscale", "rope_periods", "other_eps", "rope_augmented_eval"]


@pytest.mark.parametrize("form", ["weights.pth", "weights.safetensors", "teacher.pth"])
@pytest.mark.parametrize("variant", [None, *OTHERS])
def test_an_official_file_computes_the_official_tokens(variant: str | None, form: str, tmp_path: Path) -> None:
    """Of every kind of network, whose epsilon a file does not say."""
    state, path = stored(variant), tmp_path / form
    arguments = VIT.meta["model_kwargs"] | (VARIANTS[variant]["model_kwargs"] if variant else {})
    eps = 1e-6 if arguments["norm_layer"] == "layernorm" else 1e-5
    if form == "teacher.pth":
        inside = {f"backbone.{name}": value for name, value in state.items()}
        torch.save({"teacher": inside | {"dino_head.last_layer.weight": torch.zeros(3)}}, path)
    elif form == "weights.pth":
        torch.save(state, path)
    else:
        save_file(state, path, {"norm_eps": str(eps)})
    weights = load_backbone(path)
    assert ("norm_eps 1e-05" in weights.assumed) == (form != "weights.safetensors" and variant != "no_registers")
    weights.architecture["norm_eps"] = eps
    section = f"variant/{variant}/single32" if variant else "single32"
    tokens = weights.network().eval()(VIT["in/x32"])
    for theirs, ours in TOKENS.items():
        torch.testing.assert_close(getattr(tokens, ours), VIT[f"{section}/{theirs}"], rtol=0, atol=4e-6)


def read(**changes: Tensor | None) -> Weights:
    """The base network with some tensors changed; None: without it."""
    state = {name: value for name, value in (stored() | changes).items() if value is not None}
    return interpreted(WeightFile(Path(), state, {}))


def test_any_mask_of_zeros_and_ones_is_folded_into_the_bias() -> None:
    bias = stored()["blocks.1.attn.qkv.bias"]
    mask = (torch.arange(144) % 2 == 0).float()
    mask[48:96] = 0
    weights = read(**{f"blocks.1{MASK}": mask, "blocks.1.attn.qkv.bias": torch.where(mask == 1, bias, torch.nan)})
    assert torch.equal(weights.state["blocks.1.attn.qkv.bias"], bias * mask)
    assert weights.architecture["key_bias"] is False
    ones = {f"blocks.{i}{MASK}": torch.ones(144) for i in range(3)}
    assert read(**ones).architecture["key_bias"] is True
    assert read(**ones).notes == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({f"blocks.1{MASK}": torch.full((144,), torch.nan)}, r"blocks\.1\.attn\.qkv\.bias_mask: must be 0 or 1"),
        ({f"blocks.1{MASK}": None}, r"missing blocks\.1\.attn\.qkv\.bias_mask"),
        ({"blocks.1.attn.qkv.bias": None}, r"missing blocks\.1\.attn\.qkv\.bias"),
        ({"blocks.2.mlp.fc1.bias": None}, r"missing blocks\.2\.mlp\.fc1\.bias"),
        ({"blocks.2.mlp.w1.bias": torch.zeros(3)}, r"missing blocks\.2\.mlp\.w2\.bias"),
        ({"head.weight": torch.zeros(3)}, r"unexpected head\.weight"),
        ({"norm.weight": torch.zeros(3)}, r"norm\.weight is \[3\], not \[48\]"),
        ({"rope_embed.periods": None}, r"missing rope_embed\.periods, and pos_embed too"),
        ({"rope_embed.periods": torch.tensor([1.0, 3.0, 5.0, 7.0])}, r"rope_embed\.periods: from 1 to 7, not in geo"),
        ({"rope_embed.periods": torch.ones(5)}, r"num_heads=2: rope_embed\.periods is of heads of 20 channels, and"),
    ],
)  # fmt: skip
def test_what_is_missing_unknown_or_of_another_network_is_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read(**changes)


def test_heads_of_another_width_than_the_periods_are_refused() -> None:
    with pytest.raises(ValueError, match=r"num_heads=6: rope_embed\.periods is of heads of 16 channels"):
        interpreted(WeightFile(Path(), stored(), {"num_heads": 6}))


@pytest.mark.parametrize(
    ("rotation", "expected"),
    [
        ({}, (100.0, None)),
        ({"base": 10.0}, (10.0, None)),
        ({"base": 12345.678}, (12345.68, None)),
        ({"base": None, "periods": [0.5, 30.0]}, (None, [0.5, 30.0])),
    ],
)
def test_base_or_periods_are_read_off(rotation: dict[str, Any], expected: tuple[Any, Any]) -> None:
    position = build_option("position/rope", **{"dtype": "fp32", **rotation})
    periods = position.periods(64, {"device": torch.device("cpu"), "dtype": torch.float32})
    with torch.device("meta"):
        tensors = VisionTransformer(32, 8, 64, 1, 1, position=position).state_dict()
    weights = interpreted(WeightFile(Path(), {**tensors, "rope_embed.periods": periods}, {}))
    found = weights.architecture["position"]
    assert (found.base, found.limits) == expected
    assert torch.allclose(found.periods(64, {"device": periods.device, "dtype": torch.float32}), periods, rtol=2e-6)
    rounded = interpreted(WeightFile(Path(), {**tensors, "rope_embed.periods": periods.bfloat16().float()}, {}))
    assert (len(weights.notes), len(rounded.notes)) == (0, 1)
    assert "rope_embed.periods is rounded" in rounded.notes[0]


# --- exports ----------------------------------------------------------------------------------------------------------


def network(**changes: Any) -> VisionTransformer:
    """With weights that all matter."""
    position = changes.pop("position", {})
    arguments: dict[str, Any] = {
        "img_size": 48, "patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 3, "registers": 2, "layerscale": 0.1,
    }  # fmt: skip
    backbone = VisionTransformer(**arguments | changes, position=build_option("position/rope", **position))
    generator = torch.Generator().manual_seed(0)
    for name, parameter in backbone.named_parameters():
        if not (name.endswith("qkv.bias") and not changes.get("key_bias", True)):
            parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    return backbone.eval()


NETWORKS: list[dict[str, Any]] = [
    {},
    {"norm_eps": 1e-5, "key_bias": False, "position": {"dtype": "fp32", "rescale": 2.0}},
    {"ffn": "swiglu", "mlp_ratio": 3.0, "ffn_align": 64, "registers": 0, "position": {"normalise": "max"}},
    {"norm": "rmsnorm", "norm_eps": 1e-5, "cls_norm": True, "local_cls_norm": True, "layerscale": None},
    {"qkv_bias": False, "num_heads": 2, "position": {"base": None, "periods": [0.3, 20.0], "dtype": "fp32"}},
    {"ffn": "swiglu", "mlp_ratio": 2.2, "ffn_align": 1, "position": {"base": 7.0}},
]


@pytest.mark.parametrize("changes", NETWORKS)
def test_an_export_comes_back_bit_for_bit(changes: dict[str, Any], tmp_path: Path) -> None:
    backbone, path = network(**changes), tmp_path / "backbone.safetensors"
    tensors, metadata = save.exported(backbone)
    save_file(tensors, path, metadata)
    weights = load_backbone(path)
    assert weights.assumed == []
    assert weights.architecture["img_size"] == [48, 48]
    again, images = weights.network().eval(), torch.randn(2, 3, 24, 40, generator=torch.Generator().manual_seed(1))
    for crops in (images, images.transpose(2, 3)):
        for found, expected in zip(again(crops), backbone(crops), strict=True):
            assert torch.equal(found, expected)
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in backbone.state_dict().items())
    exported = dinov3.export(again)
    assert all(torch.equal(value, exported[name]) for name, value in dinov3.export(backbone).items())


def test_an_export_has_the_names_of_the_released_files() -> None:
    backbone = VisionTransformer(
        224, 16, 384, 12, 6, registers=4, norm_eps=1e-5, key_bias=False, position=build_option("position/rope")
    )
    exported = {
        re.sub(r"blocks\.\d+", "blocks.*", name): list(value.shape) for name, value in dinov3.export(backbone).items()
    }
    assert exported == HUB["dinov3_vits16_lvd1689m"]["keys"]


def test_what_a_pth_does_not_say_is_assumed(tmp_path: Path) -> None:
    torch.save(dinov3.export(network(num_heads=2)), tmp_path / "backbone.pth")
    weights = load_backbone(tmp_path / "backbone.pth")
    assert weights.architecture["num_heads"] == 2  # by its periods
    assert weights.assumed == ["norm_eps 1e-05", "position.normalise separate", "position.dtype fp32"]
    assert "rounded" in weights.notes[0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"norm_eps": 1e-4}, "model.norm_eps=0.0001: dinov3's models have no such network"),
        ({"norm": "rmsnorm", "norm_eps": 1e-6}, "model.norm_eps=1e-06: "),
        ({"stem": ((8, 2),)}, "model.stem: dinov3's models have no such network"),
    ],
)
def test_a_network_that_the_layout_cannot_say_is_not_exported(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dinov3.export(network(**changes))
    with pytest.raises(ValueError, match="positions that are not position=rope"):
        dinov3.export(VisionTransformer(16, 8, 64, 1, 1))


def test_a_table_does_not_fit_into_rotary_positions(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="unexpected pos_embed"):
        load_into(network(), VisionTransformer(16, 8, 48, 2, 3, registers=2).state_dict(), resample=True)


def test_metadata_that_contradicts_the_tensors_is_refused(tmp_path: Path) -> None:
    backbone, other = network(position={"dtype": "fp32"}), network(position={"dtype": "fp32", "base": 50.0})
    save_file(dinov3.export(backbone), tmp_path / "x.safetensors", save.exported(other)[1])
    with pytest.raises(ValueError, match=r"not those of position\.base=50\.0"):
        load_backbone(tmp_path / "x.safetensors")
    save_file(dinov3.export(backbone), tmp_path / "x.safetensors", {"position": '{"base": 100.0, "axes": 3}'})
    with pytest.raises(ValueError, match="states axes of the position, which is not known here"):
        load_backbone(tmp_path / "x.safetensors")
