"""Gradient clipping by the L2 norm of a submodule (backbone, each head), or of each tensor.

coefficient = min(1, max_norm / (norm + 1e-6)). Per submodule follows dinov2/train/train.py of
facebookresearch/dinov2 @ b8931f7, per tensor the legacy trainer @ 67f6a87. Groups with `clip` False are measured only.
"""

import torch
from torch import Tensor

from dinoswap.distributed.sharding import norms, own_share
from dinoswap.optim.param_groups import Group
from dinoswap.optim.settings import ClipBy


class Clip:
    """Clips gradients by norm: calling it with the parameter groups returns the norms before clipping."""

    def __init__(self, max_norm: float | None, by: ClipBy) -> None:
        """With `max_norm` None norms are measured and nothing is clipped. Raises ValueError where it is not above 0."""
        if max_norm is not None and not max_norm > 0:
            raise ValueError(f"max_norm={max_norm}: must be above 0, or null for no clipping")
        self.max_norm = max_norm
        self.by = by

    @torch.no_grad()
    def __call__(self, groups: list[Group]) -> dict[str, Tensor]:
        """Scales the gradients in place and returns their norms before clipping, by module name."""
        modules: dict[str, list[Group]] = {}
        for group in groups:
            modules.setdefault(group["module"], []).append(group)
        norm_of_module = {}
        for module, module_groups in modules.items():
            grads = [
                parameter.grad for group in module_groups for parameter in group["params"] if parameter.grad is not None
            ]
            if grads:
                norm_of_module[module] = self._clip(grads, clipped=all(group["clip"] for group in module_groups))
        return norm_of_module

    def _clip(self, grads: list[Tensor], clipped: bool) -> Tensor:
        """Scales the gradients of one module in place and returns their norm before clipping."""
        tensor_norms = norms(grads)
        norm: Tensor = torch.linalg.vector_norm(tensor_norms)
        if clipped and self.max_norm is not None:
            bounded = tensor_norms if self.by == "per_tensor" else norm
            coefficients = (self.max_norm / (bounded + 1e-6)).clamp(max=1.0)
            shards = [own_share(grad) for grad in grads]
            torch._foreach_mul_(shards, list(coefficients) if self.by == "per_tensor" else coefficients)
        return norm
