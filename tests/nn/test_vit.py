"""The vision transformer against the official code's numbers, its init and its refusals."""

from typing import Any

import pytest
import torch
from torch import Tensor
from vit_fixture import VIT, crops, error, official

from dinoswap.nn.patch_embed import resample_positions
from dinoswap.nn.vit import VisionTransformer, vit

ATOL = 2e-6
VARIANTS = [(0.1, False), (0.1, True), (0.0, False), (0.0, True)]


def variant_name(offset: float, antialias: bool) -> str:
    return f"offset{offset:g}_{'aa' if antialias else 'noaa'}"


@pytest.mark.parametrize(
    ("group", "image", "masked"),
    [
        ("single32", "x32", False),
        ("single32_masked", "x32", True),
        ("single16", "x16", False),
        ("single_rect", "xrect_24x40", False),
    ],
)
def test_tokens_of_one_tensor(group: str, image: str, masked: bool) -> None:
    x, masks = VIT[f"in/{image}"], VIT["in/masks"] if masked else None
    assert error(official()(x, masks), group) < ATOL


def test_tokens_before_the_final_norm() -> None:
    """The order of the tokens is [cls, registers, patches]."""
    tokens = official().intermediate_tokens(VIT["in/x32"], [-1], norm=False)[0]
    joined = torch.cat([tokens.cls[:, None], tokens.registers, tokens.patch], dim=1)
    assert (joined - VIT["single32/x_prenorm"]).abs().max() < ATOL


def test_intermediate_blocks() -> None:
    layers = official().intermediate_tokens(VIT["in/x32"], [0, 1, 2], norm=False)
    for index, tokens in enumerate(layers):
        assert (tokens.patch - VIT[f"intermediate32/block{index}_patch"]).abs().max() < ATOL


def test_list_of_crops_of_two_sizes() -> None:
    entries, masks = crops()
    global_crops, local_crops = official()(entries, masks)
    assert error(global_crops, "list_global_masked") < ATOL
    assert error(local_crops, "list_local") < ATOL


