"""Both ways to compute attention against the formula in float64, and normed queries and keys."""

import pytest
import torch
from torch import Tensor, nn

from dinoswap.nn.attention import Attention, MatmulAttention, attend, fused
from dinoswap.nn.packs import Shape
from dinoswap.nn.vit import VisionTransformer

SHAPES = [(3, 21), (5, 8), (1, 30)]  # sequences, and tokens in each
HEADS, WIDTH = 2, 24


def formula(qkv: Tensor, shapes: list[Shape]) -> Tensor:
    """softmax(q k^T / sqrt(d)) v for each sequence and head, in a loop: [S, 3, h, d] to [S, h, d]."""
    out, start = torch.empty_like(qkv[:, 0]), 0
    for length in (length for count, length in shapes for _ in range(count)):
        for h in range(qkv.shape[2]):
            q, k, v = qkv[start : start + length, :, h].unbind(1)
            out[start : start + length, h] = (q @ k.T / q.shape[-1] ** 0.5).softmax(-1) @ v
        start += length
    return out


def errors(compute, qkv: Tensor) -> tuple[float, float]:  # type: ignore[no-untyped-def]
    """Relative errors (Frobenius norms) of output and gradient against the formula in float64 on the same input."""
    weights = torch.randn(qkv[:, 0].shape, generator=torch.Generator().manual_seed(1)).to(qkv.dtype)
    exact, ours = qkv.detach().double().requires_grad_(), qkv.detach().requires_grad_()
    expected, out = formula(exact, SHAPES), compute(ours, SHAPES)
    expected.backward(weights.double())
    out.backward(weights)
    pairs = [(out.detach(), expected.detach()), (ours.grad, exact.grad)]
    return tuple(((a.double() - b).norm() / b.norm()).item() for a, b in pairs)  # type: ignore[return-value]


def random_qkv(scale: float, dtype: torch.dtype) -> Tensor:
    tokens = sum(count * length for count, length in SHAPES)
    return (torch.randn(tokens, 3, HEADS, WIDTH, generator=torch.Generator().manual_seed(0)) * scale).to(dtype)


@pytest.mark.parametrize("compute", [attend, fused, MatmulAttention.apply])
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
        inside = attend(qkv, SHAPES)
    assert torch.equal(inside, attend(qkv, SHAPES))


# --- queries and keys that are normed ---------------------------------------------------------------------------------


def normed(x: Tensor, norm: nn.LayerNorm) -> Tensor:
    """(x - mean) / sqrt(variance + 1e-5) over the last dimension, times the weight, plus the bias."""
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt() * norm.weight + norm.bias


def test_normed_queries_and_keys() -> None:
    torch.manual_seed(0)
    attention = Attention(48, 2, qk_norm=True).double()
    for parameter in (*attention.q_norm.parameters(), *attention.k_norm.parameters()):
        nn.init.normal_(parameter)
    x = torch.randn(3 * 21, 48, dtype=torch.float64)
    q, k, v = attention.qkv(x).view(-1, 3, 2, 24).unbind(1)
    expected = formula(torch.stack([normed(q, attention.q_norm), normed(k, attention.k_norm), v], dim=1), [(3, 21)])
    torch.testing.assert_close(attention(x, [(3, 21)]), expected.flatten(1), rtol=0, atol=1e-12)


@pytest.mark.parametrize(("start", "blocks"), [(None, []), (0, [0, 1, 2]), (2, [2]), (3, [])])
def test_blocks_that_norm_them(start: int | None, blocks: list[int]) -> None:
    backbone = VisionTransformer(img_size=16, embed_dim=16, depth=3, num_heads=2, qk_norm_from=start)
    names = {name.removesuffix(".weight") for name in backbone.state_dict() if name.endswith("_norm.weight")}
    assert names == {f"blocks.{block}.attn.{part}_norm" for block in blocks for part in "qk"}
