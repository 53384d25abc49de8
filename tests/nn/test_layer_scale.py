"""The folded LayerScale equals the factor applied to the output, and survives half precision."""

import torch
from torch import nn

from dinoswap.nn.block import LayerScale


def test_folded_equals_applied() -> None:
    torch.manual_seed(0)
    linear, scale = nn.Linear(5, 7).double(), LayerScale(7, 0.3).double()
    scale.gamma.data.uniform_(0.1, 2)
    x = torch.randn(2, 3, 5, dtype=torch.float64, requires_grad=True)
    inputs = [x, linear.weight, linear.bias, scale.gamma]
    applied, folded = scale.gamma * linear(x), scale(x, linear)
    torch.testing.assert_close(folded, applied, atol=1e-14, rtol=0)
    weights = torch.randn_like(applied)
    expected = torch.autograd.grad(applied, inputs, weights)
    for ours, theirs in zip(torch.autograd.grad(folded, inputs, weights), expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-13, rtol=0)


def test_small_factors_do_not_underflow_in_float16() -> None:
    """1e-5 times a weight of 0.02 lies below the normal numbers of float16."""
    torch.manual_seed(0)
    linear, scale = nn.Linear(64, 32), LayerScale(32, 1e-5)
    nn.init.normal_(linear.weight, std=0.02)
    x = torch.randn(8, 64)
    with torch.autocast("cpu", torch.float16):
        out = scale(x.half(), linear)
    assert out.dtype == torch.float32
    torch.testing.assert_close(out, 1e-5 * linear(x), atol=2e-8, rtol=2e-3)
