"""Multi-head self-attention, softmax(q k^T / sqrt(d)) v, with one Linear for q, k and v in that order.

Queries and keys may be normed, by a LayerNorm over the channels of a head for each of the two, before they are turned.

Which kernel computes it is decided in one place, `attend`: torch's fused kernel, but on CPU in bf16 batched matrix
products, because there the backward of the fused kernel is several times slower.
Follows dinov2/layers/attention.py of facebookresearch/dinov2 @ b8931f7.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from dinoswap.position.base import Rotation, rotated

SCORES = torch.float32
"""Precision of q k^T in `MatmulAttention`. In bfloat16 a step is 2 to 3 % faster and the output error 2 to 10
times larger: more for a peaked softmax, whose scores are large."""


class MatmulAttention(torch.autograd.Function):
    """Attention as matrix products: scores in float32, weights and gradients in the input's precision."""

    @staticmethod
    def forward(ctx: Any, qkv: Tensor) -> Tensor:
        """Returns the attention of qkv [b, T, 3, h, d], [b, T, h, d], and saves what backward needs."""
        batch, _, _, heads, width = qkv.shape
        packed = qkv.permute(2, 0, 3, 1, 4).flatten(1, 2)  # [3, b h, T, d]: one copy for q, k and v
        q, k, v = packed
        with torch.autocast("cpu", enabled=False):  # which would round the scores
            scores = (q.to(SCORES) * width**-0.5) @ k.to(SCORES).transpose(1, 2)  # [b h, T, T]
        weights = scores.softmax(-1).to(qkv.dtype)
        ctx.save_for_backward(packed, weights)
        mixed: Tensor = weights @ v
        return mixed.view(batch, heads, -1, width).transpose(1, 2)  # [b h, T, d] -> [b, T, h, d]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        packed, weights = ctx.saved_tensors
        q, k, v = packed
        batch, length, heads, width = grads[0].shape
        grad = grads[0].transpose(1, 2).flatten(0, 1)  # [b, T, h, d] -> [b h, T, d]
        grad_packed = torch.empty_like(packed)
        torch.bmm(weights.transpose(1, 2), grad, out=grad_packed[2])
        grad_scores = torch.ops.aten._softmax_backward_data(grad @ v.transpose(1, 2), weights, -1, weights.dtype)
        grad_scores *= width**-0.5
        torch.bmm(grad_scores, k, out=grad_packed[0])
        torch.bmm(grad_scores.transpose(1, 2), q, out=grad_packed[1])
        return grad_packed.view(3, batch, heads, length, width).permute(1, 3, 0, 2, 4)  # -> [b, T, 3, h, d]


def attend(qkv: Tensor) -> Tensor:
    """Returns the attention of each head: qkv [b, T, 3, h, d] to [b, T, h, d]."""
    if qkv.device.type == "cpu" and qkv.dtype == torch.bfloat16:
        out: Tensor = MatmulAttention.apply(qkv)
        return out
    q, k, v = (x.transpose(1, 2) for x in qkv.unbind(2))  # [b, h, T, d]; unbound like this: one copy in backward
    return functional.scaled_dot_product_attention(q, k, v).transpose(1, 2)


class Attention(nn.Module):
    """Attention without its output projection: the block applies `proj`, together with the LayerScale and, in the last
    block, to the rows that are read."""

    def __init__(
        self, dim: int, num_heads: int, qkv_bias: bool = True, key_bias: bool = True, qk_norm: bool = False
    ) -> None:
        """Without `key_bias` the third of the bias that belongs to the keys counts as 0 and gets no gradient, as the
        bias mask of facebookresearch/dinov3 @ 6876159 has it. With `qk_norm` queries and keys are normed."""
        super().__init__()
        self.num_heads = num_heads
        self.key_bias = key_bias or not qkv_bias
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.qk_norm = qk_norm
        if qk_norm:
            self.q_norm, self.k_norm = (nn.LayerNorm(dim // num_heads, eps=1e-5) for _ in range(2))
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, rotation: Rotation | None = None) -> Tensor:
        """Returns each token's weighted mean of values, heads side by side: [b, T, D] to [b, T, D]. With a rotation the
        last N tokens are patches whose queries and keys are turned."""
        batch, length, dim = x.shape
        shape = batch, length, 3, self.num_heads, dim // self.num_heads
        qkv = self._qkv(x).view(shape)  # [b, T, 3 D] -> [b, T, 3, h, d]
        if self.qk_norm:
            query, key, value = qkv.unbind(2)
            qkv = torch.stack([self.q_norm(query), self.k_norm(key), value], dim=2)
        if rotation is not None:
            qkv = rotated(qkv, rotation)
        return attend(qkv).reshape(batch, length, dim)  # [b, T, h, d] -> [b, T, D]

    def _qkv(self, x: Tensor) -> Tensor:
        if self.key_bias:
            out: Tensor = self.qkv(x)
            return out
        query, key, value = self.qkv.bias.chunk(3)
        return functional.linear(x, self.qkv.weight, torch.cat([query, torch.zeros_like(key), value]))
