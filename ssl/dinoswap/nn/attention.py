"""Multi-head self-attention, softmax(q k^T / sqrt(d)) v, with one Linear for q, k and v in that order.

Which kernel computes it is decided in one place, `attend`: on CPU in bf16, and in fp32 for short sequences, two batched
matrix products and a softmax are faster than torch's fused kernel, whose backward is slow there.
Follows dinov2/layers/attention.py of facebookresearch/dinov2 @ b8931f7.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

SHORT = 128
"""Tokens up to which the matrix products win over the fused kernel on CPU in fp32."""


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention of each head: q [b, h, Q, d], k and v [b, h, T, d] to [b, h, Q, d]."""
    if q.device.type == "cpu" and (q.dtype == torch.bfloat16 or k.shape[-2] <= SHORT):
        scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)  # [b, h, Q, T]
        return scores.softmax(-1) @ v
    return functional.scaled_dot_product_attention(q, k, v)


class Attention(nn.Module):
    def __init__(self, dim: int, num_heads: int, qkv_bias: bool = True) -> None:
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"num_heads={num_heads}: must divide embed_dim={dim}")
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.proj = nn.Linear(dim, dim)

    def mix(self, x: Tensor) -> Tensor:
        """Each token's weighted mean of values, before the output projection: [b, T, D] to [b, T, D]."""
        qkv = self.qkv(x).unflatten(-1, (3, self.num_heads, -1))  # [b, T, 3 D] -> [b, T, 3, h, d]
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # 3 x [b, h, T, d]
        return attend(q, k, v).transpose(1, 2).flatten(-2)  # [b, h, T, d] -> [b, T, h d = D]

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.proj(self.mix(x))
        return out
