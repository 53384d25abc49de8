"""Multi-head self-attention, softmax(q k^T / sqrt(d)) v, with one Linear for q, k and v in that order.

Queries and keys may be normed, by a LayerNorm over the channels of a head for each of the two, before they are turned.

Sequences of several lengths are packed: their tokens lie one after the other in one tensor, and attend to those of
their own sequence only. Which kernel computes it is decided in one place, `attend`: torch's fused kernel, but on CPU
batched matrix products in bf16, where the backward of the fused kernel is several times slower.
Follows dinov2/layers/attention.py of facebookresearch/dinov2 @ b8931f7.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from dinoswap.nn.packs import Shape, split
from dinoswap.position.base import Rotation, rotated

SCORES = torch.float32
"""Precision of q k^T in `MatmulAttention`. In bfloat16 a step is 2 to 3 % faster and the output error 2 to 10
times larger: more for a peaked softmax, whose scores are large."""


class MatmulAttention(torch.autograd.Function):
    """Attention as matrix products: scores in float32, weights and gradients in the input's precision."""

    @staticmethod
    def forward(ctx: Any, qkv: Tensor, shapes: Sequence[Shape]) -> Tensor:
        """Returns the attention of packed qkv [S, 3, h, d], [S, h, d], and saves what backward needs."""
        _, _, heads, width = qkv.shape
        out, saved = torch.empty_like(qkv[:, 0]), []
        for part, mixed in zip(split(qkv, shapes), split(out, shapes), strict=True):  # [b, T, 3, h, d], [b, T, h, d]
            packed = part.permute(2, 0, 3, 1, 4).flatten(1, 2)  # [3, b h, T, d]: one copy for q, k and v
            q, k, v = packed
            with torch.autocast("cpu", enabled=False):  # which would round the scores
                scores = (q.to(SCORES) * width**-0.5) @ k.to(SCORES).transpose(1, 2)  # [b h, T, T]
            weights = scores.softmax(-1).to(qkv.dtype)
            mixed.copy_(torch.unflatten(weights @ v, 0, (-1, heads)).transpose(1, 2))  # [b h, T, d] -> [b, T, h, d]
            saved += [packed, weights]
        ctx.save_for_backward(*saved)
        ctx.shapes = shapes
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (grad,), (tokens, heads, width) = grads, grads[0].shape
        grad_qkv = grad.new_empty(tokens, 3, heads, width)
        parts = zip(split(grad, ctx.shapes), split(grad_qkv, ctx.shapes), *[iter(ctx.saved_tensors)] * 2, strict=True)
        for of_mixed, of_part, packed, weights in parts:
            q, k, v = packed
            of_mixed = of_mixed.transpose(1, 2).flatten(0, 1)  # [b, T, h, d] -> [b h, T, d]
            of_packed = torch.empty_like(packed)
            torch.bmm(weights.transpose(1, 2), of_mixed, out=of_packed[2])
            of_scores = torch.ops.aten._softmax_backward_data(of_mixed @ v.transpose(1, 2), weights, -1, weights.dtype)
            of_scores *= width**-0.5
            torch.bmm(of_scores, k, out=of_packed[0])
            torch.bmm(of_scores.transpose(1, 2), q, out=of_packed[1])
            of_part.copy_(torch.unflatten(of_packed, 1, (-1, heads)).permute(1, 3, 0, 2, 4))  # -> [b, T, 3, h, d]
        return grad_qkv, None


def attend(qkv: Tensor, shapes: Sequence[Shape]) -> Tensor:
    """Returns the attention of each head within each sequence: packed qkv [S, 3, h, d] to [S, h, d]."""
    if qkv.device.type == "cpu" and qkv.dtype == torch.bfloat16:
        out: Tensor = MatmulAttention.apply(qkv, shapes)
        return out
    return fused(qkv, shapes)


def fused(qkv: Tensor, shapes: Sequence[Shape]) -> Tensor:
    """Returns what `attend` does, by torch's kernel."""
    mixed = []
    for part in split(qkv, shapes):
        q, k, v = (x.transpose(1, 2) for x in part.unbind(2))  # [b, h, T, d]; unbound like this: one copy in backward
        mixed.append(functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(0, 1))
    return torch.cat(mixed) if len(mixed) > 1 else mixed[0]


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

    def forward(self, x: Tensor, shapes: Sequence[Shape], rotations: Sequence[Rotation | None] | None = None) -> Tensor:
        """Returns each token's weighted mean of the values of its sequence, heads side by side: packed tokens [S, D] to
        [S, D]. Where a shape has a rotation, the last N tokens of its sequences are patches whose queries and keys are
        turned."""
        qkv = torch.unflatten(self._qkv(x), -1, (3, self.num_heads, -1))  # [S, 3 D] -> [S, 3, h, d]
        if self.qk_norm:
            query, key, value = qkv.unbind(1)
            qkv = torch.stack([self.q_norm(query), self.k_norm(key), value], dim=1)
        if rotations is not None and any(rotation is not None for rotation in rotations):
            parts = zip(split(qkv, shapes), rotations, strict=True)
            turned = [part if rotation is None else rotated(part, rotation) for part, rotation in parts]
            qkv = torch.cat([part.flatten(0, 1) for part in turned])
        return attend(qkv, shapes).flatten(1)  # [S, h, d] -> [S, D]

    def _qkv(self, x: Tensor) -> Tensor:
        """Returns queries, keys and values [..., 3 D] of x [..., D]; without a bias of keys that third of the bias
        counts as 0."""
        if self.key_bias:
            out: Tensor = self.qkv(x)
            return out
        query, key, value = self.qkv.bias.chunk(3)
        return functional.linear(x, self.qkv.weight, torch.cat([query, torch.zeros_like(key), value]))
