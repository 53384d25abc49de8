"""The pre-norm transformer block, x + ls1(attention(norm1 x)) then x + ls2(ffn(norm2 x)), and two kinds of dropout.

Stochastic depth (`drop_path`) is the official batch-subset form: a residual branch is computed for
k = max(int(b (1 - rate)), 1) random samples of each list entry and added with weight b / k. Draws come from torch's
default generator: per block, all list entries for the attention branch, then all of them for the feed-forward branch.
A `single` tensor with a rate of at most 0.1 takes the classic form instead: every sample's branch is kept with
probability 1 - rate and divided by it.
Follows dinov2/layers/{block,layer_scale,mlp,swiglu_ffn,drop_path}.py of facebookresearch/dinov2 @ b8931f7.

Residual dropout (`residual_dropout`) drops single elements: nn.Dropout on each branch behind its LayerScale, with draws
in the same order. Unlike stochastic depth it saves no computation.
Follows models/vision_transformer/modern_vit.py of the legacy trainer @ 67f6a87, which draws for all entries at once.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from dinoswap.nn.attention import Attention
from dinoswap.nn.norm import NormKind, make_norm
from dinoswap.position.base import Rotation

Ffn = Literal["mlp", "swiglu"]
CLASSIC_RATE = 0.1


class LayerScale(nn.Module):
    """A learnt factor for each output channel of a linear map, with the initial value `init`."""

    def __init__(self, dim: int, init: float) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((dim,), init))

    def forward(self, x: Tensor, linear: nn.Linear) -> Tensor:
        """Returns gamma * linear(x). The factor is multiplied into the weights, which saves a pass over the tokens in
        forward and backward."""
        if x.dtype == torch.float16:  # in which 1e-5 times a weight would underflow
            return functional.linear(x, linear.weight, linear.bias) * self.gamma
        return functional.linear(x, self.gamma[:, None] * linear.weight, self.gamma * linear.bias)


class NoScale(nn.Module):
    """Stands for a LayerScale where there is none: calling it returns linear(x)."""

    def forward(self, x: Tensor, linear: nn.Linear) -> Tensor:
        return functional.linear(x, linear.weight, linear.bias)


class Mlp(nn.Module):
    """Linear, exact GELU, Linear."""

    def __init__(self, dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden_dim)
        self.fc2 = nn.Linear(hidden_dim, dim)

    def hidden(self, x: Tensor) -> Tensor:
        """Returns the input of the last linear map: [..., D] to [..., hidden_dim]."""
        out: Tensor = functional.gelu(self.fc1(x))
        return out

    @property
    def last(self) -> nn.Linear:
        return self.fc2


class SwiGLU(nn.Module):
    """w3(silu(a) * b) with (a, b) = w12(x). The width is two thirds of `hidden_dim`, rounded up to a multiple of
    `align`."""

    def __init__(self, dim: int, hidden_dim: int, align: int = 8) -> None:
        super().__init__()
        width = -(-int(hidden_dim * 2 / 3) // align) * align
        self.w12 = nn.Linear(dim, 2 * width)
        self.w3 = nn.Linear(width, dim)

    def hidden(self, x: Tensor) -> Tensor:
        """Returns the input of the last linear map: [..., D] to [..., width]."""
        gate, value = self.w12(x).chunk(2, dim=-1)
        out: Tensor = functional.silu(gate) * value
        return out

    @property
    def last(self) -> nn.Linear:
        return self.w3


def draw_subset(batch: int, rate: float, device: torch.device) -> tuple[Tensor, float]:
    """Draws the samples [k] that a residual branch is computed for. Returns them and the branch's weight batch / k."""
    kept = max(int(batch * (1 - rate)), 1)
    return torch.randperm(batch, device=device)[:kept], batch / kept


def draw_classic(x: Tensor, rate: float) -> Tensor:
    """Draws a factor [b] for the branch of each sample of x: 1 / (1 - rate) with probability 1 - rate, else 0."""
    return x.new_empty(x.shape[0]).bernoulli_(1 - rate).div_(1 - rate)


def check_rates(drop_path: float, residual_dropout: float) -> None:
    """Raises ValueError for a rate outside [0, 1), and where both rates are above 0."""
    for name, rate in (("drop_path", drop_path), ("residual_dropout", residual_dropout)):
        if not 0 <= rate < 1:
            raise ValueError(f"{name}={rate}: a rate in [0, 1) is needed")
    if drop_path and residual_dropout:
        raise ValueError(
            f"residual_dropout={residual_dropout}: does not go with drop_path={drop_path}; set one of the two to 0"
        )


def rising_rates(last: float, depth: int) -> list[float]:
    """Returns a rate for each of `depth` blocks, rising linearly from 0 to `last`."""
    rates: list[float] = torch.linspace(0, last, depth, device="cpu").tolist()
    return rates


