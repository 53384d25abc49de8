"""The mean token of a teacher, subtracted so that cosines compare what differs between tokens.

Tokens of a trained network share a large common direction: a constant alone has a cosine of .5 and more with them, so
that little of the loss is left to learn. With momentum m and this step's tokens t_1 .. t_M over all ranks,

    total <- m total + (1 - m) sum_i t_i      count <- m count + (1 - m) M      centre = total / count

so steps weigh as many tokens as they have, the first gives its mean already, and one without tokens changes nothing.
"""

import torch
from torch import Tensor, nn

from dinoswap.distributed import all_reduce_sum


class TokenCentre(nn.Module):
    """The moving mean of a teacher's tokens. Raises ValueError for a momentum outside [0, 1)."""

    total: Tensor
    count: Tensor

    def __init__(self, dim: int, momentum: float) -> None:
        super().__init__()
        if not 0 <= momentum < 1:
            raise ValueError(f"centre_momentum={momentum}: must lie in [0, 1), or null for no centre")
        self.momentum = momentum
        self.register_buffer("total", torch.zeros(dim))
        self.register_buffer("count", torch.zeros(()))

    @torch.no_grad()
    def forward(self, tokens: Tensor) -> Tensor:
        """Returns tokens [..., D] minus the centre. In training mode the centre is updated first, from all ranks."""
        if self.training:
            self._move(tokens.flatten(0, -2))  # [..., D] -> [R, D]
        return tokens - self.total / self.count.clamp(min=torch.finfo(self.count.dtype).tiny)

    def _move(self, tokens: Tensor) -> None:
        """Updates the moving sum and number of tokens by `tokens` [n, D] of all ranks."""
        total = all_reduce_sum(tokens.sum(0))
        count = all_reduce_sum(self.count.new_full((), len(tokens)))
        self.total.lerp_(total, 1 - self.momentum)
        self.count.lerp_(count, 1 - self.momentum)
