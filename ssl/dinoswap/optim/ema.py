"""The teacher: an exponential moving average of the student's parameters (buffers are not averaged).

teacher <- momentum * teacher + (1 - momentum) * student. Follows dinov2/train/ssl_meta_arch.py (update_teacher) of
facebookresearch/dinov2 @ b8931f7.
"""

import torch
from torch import Tensor, nn

from dinoswap.distributed.sharding import own_share


class EMA:
    """Pairs the parameters once; `update` is one foreach call."""

    def __init__(self, teacher: nn.ModuleDict, student: nn.ModuleDict) -> None:
        of_student = dict(student.named_parameters())
        self.teacher: list[Tensor] = [p for _, p in teacher.named_parameters()]
        self.student: list[Tensor] = [of_student[name] for name, _ in teacher.named_parameters()]

    @torch.no_grad()
    def update(self, momentum: float, skipped: Tensor) -> None:
        """`skipped` is a scalar on the device, 1 where the optimiser's step was skipped: then nothing moves. A tensor,
        so that the host need not wait to know."""
        weight = (1 - momentum) * (1 - skipped)
        teacher, student = ([own_share(p) for p in of] for of in (self.teacher, self.student))  # cut alike
        torch._foreach_lerp_(teacher, student, [weight] * len(teacher))
