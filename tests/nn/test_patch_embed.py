"""Convolutions before that of patches: the formula in loops, names that weight files know, and refusals."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from dinoswap.config.errors import ConfigError
from dinoswap.nn.patch_embed import PatchEmbed
from dinoswap.nn.vit import VisionTransformer
from dinoswap.nn.weights import save, timm, transformers
from dinoswap.nn.weights.load import load_backbone
from options import build_option
from small_models import small_trainer

STEM = ((4, 1), (6, 2))


def convolved(x: Tensor, weight: Tensor, bias: Tensor, stride: int) -> Tensor:
    """A 3 x 3 convolution of one image [C, H, W] with a border of zeros."""
    padded = torch.zeros(x.shape[0], x.shape[1] + 2, x.shape[2] + 2, dtype=x.dtype)
    padded[:, 1:-1, 1:-1] = x
    rows, columns = range(0, x.shape[1], stride), range(0, x.shape[2], stride)
    places = [[padded[:, i : i + 3, j : j + 3] for j in columns] for i in rows]
    return torch.stack([torch.stack([(weight * p).sum((1, 2, 3)) + bias for p in row], -1) for row in places], 1)


def by_hand(embed: PatchEmbed, image: Tensor) -> Tensor:
    """The tokens of one image [3, H, W]."""
    weights, x = embed.state_dict(), image
    for index, (_, stride) in enumerate(STEM):
        layer = {name: weights[f"stem.{index}.{name}"] for name in ("conv.weight", "conv.bias", "norm.weight")}
        x = convolved(x, layer["conv.weight"], layer["conv.bias"], stride)
        x = (x - x.mean()) / (x.var(unbiased=False) + 1e-5).sqrt()
        x = x * layer["norm.weight"][:, None, None] + weights[f"stem.{index}.norm.bias"][:, None, None]
        x = x / 2 * (1 + torch.erf(x / math.sqrt(2)))
    side = embed.proj.weight.shape[-1]
    patches = [x[:, i : i + side, j : j + side] for i in range(0, x.shape[1], side) for j in range(0, x.shape[2], side)]
    return torch.stack([(weights["proj.weight"] * patch).sum((1, 2, 3)) + weights["proj.bias"] for patch in patches])


def test_tokens_are_those_of_the_formula() -> None:
    """Of crops of another size than the network's, whose sides differ; with patches of a stride that is no power of
    two."""
    torch.manual_seed(0)
    embed = PatchEmbed(6, 10, STEM).double()
    for parameter in embed.parameters():
        torch.nn.init.normal_(parameter)
    images = torch.randn(2, 3, 12, 18, dtype=torch.float64)
    assert embed.grid(12, 18) == (2, 3)
    expected = torch.stack([by_hand(embed, image) for image in images])
    with torch.no_grad():
        torch.testing.assert_close(embed(images), expected)


def network(**changes: Any) -> VisionTransformer:
    torch.manual_seed(0)
    arguments = {"img_size": 24, "patch_size": 8, "embed_dim": 32, "depth": 1, "num_heads": 4, "stem": STEM}
    return VisionTransformer(**{**arguments, **changes}).eval()


@pytest.mark.parametrize("position", ["position/learned", "position/rope"])
def test_our_own_file_builds_the_same_network(position: str, tmp_path: Path) -> None:
    """Whose patch size no tensor shows, and which other layouts cannot say."""
    ours = network(position=build_option(position))
    tensors, metadata = save.own(ours, {})
    save_file(tensors, tmp_path / "own.safetensors", metadata)
    weights = load_backbone(tmp_path / "own.safetensors")
    assert weights.assumed == []
    assert weights.architecture["patch_size"] == 8
    images = torch.randn(2, 3, 16, 24)
    with torch.no_grad():
        assert torch.equal(weights.network().eval()(images).patch, ours(images).patch)
    for layout in (timm, transformers):
        with pytest.raises(ValueError, match=r"model\.stem: "):
            layout.export(ours)


def test_strides_have_to_divide_the_patch_size() -> None:
    with pytest.raises(ValueError, match=r"stem=\[\[4, 3\]\]: strides of 3 in all do not divide patch_size=8"):
        network(stem=((4, 3),))
    with pytest.raises(ValueError, match=r"stem=\[\[0, 1\]\]: channels and stride of each"):
        network(stem=((0, 1),))
    with pytest.raises(ConfigError, match=r"model\.stem\[0\]=\[8\]: must have 2 entries"):
        small_trainer("model.stem=[[8]]")
