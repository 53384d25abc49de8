"""The pre-norm transformer block, x + ls1(attention(norm1 x)) then x + ls2(ffn(norm2 x)), with stochastic depth.

Stochastic depth is the official batch-subset form: a residual branch is computed for k = max(int(b (1 - rate)), 1) random
samples of a list entry and added with weight b / k. Draws come from torch's default generator: for each block all list
entries for the attention branch, then all of them for the feed-forward branch.
Follows dinov2/layers/{block,layer_scale,mlp,swiglu_ffn,drop_path}.py of facebookresearch/dinov2 @ b8931f7.
"""

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from dinoswap.nn.attention import Attention

Ffn = Literal["mlp", "swiglu"]


class LayerScale(nn.Module):
    """A learnt factor for each channel, `init` at first."""

    def __init__(self, dim: int, init: float) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((dim,), init))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


class Mlp(nn.Module):
    """Linear, exact GELU, Linear."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc2(functional.gelu(self.fc1(x)))
        return out


class SwiGLU(nn.Module):
    """w3(silu(a) * b) with (a, b) = w12(x); two thirds of the asked width, rounded up to a multiple of 8."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        width = (int(hidden * 2 / 3) + 7) // 8 * 8
        self.w12 = nn.Linear(dim, 2 * width)
        self.w3 = nn.Linear(width, dim)

    def forward(self, x: Tensor) -> Tensor:
        gate, value = self.w12(x).chunk(2, dim=-1)
        out: Tensor = self.w3(functional.silu(gate) * value)
        return out


def draw_subset(batch: int, rate: float, device: torch.device) -> tuple[Tensor, float]:
    """The samples [k] a residual branch is computed for, and the weight batch / k it is added with."""
    kept = max(int(batch * (1 - rate)), 1)
    return torch.randperm(batch, device=device)[:kept], batch / kept


class Block(nn.Module):
    """One block over a list of token sequences [b, T, D] of any lengths."""

    def __init__(
        self,
        dim: int,
        num_heads: int,
        hidden: int,
        ffn: Ffn = "mlp",
        layerscale: float | None = 1e-5,
        drop_path: float = 0.0,
        qkv_bias: bool = True,
    ) -> None:
        super().__init__()
        self.drop_path = drop_path
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = Attention(dim, num_heads, qkv_bias)
        self.ls1 = LayerScale(dim, layerscale) if layerscale else nn.Identity()
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = Mlp(dim, hidden) if ffn == "mlp" else SwiGLU(dim, hidden)
        self.ls2 = LayerScale(dim, layerscale) if layerscale else nn.Identity()

    def forward(self, entries: Sequence[Tensor], rows: Sequence[Tensor] | None = None) -> list[Tensor]:
        """Entries [b, T, D] to the same shapes; with `rows`, indices [R] into b * T, to these rows [R, D] alone."""
        if rows is not None:
            return self._rows(entries, rows)
        return self._residual(self._residual(entries, self._attention), self._ffn)

    def _attention(self, x: Tensor) -> Tensor:
        out: Tensor = self.ls1(self.attn(self.norm1(x)))
        return out

    def _ffn(self, x: Tensor) -> Tensor:
        out: Tensor = self.ls2(self.mlp(self.norm2(x)))
        return out

    @property
    def _drops(self) -> bool:
        return self.training and self.drop_path > 0

    def _subsets(self, entries: Sequence[Tensor]) -> list[tuple[Tensor, float]]:
        return [draw_subset(x.shape[0], self.drop_path, x.device) for x in entries]

    def _residual(self, entries: Sequence[Tensor], branch: Callable[[Tensor], Tensor]) -> list[Tensor]:
        if not self._drops:
            return [x + branch(x) for x in entries]
        return [
            x.index_add(0, kept, branch(x[kept]).to(x.dtype), alpha=weight)
            for x, (kept, weight) in zip(entries, self._subsets(entries), strict=True)
        ]

    def _rows(self, entries: Sequence[Tensor], rows: Sequence[Tensor]) -> list[Tensor]:
        """Keys and values for all tokens, everything behind the attention for the rows that are read."""
        if not self._drops:
            return [self._tail(x, r) for x, r in zip(entries, rows, strict=True)]
        entries = self._residual(entries, self._attention)
        subsets = self._subsets(entries)
        return [self._dropped_ffn(x, r, *s) for x, r, s in zip(entries, rows, subsets, strict=True)]

    def _tail(self, x: Tensor, rows: Tensor) -> Tensor:
        mixed = self.attn.mix(self.norm1(x)).flatten(0, 1)[rows]  # [b, T, D] -> [b T, D] -> [R, D]
        read = x.flatten(0, 1)[rows] + self.ls1(self.attn.proj(mixed))
        return read + self._ffn(read)

    def _dropped_ffn(self, x: Tensor, rows: Tensor, kept: Tensor, weight: float) -> Tensor:
        factor = x.new_zeros(x.shape[0]).index_fill_(0, kept, weight)[rows // x.shape[1]]  # [b] -> [R]
        read = x.flatten(0, 1)[rows]
        return read + self._ffn(read) * factor[:, None]
