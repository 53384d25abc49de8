"""Cross-entropy with soft targets over K prototypes, in blocks of rows.

    loss = -sum_k t_k log p_k,   d loss / d logits = (p sum_k t_k - t) / temperature,
    p = softmax(logits / temperature)

Between forward and backward only targets and logits are kept, in their own precision: at K = 65536 tensors of this size
are most of a step's memory. log p is computed twice, each time for one block only. Each block takes the steps
that autograd would take for all rows, so that the result is that of the plain formula, bit for bit.
The gradient may overwrite the logits, as in the official code with xformers (`bw_inplace=True` in
dinov2/loss/ibot_patch_loss.py of facebookresearch/dinov2 @ b8931f7).
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from dinoswap.nn.row_blocks import row_blocks


def cross_entropy(targets: Tensor, logits: Tensor, temperature: float, overwrite_logits: bool = False) -> Tensor:
    """Returns -sum_k targets_k log softmax(logits / temperature)_k of each row, in float32 or wider: [..., K] -> [...].

    Targets have no gradient and are broadcast to the logits, as one target for several crops. With `overwrite_logits`
    backward may write the gradient into the memory of the logits, which saves a tensor of their size: for callers that
    do not read them afterwards. An operation that has saved them for its own backward, or a second backward, then
    raises RuntimeError. Leaves are never overwritten.
    """
    return cross_entropy_of_views([(1, targets)], logits.unsqueeze(0), temperature, overwrite_logits).squeeze(0)


def cross_entropy_of_views(
    targets: Sequence[tuple[int, Tensor]], logits: Tensor, temperature: float, overwrite_logits: bool = False
) -> Tensor:
    """Returns the losses of `cross_entropy` for logits [V, ..., K] of V views that do not all have the same targets:
    each pair is a number of views and the targets that are broadcast to the logits of the next so many."""
    views = [count for count, _ in targets]
    expanded = [
        target.detach().expand_as(part) for (_, target), part in zip(targets, torch.split(logits, views), strict=True)
    ]
    overwrite = overwrite_logits and not _is_leaf(logits)
    losses: Tensor = _CrossEntropy.apply(logits, views, temperature, overwrite, *expanded)
    return losses


class _CrossEntropy(torch.autograd.Function):
    """The cross-entropy of logits and targets, which are of the shape of the logits of their views."""

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, views: list[int], temperature: float, overwrite: bool, *targets: Tensor
    ) -> Tensor:
        ctx.save_for_backward(logits, *targets)
        ctx.views, ctx.temperature, ctx.overwrite = views, temperature, overwrite
        losses = logits.new_empty(logits.shape[:-1], dtype=torch.promote_types(targets[0].dtype, _wide(logits.dtype)))
        for part, target, of_part in zip(torch.split(logits, views), targets, torch.split(losses, views), strict=True):
            for rows in row_blocks(part):
                of_part[rows] = -(target[rows] * _log_softmax(part[rows], temperature)).sum(dim=-1)
        return losses

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        logits, *targets = ctx.saved_tensors
        logits = logits.detach()  # shares the version counter, so that autograd notices writes to the logits
        grad_logits = logits if ctx.overwrite else torch.empty_like(logits)
        parts = (torch.split(tensor, ctx.views) for tensor in (logits, grad, grad_logits))
        for part, of_losses, of_part, target in zip(*parts, targets, strict=True):
            for rows in row_blocks(part):
                log_p = _log_softmax(part[rows], ctx.temperature)
                grad_log_p = (target[rows] * -of_losses[rows].unsqueeze(-1)).to(log_p.dtype)
                scaled = torch._log_softmax_backward_data(grad_log_p, log_p, -1, log_p.dtype)
                of_part[rows] = scaled.div_(ctx.temperature)
        return grad_logits, None, None, None, *(None for _ in targets)


def _log_softmax(logits: Tensor, temperature: float) -> Tensor:
    """Returns the logarithms of the probabilities of logits [..., K] at a temperature, in float32 at least."""
    return (logits.to(_wide(logits.dtype)) / temperature).log_softmax(dim=-1)


def _wide(dtype: torch.dtype) -> torch.dtype:
    """Returns float32 for half precision, which would keep 8 bits or so of small probabilities, else `dtype`."""
    return torch.float32 if dtype in (torch.bfloat16, torch.float16) else dtype


def _is_leaf(x: Tensor) -> bool:
    """Tells whether x is, or is a view of, a leaf of the autograd graph."""
    return x.is_leaf if x._base is None else x._base.is_leaf
