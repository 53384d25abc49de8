"""Gradient clipping per submodule: backbone and each head by its own global L2 norm.

coefficient = min(1, max_norm / (norm + 1e-6)). Follows dinov2/train/train.py of facebookresearch/dinov2 @ b8931f7.
"""

import torch
from torch import Tensor

from dinoswap.optim.param_groups import Group


class ClipPerModule:
    def __init__(self, max_norm: float | None = 3.0) -> None:
        """`max_norm` None: norms are measured, nothing is clipped."""
        if max_norm is not None and not max_norm > 0:
            raise ValueError(f"max_norm={max_norm}: must be above 0, or null for no clipping")
        self.max_norm = max_norm

    @torch.no_grad()
    def __call__(self, groups: list[Group]) -> dict[str, Tensor]:
        """Scale the gradients in place; the norms before clipping by module name."""
        gradients: dict[str, list[Tensor]] = {}
        for group in groups:
            of_module = gradients.setdefault(group["module"], [])
            of_module.extend(p.grad for p in group["params"] if p.grad is not None)
        norms = {}
        for module, grads in gradients.items():
            if not grads:
                continue
            norms[module] = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(grads)))
            if self.max_norm is not None:
                torch._foreach_mul_(grads, (self.max_norm / (norms[module] + 1e-6)).clamp(max=1.0))
        return norms
