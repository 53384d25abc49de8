"""The norms of the vision transformer: LayerNorm, or RMSNorm, x / sqrt(mean x^2 + eps) times a weight, without a bias.

Follows dinov3/layers/rms_norm.py of facebookresearch/dinov3 @ 6876159.
"""

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

NormKind = Literal["layernorm", "rmsnorm"]


class LayerNorm(nn.LayerNorm):
    """torch's LayerNorm, whose weights may have less precision than the tokens, as those that ranks gather in half
    precision."""

    def forward(self, x: Tensor) -> Tensor:
        """Returns the normed x [..., dim], in its type."""
        return functional.layer_norm(x, self.normalized_shape, _wide(self.weight, x), _wide(self.bias, x), self.eps)


class RMSNorm(nn.RMSNorm):
    """torch's RMSNorm, whose weights may have less precision than the tokens, as those that ranks gather in half
    precision."""

    def forward(self, x: Tensor) -> Tensor:
        """Returns the normed x [..., dim], in its type."""
        return functional.rms_norm(x, self.normalized_shape, _wide(self.weight, x), self.eps)


def _wide(weight: Tensor, x: Tensor) -> Tensor:
    """Returns the weight in the wider of its own type and that of x."""
    return weight.to(torch.promote_types(weight.dtype, x.dtype))


def make_norm(kind: NormKind, dim: int, eps: float) -> nn.Module:
    """Returns the norm of [..., dim]. Raises ValueError for another kind and for an eps that is not above 0."""
    if kind not in ("layernorm", "rmsnorm"):
        raise ValueError(f"norm={kind!r}: use layernorm or rmsnorm")
    if not eps > 0:
        raise ValueError(f"norm_eps={eps}: must be above 0; 1e-6 and 1e-5 are usual")
    return LayerNorm(dim, eps=eps) if kind == "layernorm" else RMSNorm(dim, eps=eps)
