"""The teacher: an exponential moving average of the student's parameters (buffers are not averaged).

teacher <- momentum * teacher + (1 - momentum) * student. Follows dinov2/train/ssl_meta_arch.py (update_teacher) of
facebookresearch/dinov2 @ b8931f7.
"""

import torch
from torch import Tensor, nn

from dinoswap.distributed.sharding import own_share


class EMA:
    """Updates the teacher from the student. Parameters are paired once, and `update` is one foreach call."""

    def __init__(self, teacher: nn.ModuleDict, student: nn.ModuleDict) -> None:
        student_parameters = dict(student.named_parameters())
        self.teacher: list[Tensor] = [parameter for _, parameter in teacher.named_parameters()]
        self.student: list[Tensor] = [student_parameters[name] for name, _ in teacher.named_parameters()]

    @torch.no_grad()
    def update(self, momentum: float, skipped: Tensor) -> None:
        """Moves the teacher's parameters towards the student's, in place. `skipped` is a scalar tensor, 1 where the
        optimiser's step was skipped: the teacher then stays as it is, and the host need not wait for the device."""
        weight = (1 - momentum) * (1 - skipped)
        # Both are sharded in the same way, so that the shards of one rank belong together
        teacher, student = ([own_share(parameter) for parameter in network] for network in (self.teacher, self.student))
        torch._foreach_lerp_(teacher, student, [weight] * len(teacher))
