"""The pre-norm transformer block, x + ls1(attention(norm1 x)) then x + ls2(ffn(norm2 x)), and two kinds of dropout.

Stochastic depth (`drop_path`) is the official batch-subset form: a residual branch is computed for
k = max(int(b (1 - rate)), 1) random sequences of each shape and added with weight b / k. Draws come from torch's
default generator: per block, all shapes for the attention branch, then all of them for the feed-forward branch. A
`single` tensor with a rate of at most 0.1 takes the classic form instead: every sequence's branch is kept with
probability 1 - rate and divided by it.
Follows dinov2/layers/{block,layer_scale,mlp,swiglu_ffn,drop_path}.py of facebookresearch/dinov2 @ b8931f7.

Residual dropout (`residual_dropout`) drops single elements: nn.Dropout on each branch behind its LayerScale, with draws
in the same order. Unlike stochastic depth it saves no computation.
Follows models/vision_transformer/modern_vit.py of the legacy trainer @ 67f6a87, which draws for all entries at once.
"""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import accumulate
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from dinoswap.nn.attention import Attention
from dinoswap.nn.compiled import Compilable
from dinoswap.nn.norm import NormKind, make_norm
from dinoswap.nn.packs import Pack, Shape
from dinoswap.position.base import Rotation

Ffn = Literal["mlp", "swiglu"]
Branch = Callable[[Tensor, Sequence[Shape]], Tensor]
"""From packed tokens [S, D] and their shapes to tokens [S, D]."""
CLASSIC_RATE = 0.1


class ScaledLinear(torch.autograd.Function):
    """gamma * (W x + b) as a linear map with the weights gamma W, which are made again for the backward pass: they are
    neither kept between the two nor, where ranks share weights, held by all of them."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, gamma: Tensor) -> Tensor:
        """Returns the map of x [S, in], [S, out], in the precision of autocast where it is on."""
        device = x.device.type  # the meta device has no autocast
        if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
            x = x.to(torch.get_autocast_dtype(device))
        ctx.save_for_backward(x, weight, bias, gamma)
        return functional.linear(x, (gamma[:, None] * weight).to(x.dtype), (gamma * bias).to(x.dtype))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        x, weight, bias, gamma = ctx.saved_tensors
        of_weights, of_bias = (grad.T @ x).to(weight.dtype), grad.sum(0).to(bias.dtype)  # those of gamma W and gamma b
        of_gamma = (of_weights * weight).sum(1) + of_bias * bias
        return grad @ (gamma[:, None] * weight).to(x.dtype), gamma[:, None] * of_weights, gamma * of_bias, of_gamma


class LayerScale(nn.Module):
    """A learnt factor for each output channel of a linear map, with the initial value `init`."""

    def __init__(self, dim: int, init: float) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((dim,), init))

    def forward(self, x: Tensor, linear: nn.Linear) -> Tensor:
        """Returns gamma * linear(x) of x [S, in]. The factor is multiplied into the weights, which saves a pass over
        the tokens in forward and backward."""
        if x.dtype == torch.float16:  # in which 1e-5 times a weight would underflow
            return functional.linear(x, linear.weight, linear.bias) * self.gamma
        out: Tensor = ScaledLinear.apply(x, linear.weight, linear.bias, self.gamma)
        return out


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
        """The last linear map, whose output a LayerScale scales."""
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
        """The last linear map, whose output a LayerScale scales."""
        return self.w3


def draw_subset(batch: int, rate: float, device: torch.device) -> tuple[Tensor, float]:
    """Draws the samples [k] that a residual branch is computed for. Returns them and the branch's weight batch / k."""
    kept = max(int(batch * (1 - rate)), 1)
    return torch.randperm(batch, device=device)[:kept], batch / kept


class Subset(NamedTuple):
    """The sequences that a residual branch is computed for."""

    rows: Tensor  # [S'], where their tokens lie among the S packed ones
    shapes: list[Shape]
    weight: Tensor  # [S', 1], of the branch of each token


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


