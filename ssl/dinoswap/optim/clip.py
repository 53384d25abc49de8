"""Gradient clipping by global L2 norm: per submodule (backbone, each head), or each tensor by itself.

coefficient = min(1, max_norm / (norm + 1e-6)). Per submodule follows dinov2/train/train.py of
facebookresearch/dinov2 @ b8931f7, per tensor the legacy trainer @ 67f6a87. Groups with `clip` False are measured only.
"""

import torch
from torch import Tensor

from dinoswap.distributed.sharding import norms, own_share
from dinoswap.optim.param_groups import Group
from dinoswap.optim.settings import ClipBy


class Clip:
    def __init__(self, max_norm: float | None = 3.0, by: ClipBy = "per_module") -> None:
        """`max_norm` None: norms are measured, nothing is clipped."""
        if max_norm is not None and not max_norm > 0:
            raise ValueError(f"max_norm={max_norm}: must be above 0, or null for no clipping")
        self.max_norm = max_norm
        self.by = by

    @torch.no_grad()
    def __call__(self, groups: list[Group]) -> dict[str, Tensor]:
        """Scale the gradients in place; the norms before clipping by module name."""
        modules: dict[str, list[Group]] = {}
        for group in groups:
            modules.setdefault(group["module"], []).append(group)
        found = {}
        for module, own in modules.items():
            grads = [p.grad for group in own for p in group["params"] if p.grad is not None]
            if grads:
                found[module] = self._clip(grads, clipped=all(group["clip"] for group in own))
        return found

    def _clip(self, grads: list[Tensor], clipped: bool) -> Tensor:
        """Of one module; its norm."""
        of_tensor = norms(grads)
        norm: Tensor = torch.linalg.vector_norm(of_tensor)
        if clipped and self.max_norm is not None:
            bounded = of_tensor if self.by == "per_tensor" else norm
            coefficients = (self.max_norm / (bounded + 1e-6)).clamp(max=1.0)
            own = [own_share(grad) for grad in grads]
            torch._foreach_mul_(own, list(coefficients) if self.by == "per_tensor" else coefficients)
        return norm
