"""The norms of the vision transformer: LayerNorm, or RMSNorm, x / sqrt(mean x^2 + eps) times a weight, without a bias.

Follows dinov3/layers/rms_norm.py of facebookresearch/dinov3 @ 6876159.
"""

from typing import Literal

from torch import nn

NormKind = Literal["layernorm", "rmsnorm"]


def make_norm(kind: NormKind, dim: int, eps: float) -> nn.Module:
    """Returns the norm of [..., dim]. Raises ValueError for another kind and for an eps that is not above 0."""
    if kind not in ("layernorm", "rmsnorm"):
        raise ValueError(f"norm={kind!r}: use layernorm or rmsnorm")
    if not eps > 0:
        raise ValueError(f"norm_eps={eps}: must be above 0; 1e-6 and 1e-5 are usual")
    return nn.LayerNorm(dim, eps=eps) if kind == "layernorm" else nn.RMSNorm(dim, eps=eps)