class Block(nn.Module):
    """One transformer block for a list of token sequences [b, T, D] of any lengths. Raises ValueError for a number out
    of range."""

    def __init__(
        self,
        dim: int,
        num_heads: int,
        hidden_dim: int,
        ffn: Ffn = "mlp",
        layerscale: float | None = 1e-5,
        drop_path: float = 0.0,
        qkv_bias: bool = True,
        residual_dropout: float = 0.0,
        *,
        key_bias: bool = True,
        qk_norm: bool = False,
        ffn_align: int = 8,
        norm: NormKind = "layernorm",
        norm_eps: float = 1e-6,
    ) -> None:
        super().__init__()
        if num_heads < 1 or dim % num_heads:
            raise ValueError(f"num_heads={num_heads}: must divide embed_dim={dim}; 64 channels a head are usual")
        if ffn not in ("mlp", "swiglu"):
            raise ValueError(f"ffn={ffn!r}: use mlp or swiglu")
        if layerscale is not None and not layerscale >= 0:
            raise ValueError(f"layerscale={layerscale}: use a small positive value such as 1e-5, or null for none")
        check_rates(drop_path, residual_dropout)
        self.drop_path = drop_path
        self.residual_dropout = residual_dropout
        self.norm1 = make_norm(norm, dim, norm_eps)
        self.attn = Attention(dim, num_heads, qkv_bias, key_bias, qk_norm)
        self.ls1 = LayerScale(dim, layerscale) if layerscale else NoScale()
        self.norm2 = make_norm(norm, dim, norm_eps)
        self.mlp = Mlp(dim, hidden_dim) if ffn == "mlp" else SwiGLU(dim, hidden_dim, ffn_align)
        self.ls2 = LayerScale(dim, layerscale) if layerscale else NoScale()

    def forward(
        self,
        entries: Sequence[Tensor],
        rows: Sequence[Tensor] | None = None,
        single: bool = False,
        rotations: Sequence[Rotation | None] | None = None,
    ) -> list[Tensor]:
        """Returns the entries [b, T, D] after the block. With `rows`, indices [R] into b * T for each entry, only these
        rows [R, D] are returned, and the feed-forward branch is computed for them alone. `rotations` turn the queries
        and keys of each entry's patches."""
        rotations = rotations or [None] * len(entries)
        branches = [partial(self._attention, rotation=rotation) for rotation in rotations]
        if rows is None:
            return self._residual(self._residual(entries, branches, single), [self._ffn] * len(entries), single)
        if self.training and (self.drop_path or self.residual_dropout):
            return self._dropped_rows(self._residual(entries, branches, single), rows, single)
        return [self._rows(x, r, rotation) for x, r, rotation in zip(entries, rows, rotations, strict=True)]

    def _attention(self, x: Tensor, rotation: Rotation | None = None) -> Tensor:
        out: Tensor = self.ls1(self.attn(self.norm1(x), rotation), self.attn.proj)
        return out

    def _ffn(self, x: Tensor) -> Tensor:
        out: Tensor = self.ls2(self.mlp.hidden(self.norm2(x)), self.mlp.last)
        return out

    def _residual(
        self, entries: Sequence[Tensor], branches: Sequence[Callable[[Tensor], Tensor]], single: bool
    ) -> list[Tensor]:
        """Returns each entry plus its branch, under the dropout of this block."""
        rate, pairs = self.drop_path if self.training else 0.0, list(zip(entries, branches, strict=True))
        if not rate:
            return [x + functional.dropout(branch(x), self.residual_dropout, self.training) for x, branch in pairs]
        if single and rate <= CLASSIC_RATE:
            return [x + branch(x) * draw_classic(x, rate)[:, None, None] for x, branch in pairs]
        subsets = [draw_subset(x.shape[0], rate, x.device) for x in entries]
        return [
            x.index_add(0, kept, branch(x.index_select(0, kept)).to(x.dtype), alpha=weight)
            for (x, branch), (kept, weight) in zip(pairs, subsets, strict=True)
        ]

    def _rows(self, x: Tensor, rows: Tensor, rotation: Rotation | None) -> Tensor:
        """Returns the rows [R, D] of x [b, T, D] after the block. Only the attention is computed for all tokens."""
        mixed = (
            self.attn(self.norm1(x), rotation).flatten(0, 1).index_select(0, rows)
        )  # [b, T, D] -> [b T, D] -> [R, D]
        read: Tensor = x.flatten(0, 1).index_select(0, rows) + self.ls1(mixed, self.attn.proj)
        return read + self._ffn(read)

    def _dropped_rows(self, entries: Sequence[Tensor], rows: Sequence[Tensor], single: bool) -> list[Tensor]:
        """Returns the rows [R, D] of each entry [b, T, D] after the feed-forward branch with dropout, which is computed
        for these rows alone."""
        out = []
        for x, row_indices in zip(entries, rows, strict=True):
            read = x.flatten(0, 1).index_select(0, row_indices)  # [b, T, D] -> [b T, D] -> [R, D]
            branch = self._ffn(read)
            factor = (
                self._element_factors(x, row_indices, branch.dtype)
                if self.residual_dropout
                else self._factors(x, row_indices, single)
            )
            out.append(read + branch * factor)
        return out

    def _factors(self, x: Tensor, rows: Tensor, single: bool) -> Tensor:
        """Returns the stochastic-depth factor of each row's sample, [R, 1], from the same draw as in `_residual`."""
        if single and self.drop_path <= CLASSIC_RATE:
            return draw_classic(x, self.drop_path)[rows // x.shape[1], None]
        kept, weight = draw_subset(x.shape[0], self.drop_path, x.device)
        return x.new_zeros(x.shape[0]).index_fill_(0, kept, weight)[rows // x.shape[1], None]

    def _element_factors(self, x: Tensor, rows: Tensor, dtype: torch.dtype) -> Tensor:
        """Returns the dropout factor of each element of these rows, [R, D], from the same draw as in `_residual`. It is
        drawn for all tokens, so that it does not depend on which rows are read."""
        drawn = functional.dropout(torch.ones_like(x, dtype=dtype), self.residual_dropout)
        kept = drawn.flatten(0, 1).index_select(0, rows) > 0  # [b, T, D] -> [b T, D] -> [R, D]
        return kept.to(x.dtype) / (1 - self.residual_dropout)
