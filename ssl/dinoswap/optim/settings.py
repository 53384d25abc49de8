"""The section `optimizer` of the config. Nothing in here imports torch, so that a wrong value is refused at once."""

from dataclasses import dataclass
from typing import Literal

ClipBy = Literal["per_module", "per_tensor"]


@dataclass(frozen=True, kw_only=True)
class OptimizerSettings:
    """The settings of AdamW and of gradient clipping. Raises ValueError for a value out of range."""

    betas: tuple[float, float]
    eps: float
    clip_grad: float | None
    clip: ClipBy

    def __post_init__(self) -> None:
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas={list(self.betas)}: both must lie in [0, 1)")
        if not self.eps > 0:
            raise ValueError(f"eps={self.eps}: must be above 0")
        if self.clip_grad is not None and not self.clip_grad > 0:
            raise ValueError(f"clip_grad={self.clip_grad}: must be above 0, or null for no clipping")