class Block(Compilable):
    """One transformer block for packed sequences of tokens: every linear map and norm takes a pack as a whole. Where it
    is compiled, its branches are and its dropout is not: the draws stay those of torch's generator, and blocks of
    different rates share their graphs. Raises ValueError for a number out of range."""

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

    def forward(self, packs: Sequence[Pack], single: bool = False) -> list[Tensor]:
        """Returns the tokens [S, D] of each pack after the block, or with `rows` those [R, D] alone: what follows the
        attention is then computed for them only. A `single` tensor at a low rate of stochastic depth drops every
        sequence by itself, as the official code does outside of lists."""
        mixed = [self._attended(pack, single) for pack in packs]
        return [self._fed_forward(x, pack, single) for x, pack in zip(mixed, packs, strict=True)]

    def _attention(self, x: Tensor, shapes: Sequence[Shape], rotations: Sequence[Rotation | None]) -> Tensor:
        """Returns the attention branch of x, before the residual is added."""
        return self._projected(self._mixed(x, shapes, rotations))

    def _mixed(self, x: Tensor, shapes: Sequence[Shape], rotations: Sequence[Rotation | None]) -> Tensor:
        """Returns what attention makes of the normed x, before its output projection."""
        out: Tensor = self.attn(self.norm1(x), shapes, rotations)
        return out

    def _projected(self, mixed: Tensor) -> Tensor:
        """Returns the scaled output projection of what attention returned."""
        out: Tensor = self.ls1(mixed, self.attn.proj)
        return out

    def _ffn(self, x: Tensor) -> Tensor:
        """Returns the feed-forward branch of x, before the residual is added."""
        out: Tensor = self.ls2(self.mlp.hidden(self.norm2(x)), self.mlp.last)
        return out

    def _attended(self, pack: Pack, single: bool) -> Tensor:
        """Returns the tokens of the pack, or its rows, plus their attention."""
        if pack.rows is None:
            return self._residual(pack.x, pack.shapes, single, partial(self._attend, pack.rotations))
        x, rows = pack.x, pack.rows
        factors: Tensor | None
        if self._drops_subsets(single):
            subset = self._subset(x, pack.shapes)
            tokens = torch.arange(x.shape[0], device=x.device)
            # Where each token lies in the subset; one that was dropped has any place and the factor 0
            places = (tokens % len(subset.rows)).index_copy_(0, subset.rows, tokens[: len(subset.rows)])
            of_tokens = subset.weight.new_zeros(x.shape[0], 1).index_copy_(0, subset.rows, subset.weight)
            factors = of_tokens.index_select(0, rows)
            mixed = self.replay(Block._mixed, x.index_select(0, subset.rows), subset.shapes, pack.rotations)
            branch = self.run(Block._projected, mixed.index_select(0, places.index_select(0, rows)))
        else:
            mixed = self.replay(Block._mixed, x, pack.shapes, pack.rotations)
            branch = self.run(Block._projected, mixed.index_select(0, rows))
            factors = self._factors(x, pack.shapes, single, branch.dtype, rows)
        return _plus(x.index_select(0, rows), branch, factors)

    def _fed_forward(self, x: Tensor, pack: Pack, single: bool) -> Tensor:
        """Returns the tokens or rows x of the pack plus their feed-forward branch."""
        if pack.rows is None:
            return self._residual(x, pack.shapes, single, lambda x, _: self.replay(Block._ffn, x))
        branch = self.run(Block._ffn, x)
        return _plus(x, branch, self._factors(x, pack.shapes, single, branch.dtype, pack.rows))

    def _attend(self, rotations: Sequence[Rotation | None], x: Tensor, shapes: Sequence[Shape]) -> Tensor:
        """Returns the attention branch of x, computed as `replay` does it. The rotations come first, as they are bound
        before the tensors are known."""
        return self.replay(Block._attention, x, shapes, rotations)

    def _residual(self, x: Tensor, shapes: Sequence[Shape], single: bool, branch: Branch) -> Tensor:
        """Returns x [S, D] plus its branch, under the dropout of this block."""
        if self._drops_subsets(single):
            subset = self._subset(x, shapes)
            kept = branch(x.index_select(0, subset.rows), subset.shapes)
            return x.index_add(0, subset.rows, (kept * subset.weight).to(x.dtype))
        out = branch(x, shapes)
        return _plus(x, out, self._factors(x, shapes, single, out.dtype))

    def _drops_subsets(self, single: bool) -> bool:
        """Tells whether branches are computed for a subset of the samples in training; with one stack of crops alone
        only above CLASSIC_RATE."""
        return self.training and self.drop_path > (CLASSIC_RATE if single else 0)

    def _subset(self, x: Tensor, shapes: Sequence[Shape]) -> Subset:
        """Draws some of the sequences of each shape."""
        draws = [draw_subset(batch, self.drop_path, x.device) for batch, _ in shapes]
        kept = [(len(chosen), length) for (chosen, _), (_, length) in zip(draws, shapes, strict=True)]
        starts = accumulate((batch * length for batch, length in shapes), initial=0)
        rows = [
            start + torch.arange(length, device=x.device) + chosen[:, None] * length  # [k, T]
            for start, (chosen, _), (_, length) in zip(starts, draws, shapes, strict=False)
        ]
        of_shapes = zip(kept, draws, strict=True)
        weights = [x.new_full((k * length, 1), weight, dtype=_wide(x)) for (k, length), (_, weight) in of_shapes]
        return Subset(torch.cat([row.flatten() for row in rows]), kept, torch.cat(weights))

    def _factors(
        self, x: Tensor, shapes: Sequence[Shape], single: bool, dtype: torch.dtype, rows: Tensor | None = None
    ) -> Tensor | None:
        """Returns the factors of the elements of a branch, [S, D] or [S, 1], or of its rows; None where it is not
        dropped. They are drawn for all tokens, shape by shape, so that they do not depend on which rows are read."""
        if not (self.training and (self.drop_path or self.residual_dropout)):
            return None
        if self.residual_dropout:
            ones = (x.new_ones(batch * length, x.shape[1], dtype=dtype) for batch, length in shapes)
            factors = torch.cat([functional.dropout(one, self.residual_dropout) for one in ones])
        else:
            factors = torch.cat([self._sequence_factors(x, shape, single) for shape in shapes])
        return factors if rows is None else factors.index_select(0, rows)

    def _sequence_factors(self, x: Tensor, shape: Shape, single: bool) -> Tensor:
        """Returns the factor of stochastic depth of each token [b T, 1] of sequences of one shape."""
        batch, length = shape
        if self._drops_subsets(single):
            kept, weight = draw_subset(batch, self.drop_path, x.device)
            factors = x.new_zeros(batch, dtype=_wide(x)).index_fill_(0, kept, weight)
        else:
            factors = x.new_empty(batch, dtype=_wide(x)).bernoulli_(1 - self.drop_path).div_(1 - self.drop_path)
        return factors[:, None].expand(batch, length).reshape(-1, 1)


def _plus(x: Tensor, branch: Tensor, factors: Tensor | None) -> Tensor:
    """Returns x plus a residual branch, whose elements have these factors, in the type of x."""
    return (x + (branch if factors is None else branch * factors)).to(x.dtype)


def _wide(x: Tensor) -> torch.dtype:
    """Returns the type of factors: float32 for tokens in half precision, which would round b / k by up to 0.2 %."""
    return torch.promote_types(x.dtype, torch.float32)
