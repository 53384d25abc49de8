"""Contexts in which features are logits: the heads are identities."""

import torch
from torch import Tensor, nn

from dinoswap.objectives.base import Context
from dinoswap.values import Batch, Features, masked_positions

NO_CROPS, NO_ROWS = torch.empty(0, 0, 0), torch.empty(0, 0)


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def context(
    cls: Tensor = NO_CROPS,
    local: Tensor = NO_CROPS,
    patch: Tensor = NO_ROWS,
    mask: Tensor | None = None,
    teacher_cls: Tensor = NO_CROPS,
    teacher_patch: Tensor = NO_ROWS,
    temperature: float = 0.05,
) -> Context:
    """Student's cls [2, B, K], local [L, B, K] and masked patches [M, K], teacher's likewise; mask bool [P, B, N]."""
    mask = torch.zeros(2, max(cls.shape[1], 1), 1, dtype=torch.bool) if mask is None else mask
    images = mask.shape[1]
    batch = Batch(
        global_crops=torch.empty(2, images, 3, 0, 0),
        local_crops=torch.empty(local.shape[0], images, 3, 0, 0),
        extra_crops=torch.empty(0, images, 3, 0, 0),
        mask=mask,
        **masked_positions(mask),
        indices=torch.arange(images),
    )
    heads = nn.ModuleDict({"dino_head": nn.Identity(), "ibot_head": nn.Identity()})
    student = Features(cls, local, patch)
    return Context(
        batch, {"teacher_temp": temperature}, student, Features(teacher_cls, NO_CROPS, teacher_patch), heads, heads
    )


class Softmax(nn.Module):
    """The plainest normaliser, for tests that are not about targets."""

    def forward(self, logits: Tensor, temperature: float) -> Tensor:
        return (logits / temperature).softmax(-1)
