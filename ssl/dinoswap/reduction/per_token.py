"""Every masked token counts the same: the mean over all M of them, of all ranks.

    sum_m loss_m / M

Unlike `per_sample`, a crop counts as much as it has masked tokens; with equal counts in all crops the two agree.
Follows losses/prototype_loss.py of the legacy trainer @ 67f6a87.
"""

from torch import Tensor

from dinoswap.distributed import rows_per_rank


class PerToken:
    """Reduces losses with the same weight for every masked token."""

    def __call__(self, losses: Tensor, mask: Tensor, masked_indices: Tensor) -> Tensor:
        """Returns a scalar from losses [M], mask bool [P, B, N] and masked_indices [M]: 0, with a graph, if M = 0."""
        return losses.sum() / rows_per_rank(losses)
