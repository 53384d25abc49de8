"""The projection head: an MLP to a bottleneck, L2 normalisation, and a linear map to K prototypes.

logits = x / ||x|| . g v / ||v||, with a direction v and a length g for each prototype, or x / ||x|| . w.
Follows layers/dino_head.py of facebookresearch/dinov2 @ b8931f7, and without weight_norm that of
facebookresearch/dinov3 @ 6876159, with their parameter names and init.
"""

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from dinoswap.nn.compiled import Compilable


class Prototypes(nn.Module):
    """A linear map without bias whose rows are g v / ||v||. `v` starts as nn.Linear does by default, `g` as 1."""

    def __init__(self, dim: int, prototypes: int, train_weight_g: bool) -> None:
        super().__init__()
        self.weight_g = nn.Parameter(torch.ones(prototypes, 1), requires_grad=train_weight_g)
        self.weight_v = nn.Parameter(nn.Linear(dim, prototypes, bias=False).weight.detach())

    def forward(self, x: Tensor) -> Tensor:
        """Returns the logits [R, K] of x [R, dim]."""
        # The fused kernel of torch.nn.utils.weight_norm: for K = 65536 its backward takes a quarter of the time.
        return functional.linear(x, torch._weight_norm(self.weight_v, self.weight_g, 0))


class ProjectionHead(Compilable):
    """An MLP, L2 normalisation, and prototypes: from tokens to logits. Raises ValueError for a size below 1."""

    def __init__(
        self,
        in_dim: int,
        *,
        prototypes: int,
        hidden_dim: int,
        bottleneck_dim: int,
        layers: int,
        train_weight_g: bool,
        weight_norm: bool,
    ) -> None:
        """The head has `layers` linear maps with exact GELU between them, and then `prototypes` prototypes: rows of a
        length of their own, or without `weight_norm` those of a plain linear map."""
        super().__init__()
        if not (weight_norm or train_weight_g):
            raise ValueError("train_weight_g=false: without weight_norm there is no length; leave it at true")
        for name, value in {
            "prototypes": prototypes,
            "hidden_dim": hidden_dim,
            "bottleneck_dim": bottleneck_dim,
            "layers": layers,
        }.items():
            if value < 1:
                raise ValueError(f"{name}={value}: at least 1 is needed")
        widths = [in_dim, *[hidden_dim] * (layers - 1), bottleneck_dim]
        linears = [nn.Linear(inputs, outputs) for inputs, outputs in pairwise(widths)]
        for linear in linears:
            nn.init.trunc_normal_(linear.weight, std=0.02)
            nn.init.zeros_(linear.bias)
        # With GELUs between the linear maps their names are the official mlp.0, mlp.2, mlp.4; a single one is mlp.
        modules = [module for linear in linears for module in (linear, nn.GELU())][:-1]
        self.mlp = nn.Sequential(*modules) if layers > 1 else linears[0]
        if weight_norm:
            self.last_layer: nn.Module = Prototypes(bottleneck_dim, prototypes, train_weight_g)
        else:
            self.last_layer = nn.Linear(bottleneck_dim, prototypes, bias=False)
            nn.init.trunc_normal_(self.last_layer.weight, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        """Returns the logits [R, K] of tokens [R, in_dim]; R may be 0."""
        return self.run(ProjectionHead._logits, x)

    def _logits(self, x: Tensor) -> Tensor:
        """Returns the logits [n, K] of tokens x [n, D]."""
        x = self.mlp(x)
        x = functional.normalize(x, dim=-1, eps=1e-6 if x.dtype == torch.float16 else 1e-12)
        logits: Tensor = self.last_layer(x)
        return logits
