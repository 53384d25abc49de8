"""DINOv3 weight files as teachers: tokens are those of Meta's code and of timm, what is another network is refused."""

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor

from dinoswap.nn.vit import VisionTransformer
from dinoswap.nn.weights.save import exported
from dinoswap.teacher.base import IMAGENET_MEAN, Teacher
from fixtures import DINOV3, Fixture
from options import build_option

OFFICIAL = Fixture("vit_dinov3.npz", DINOV3)


def teacher(**settings: Any) -> Teacher:
    built: Teacher = build_option("teacher/dinov3", **{"ckpt_path": "", **settings})
    return built.eval()


def images(height: int = 48, width: int = 80) -> Tensor:
    return torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def test_tokens_are_the_official_ones(tmp_path: Path) -> None:
    """Those that Meta's code computed. The file is found in its folder."""
    weights = {key.removeprefix("sd/"): OFFICIAL[key] for key in OFFICIAL.keys("sd/")}
    save_file(weights, tmp_path / "model.safetensors", {"norm_eps": "1e-6"})
    found = teacher(ckpt_path=str(tmp_path))
    for crops, section in (("x32", "single32"), ("xrect_24x40", "single_rect")):
        expected = OFFICIAL[f"{section}/x_norm_patchtokens"]
        torch.testing.assert_close(found(OFFICIAL[f"in/{crops}"]), expected, rtol=0, atol=4e-6)
    assert (found.embed_dim, found.patch_size, found.mean) == (48, 8, IMAGENET_MEAN)


@torch.no_grad()
@pytest.mark.parametrize("layer", [None, 1])
def test_tokens_are_those_of_timm(layer: int | None, tmp_path: Path) -> None:
    network = timm.create_model("vit_small_plus_patch16_dinov3_qkvb", depth=3, init_values=0.3).eval()
    save_file(network.state_dict(), tmp_path / "timm.safetensors")
    found = teacher(ckpt_path=str(tmp_path / "timm.safetensors"), layer=layer)
    index = 2 if layer is None else layer
    (expected,) = network.forward_intermediates(images(), indices=[index], norm=True, intermediates_only=True)
    torch.testing.assert_close(found(images()), expected.flatten(2).transpose(1, 2), rtol=0, atol=1e-5)
    assert found.identity.startswith(f"dinov3 384 channels, 6 heads, {index + 1} of 3 blocks sha256:")
    for told in ("licence: DINOv3 License", "timm.safetensors", "no mask token"):
        assert told in found.notice


@torch.no_grad()
def test_random_weights_are_always_the_same_ones() -> None:
    """Of a network like the published ones."""
    first, second = teacher(variant="tiny"), teacher(variant="tiny")
    assert torch.equal(first(images()), second(images()))
    assert (first.embed_dim, first.patch_size, first(images()).shape) == (192, 16, (2, 15, 192))
    assert "RANDOM WEIGHTS" in first.notice
    backbone: Any = first.backbone
    assert (backbone.prefix, backbone.norm.eps, backbone.blocks[0].attn.key_bias) == (5, 1e-5, False)
    assert backbone.position.dtype is torch.float32


def test_satellite_images_have_statistics_of_their_own() -> None:
    assert (
        teacher(variant="tiny", trained_on="sat493m").mean
        == timm.get_pretrained_cfg("vit_large_patch16_dinov3.sat493m").mean
    )


def test_a_network_of_the_other_option_is_refused(tmp_path: Path) -> None:
    sizes: dict[str, Any] = {"img_size": 32, "patch_size": 16, "embed_dim": 64, "depth": 1, "num_heads": 1}
    learned, rotary = tmp_path / "learned.safetensors", tmp_path / "rotary.safetensors"
    save_file(exported(VisionTransformer(**sizes))[0], learned)
    save_file(exported(VisionTransformer(**sizes, position=build_option("position/rope")))[0], rotary)
    with pytest.raises(ValueError, match=r"^ckpt_path=.*: has a table of positions; choose teacher@da3.teacher=dinov2"):
        teacher(ckpt_path=str(learned))
    with pytest.raises(ValueError, match=r"^ckpt_path=.*: has rotary positions; choose teacher@da3.teacher=dinov3"):
        build_option("teacher/dinov2", ckpt_path=str(rotary))
    with pytest.raises(ValueError, match=r"^variant=tiny: .*read off the weights; leave it null"):
        teacher(ckpt_path=str(rotary), variant="tiny")
