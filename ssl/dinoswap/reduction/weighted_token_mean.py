"""The weights of `per_sample` and then a mean over all M masked tokens, those of all ranks: a token is divided by its
count twice.

    sum_i [ sum_{m in crop i} loss_m / count_i ] / M  =  per_sample * I / M

So the loss is M / I (masked tokens per crop) times smaller than that of `per_sample`: 78 times on average at 14 x 14
patches of which 0.4 are masked. Follows losses/ibot_loss.py of the legacy trainer @ 67f6a87.
"""

from torch import Tensor

from dinoswap.distributed import rows_per_rank
from dinoswap.reduction.per_sample import masks_weight


class WeightedTokenMean:
    """Reduces losses with the weights of `per_sample` and a mean over masked tokens."""

    def __call__(self, losses: Tensor, mask: Tensor, masked_indices: Tensor) -> Tensor:
        """Returns a scalar from losses [M], mask bool [P, B, N] and masked_indices [M]: 0, with a graph, if M = 0."""
        return (losses * masks_weight(mask, masked_indices, losses.dtype)).sum() / rows_per_rank(losses)
