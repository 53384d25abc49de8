"""Both ways to compute attention against the formula in float64."""

import pytest
import torch
from torch import Tensor

from dinoswap.nn.attention import MatmulAttention, attend

SHAPE = (3, 21, 3, 2, 24)  # [b, T, 3, h, d]


def formula(qkv: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(d)) v for each sample and head, in a loop."""
    out = torch.empty_like(qkv[:, :, 0])
    for b in range(qkv.shape[0]):
        for h in range(qkv.shape[3]):
            q, k, v = qkv[b, :, :, h].unbind(1)
            out[b, :, h] = (q @ k.T / q.shape[-1] ** 0.5).softmax(-1) @ v
    return out


def errors(compute, qkv: Tensor) -> tuple[float, float]:  # type: ignore[no-untyped-def]
    """Relative errors (Frobenius norms) of output and gradient against the formula in float64 on the same input."""
    weights = torch.randn(qkv[:, :, 0].shape, generator=torch.Generator().manual_seed(1)).to(qkv.dtype)
    exact, ours = qkv.detach().double().requires_grad_(), qkv.detach().requires_grad_()
    expected, out = formula(exact), compute(ours)
    expected.backward(weights.double())
    out.backward(weights)
    pairs = [(out.detach(), expected.detach()), (ours.grad, exact.grad)]
    return tuple(((a.double() - b).norm() / b.norm()).item() for a, b in pairs)  # type: ignore[return-value]


def random_qkv(scale: float, dtype: torch.dtype) -> Tensor:
    return (torch.randn(SHAPE, generator=torch.Generator().manual_seed(0)) * scale).to(dtype)


@pytest.mark.parametrize("compute", [attend, MatmulAttention.apply])
@pytest.mark.parametrize("scale", [1.0, 4.0])
def test_float32(compute, scale: float) -> None:  # type: ignore[no-untyped-def]
    assert max(errors(compute, random_qkv(scale, torch.float32))) < 1e-5


@pytest.mark.parametrize("scale", [1.0, 4.0])
def test_bfloat16_stays_as_exact_as_the_fused_kernel(scale: float) -> None:
    """Below 4e-3 and 8e-3, i.e. one and two roundings to 8 bits, also where the softmax is peaked (scale 4)."""
    output, gradient = errors(attend, random_qkv(scale, torch.bfloat16))
    assert output < 4e-3
    assert gradient < 8e-3


@pytest.mark.parametrize("scale", [1.0, 4.0])
def test_autocast_does_not_round_the_scores(scale: float) -> None:
    qkv = random_qkv(scale, torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        inside = attend(qkv)
    assert torch.equal(inside, attend(qkv))