@pytest.mark.parametrize(("offset", "antialias"), VARIANTS)
def test_position_interpolation(offset: float, antialias: bool) -> None:
    backbone = official(interpolate_offset=offset, interpolate_antialias=antialias)
    keys = VIT.keys(f"posinterp_{variant_name(offset, antialias)}/")
    assert len(keys) >= 3
    for key in keys:
        height, width = map(int, key.split("/")[1].split("x"))
        assert (backbone.positions((height // 8, width // 8)) - VIT[key]).abs().max() < ATOL, key


def test_a_position_table_that_is_not_square() -> None:
    """Where positions depend on the row alone, the number of columns changes nothing."""
    rows = torch.randn(6, generator=torch.Generator().manual_seed(0))
    square = resample_positions(rows.repeat_interleave(6).view(1, 36, 1), (6, 6), (9, 9)).view(9, 9)
    wide = resample_positions(rows.repeat_interleave(10).view(1, 60, 1), (6, 10), (9, 13)).view(9, 13)
    torch.testing.assert_close(wide, square[:, :1].expand(9, 13))


@pytest.mark.parametrize(("offset", "antialias"), VARIANTS)
def test_small_crops_under_each_interpolation(offset: float, antialias: bool) -> None:
    group = "single16" if (offset, antialias) == (0.1, False) else f"single16_{variant_name(offset, antialias)}"
    backbone = official(interpolate_offset=offset, interpolate_antialias=antialias)
    assert error(backbone(VIT["in/x16"]), group) < ATOL


def objective(backbone: VisionTransformer) -> Tensor:
    """The fixture's scalar: the sum over five outputs of mean(weights * output)."""
    entries, masks = crops()
    tokens, local = backbone(entries, masks)
    outputs = {"gcls": tokens.cls, "greg": tokens.registers, "gpatch": tokens.patch, "lcls": local.cls}
    outputs["lpatch"] = local.patch
    return sum((VIT[f"grad/weights/{k}"] * v).mean() for k, v in outputs.items())


def test_gradients_of_every_parameter() -> None:
    backbone = official()
    scalar = objective(backbone)
    scalar.backward()
    assert abs(scalar.item() - VIT["grad/scalar"].item()) < ATOL
    for name, parameter in backbone.named_parameters():
        norm = VIT[f"grad/norm/{name}"]
        assert (parameter.grad.norm() - norm).abs() < 1e-5 * norm + 1e-7, name
        if f"grad/full/{name}" in VIT.file.files:
            assert (parameter.grad - VIT[f"grad/full/{name}"]).abs().max() < 2e-6, name


def test_names_of_parameters_are_the_official_ones() -> None:
    names = [name for name, _ in official().named_parameters()]
    assert sorted(names) == sorted(key.removeprefix("sd/") for key in VIT.keys("sd/"))
    assert set(names) == set(official().state_dict())


@pytest.mark.parametrize(
    ("size", "parameters"),
    # Of the published networks of patch 14, img_size 518, no registers (the mask token counted, the classifier not).
    [("small", 22_056_576), ("base", 86_580_480), ("large", 304_368_640), ("giant", 1_136_480_768)],
)
def test_sizes(size: Any, parameters: int) -> None:
    with torch.device("meta"):
        backbone = vit(size, img_size=518, patch_size=14)
    assert sum(p.numel() for p in backbone.parameters()) == parameters


def test_numbers_override_the_size() -> None:
    backbone = vit("small", img_size=(16, 24), patch_size=8, embed_dim=24, depth=2, num_heads=2, ffn="swiglu")
    assert backbone.grid == (2, 3)
    assert len(backbone.blocks) == 2
    assert backbone.blocks[0].mlp.w3.weight.shape == (24, 64)  # 24 * 4 * 2 / 3, a multiple of 8
    assert backbone(torch.randn(2, 3, 16, 24)).patch.shape == (2, 6, 24)


def test_init_is_the_official_one() -> None:
    torch.manual_seed(0)
    backbone = vit("tiny", img_size=64, patch_size=8, depth=2, registers=4)
    weights = dict(backbone.named_parameters())
    stds = {"pos_embed": 0.02, "blocks.1.mlp.fc1.weight": 0.02, "cls_token": 1e-6, "register_tokens": 1e-6}
    for name, std in stds.items():
        assert weights[name].std().item() == pytest.approx(std, rel=0.15), name
    bound = (3 * 8 * 8) ** -0.5  # of torch's default for the patch convolution: uniform in +-1 / sqrt(fan in)
    assert bound * 0.95 < weights["patch_embed.proj.weight"].abs().max().item() <= bound
    assert weights["blocks.0.attn.qkv.bias"].abs().max() == 0
    assert weights["mask_token"].abs().max() == 0
    assert (weights["blocks.0.ls2.gamma"] == 1e-5).all()


@pytest.mark.parametrize(("depth", "value"), [(1, 0.1), (17, 0.1), (18, 1e-5), (23, 1e-5), (24, 1e-6), (40, 1e-6)])
def test_layerscale_by_depth(depth: int, value: float) -> None:
    """In every block, in both branches."""
    backbone = vit(img_size=8, patch_size=8, embed_dim=8, depth=depth, num_heads=1, layerscale="by_depth")
    gammas = [p for name, p in backbone.named_parameters() if name.endswith("gamma")]
    assert len(gammas) == 2 * depth
    assert all((gamma == value).all() for gamma in gammas)


def test_mask_token_can_be_random() -> None:
    token = vit("base", img_size=16, depth=1, mask_token_std=1e-6).mask_token
    assert token.std().item() == pytest.approx(1e-6, rel=0.1)
    assert abs(token.mean().item()) < 2e-7  # 5 standard errors of 768 draws


@pytest.mark.parametrize(
    ("changes", "moved"),
    [
        ({"residual_dropout": 0.4}, []),
        ({"layerscale": "by_depth"}, ["gamma"]),
        ({"layerscale": None}, ["gamma"]),
        ({"mask_token_std": 1e-6}, ["mask_token"]),
    ],
)
def test_initial_weights_are_shared(changes: dict[str, Any], moved: list[str]) -> None:
    """Of the same seed, whatever is dropped, and whatever LayerScale and mask token begin with: arms are paired."""

    def initial(**changes: Any) -> dict[str, Tensor]:
        torch.manual_seed(3)
        backbone = vit("tiny", img_size=16, patch_size=8, embed_dim=24, depth=2, num_heads=2, registers=2, **changes)
        return backbone.state_dict()

    plain, changed = initial(), initial(**changes)
    differ = [k for k in plain if k not in changed or not torch.equal(plain[k], changed[k])]
    assert bool(differ) == bool(moved)
    assert all(name.rsplit(".", 1)[-1] in moved for name in differ)
    assert changed.keys() <= plain.keys()


def test_layerscale_can_be_left_out() -> None:
    """Without it the network equals one whose factors are 1."""
    torch.manual_seed(0)
    numbers: dict[str, Any] = {"img_size": 16, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 2}
    plain, scaled = VisionTransformer(**numbers, layerscale=None), VisionTransformer(**numbers, layerscale=1.0)
    missing, unexpected = scaled.load_state_dict(plain.state_dict(), strict=False)
    assert all("gamma" in key for key in missing)
    assert not unexpected
    x = torch.randn(2, 3, 16, 16)
    torch.testing.assert_close(plain(x).patch, scaled(x).patch, atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"img_size": 30}, "multiples of patch_size=8"),
        ({"num_heads": 5}, "num_heads=5"),
        ({"depth": 0}, "depth=0"),
        ({"registers": -1}, "registers=-1"),
        ({"drop_path": 1.0}, "drop_path=1.0"),
        ({"layerscale": -0.1}, "layerscale=-0.1"),
        ({"layerscale": "deep"}, "layerscale='deep'.*by_depth"),
        ({"residual_dropout": 1.0}, "residual_dropout=1.0"),
        ({"residual_dropout": 0.4, "drop_path": 0.3}, "residual_dropout=0.4.*drop_path=0.3.*set one of the two to 0"),
        ({"mask_token_std": -1e-6}, "mask_token_std=-1e-06"),
        ({"ffn": "moe"}, "ffn='moe'"),
        ({"interpolate_offset": 1.5}, "interpolate_offset=1.5"),
        ({"mlp_ratio": 0.0}, "mlp_ratio"),
    ],
)
def test_values_out_of_range_are_refused(changes: dict[str, Any], words: str) -> None:
    numbers = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 3, "num_heads": 3}
    with pytest.raises(ValueError, match=words):
        VisionTransformer(**{**numbers, **changes})


def test_crops_and_masks_that_do_not_fit_are_refused() -> None:
    backbone = official()
    with pytest.raises(ValueError, match=r"crop of 36 x 32 pixels.*patch_size=8.*32 x 32"):
        backbone(torch.zeros(1, 3, 36, 32))
    with pytest.raises(ValueError, match=r"masks of shape \[4, 9\].*4 x 4 grid"):
        backbone(VIT["in/x32"], torch.zeros(4, 9, dtype=torch.bool))
    with pytest.raises(ValueError, match="size='enormous': use one of tiny"):
        vit("enormous")  # type: ignore[arg-type]
