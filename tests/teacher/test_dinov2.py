"""DINOv2 weight files as teachers: tokens are those of the network itself, what does not apply is refused."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from dinoswap.nn.vit import VisionTransformer
from dinoswap.teacher.base import Teacher
from fixtures import Fixture
from options import build_option

OFFICIAL = Fixture("vit_dinov2.npz")
SMALL: dict[str, Any] = {"img_size": 42, "patch_size": 14, "embed_dim": 128, "depth": 3, "num_heads": 2}


def teacher(**settings: Any) -> Teacher:
    built: Teacher = build_option("teacher/dinov2", **{"ckpt_path": "", **settings})
    return built.eval()


def network(**changes: Any) -> VisionTransformer:
    """With weights that all matter: LayerScale and registers would begin at almost nothing."""
    backbone = VisionTransformer(**SMALL | {"layerscale": 1.0} | changes)
    generator = torch.Generator().manual_seed(0)
    for parameter in backbone.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    return backbone.eval()


def written(backbone: VisionTransformer, path: Path) -> str:
    save: Callable[..., None] = torch.save if path.suffix == ".pth" else save_file
    save(backbone.state_dict(), path)
    return str(path)


def images(height: int = 56, width: int = 70) -> Tensor:
    return torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
@pytest.mark.parametrize("file", ["weights.pth", "model.safetensors"])
@pytest.mark.parametrize(
    "details",
    [{}, {"registers": 2, "interpolate_offset": 0.0, "interpolate_antialias": True}],
    ids=["plain", "registers"],
)
@pytest.mark.parametrize("layer", [None, 1, -3])
def test_tokens_are_those_of_the_network(file: str, details: dict[str, Any], layer: int | None, tmp_path: Path) -> None:
    """Of images with more patches than the position table, and without a batch mate."""
    backbone = network(**details)
    (expected,) = backbone.intermediate_tokens(images(), [-1 if layer is None else layer])
    found = teacher(ckpt_path=written(backbone, tmp_path / file), layer=layer)
    assert (found.embed_dim, found.patch_size) == (128, 14)
    assert torch.equal(found(images()), expected.patch)
    torch.testing.assert_close(found(images()[:1]), expected.patch[:1], rtol=0, atol=1e-5)


@torch.no_grad()
def test_tokens_are_the_official_ones(tmp_path: Path) -> None:
    """Those that Meta's code computed, of a network whose heads have 16 channels. The file is found in its folder."""
    save_file({key.removeprefix("sd/"): OFFICIAL[key] for key in OFFICIAL.keys("sd/")}, tmp_path / "model.safetensors")
    tokens = teacher(ckpt_path=str(tmp_path), num_heads=3)(OFFICIAL["in/x32"])
    expected = OFFICIAL["single32/x_norm_patchtokens"]
    assert ((tokens - expected).abs().max() / expected.abs().max()) < 2e-6


def test_blocks_behind_the_one_that_is_read_are_not_there(tmp_path: Path) -> None:
    backbone = network()
    found = teacher(ckpt_path=written(backbone, tmp_path / "weights.pth"), layer=0)
    per_block = sum(p.numel() for p in backbone.blocks[0].parameters())
    assert sum(p.numel() for p in found.parameters()) == sum(p.numel() for p in backbone.parameters()) - 2 * per_block


def test_identity(tmp_path: Path) -> None:
    """Of weights, heads and block; the notice names the file."""
    path = written(network(), tmp_path / "a.pth")
    other = written(network(registers=1), tmp_path / "b.pth")
    found = teacher(ckpt_path=path)
    assert found.identity.startswith("dinov2 ")
    assert found.identity.endswith(f"sha256:{hashlib.sha256(Path(path).read_bytes()).hexdigest()[:16]}")
    assert path in found.notice
    others = [{"ckpt_path": other}, {"ckpt_path": path, "num_heads": 4}, {"ckpt_path": path, "layer": 1}]
    identities = {found.identity, *(teacher(**settings).identity for settings in others)}
    assert len(identities) == 4
    assert teacher(ckpt_path=path, layer=-1).identity == found.identity


@torch.no_grad()
def test_random_weights_are_always_the_same_ones() -> None:
    """Whatever was drawn before, and without a trace in what is drawn afterwards."""
    torch.manual_seed(1)
    first = teacher(variant="tiny")
    after = torch.randn(1)
    torch.manual_seed(1)
    assert torch.equal(after, torch.randn(1))
    second = teacher(variant="tiny")
    assert torch.equal(first(images()), second(images()))
    assert (first.embed_dim, first.patch_size, first(images()).shape) == (192, 14, (2, 20, 192))
    assert first.identity.startswith("dinov2 ")
    assert first.identity.endswith("random weights")
    assert "RANDOM WEIGHTS" in first.notice


def test_random_weights_are_of_the_small_network_unless_said() -> None:
    assert teacher().embed_dim == 384


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"variant": "smal"}, r"variant=smal: .*use one of tiny, small, base"),
        ({"variant": "tiny", "layer": 12}, r"layer=12: the network has 12 blocks; use 0 to 11, or null"),
        ({"variant": "tiny", "layer": -13}, r"layer=-13: "),
        ({"ckpt_path": "nothing/here.pth"}, r"ckpt_path=nothing/here.pth: no such file"),
        ({"ckpt_path": "any.pth", "variant": "small"}, r"variant=small: .*read off the weights; leave it null"),
    ],
)
def test_what_does_not_apply_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        teacher(**settings)


def test_weights_that_do_not_fit_are_named(tmp_path: Path) -> None:
    state = network().state_dict()
    del state["blocks.1.attn.proj.bias"]
    torch.save(state, tmp_path / "weights.pth")
    with pytest.raises(ValueError, match=r"missing blocks\.1\.attn\.proj\.bias"):
        teacher(ckpt_path=str(tmp_path / "weights.pth"))


def test_images_have_to_be_multiples_of_the_patch(tmp_path: Path) -> None:
    found = teacher(ckpt_path=written(network(), tmp_path / "weights.pth"))
    with pytest.raises(ValueError, match=r"60 x 56 pixels: .*multiples of patch_size=14"):
        found(images(60, 56))
