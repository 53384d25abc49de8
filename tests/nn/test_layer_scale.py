"""The folded LayerScale equals the factor applied to the output, and survives half precision."""

import pytest
import torch
from torch import nn

from dinoswap.nn.block import LayerScale


def test_folded_equals_applied() -> None:
    torch.manual_seed(0)
    linear, scale = nn.Linear(5, 7).double(), LayerScale(7, 0.3).double()
    scale.gamma.data.uniform_(0.1, 2)
    x = torch.randn(6, 5, dtype=torch.float64, requires_grad=True)
    inputs = [x, linear.weight, linear.bias, scale.gamma]
    applied, folded = scale.gamma * linear(x), scale(x, linear)
    torch.testing.assert_close(folded, applied, atol=1e-14, rtol=0)
    weights = torch.randn_like(applied)
    expected = torch.autograd.grad(applied, inputs, weights)
    for ours, theirs in zip(torch.autograd.grad(folded, inputs, weights), expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-13, rtol=0)


def test_scaled_weights_are_not_kept_for_the_backward_pass() -> None:
    """Of the tensors that are saved, those of the size of the weights are the weights."""
    linear, scale = nn.Linear(5, 7), LayerScale(7, 0.3)
    kept: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.data_ptr()) or t, lambda t: t):
        scale(torch.randn(6, 5), linear)
    assert linear.weight.data_ptr() in kept
    of_weights = [linear.weight, linear.bias, scale.gamma]
    assert len(set(kept) - {parameter.data_ptr() for parameter in of_weights}) == 1  # the input


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_gradients_under_autocast(dtype: torch.dtype) -> None:
    """They are float32, as those of a linear map, and near those without autocast."""
    torch.manual_seed(0)
    linear, scale, x = nn.Linear(32, 16), LayerScale(16, 0.5), torch.randn(8, 32, requires_grad=True)
    inputs = [x, linear.weight, linear.bias, scale.gamma]
    expected = torch.autograd.grad(scale(x, linear).sum(), inputs)
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        out = scale(x, linear)
    assert out.dtype == dtype
    for ours, theirs in zip(torch.autograd.grad(out.sum(), inputs), expected, strict=True):
        assert ours.dtype == torch.float32
        assert (ours - theirs).norm() <= theirs.norm() * (1e-2 if dtype == torch.bfloat16 else 1e-6)


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
