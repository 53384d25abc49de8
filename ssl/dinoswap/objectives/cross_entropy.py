"""Cross-entropy with soft targets over K prototypes, in blocks of rows.

    loss = -sum_k t_k log p_k,   d loss / d logits = (p sum_k t_k - t) / temperature,
    p = softmax(logits / temperature)

Between forward and backward only targets and logits are kept, in their own precision: at K = 65536 tensors of this size
are most of a step's memory. log p is computed twice, each time for one block only. Each block takes the steps
that autograd would take for all rows, so that the result is that of the plain formula, bit for bit.
The gradient may overwrite the logits, as in the official code with xformers (`bw_inplace=True` in
dinov2/loss/ibot_patch_loss.py of facebookresearch/dinov2 @ b8931f7).
"""

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
    targets = targets.detach().expand_as(logits)
    losses: Tensor = _CrossEntropy.apply(targets, logits, temperature, overwrite_logits and not _is_leaf(logits))
    return losses


class _CrossEntropy(torch.autograd.Function):
    """The cross-entropy of targets and logits of the same shape, as an autograd function."""

    @staticmethod
    def forward(ctx: Any, targets: Tensor, logits: Tensor, temperature: float, overwrite: bool) -> Tensor:
        ctx.save_for_backward(targets, logits)
        ctx.temperature, ctx.overwrite = temperature, overwrite
        losses = logits.new_empty(logits.shape[:-1], dtype=torch.promote_types(targets.dtype, _wide(logits.dtype)))
        for rows in row_blocks(logits):
            losses[rows] = -(targets[rows] * _log_softmax(logits[rows], temperature)).sum(dim=-1)
        return losses

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor, None, None]:
        targets, logits = ctx.saved_tensors
        logits = logits.detach()  # shares the version counter, so that autograd notices writes to the logits
        grad_logits = logits if ctx.overwrite else torch.empty_like(logits)
        for rows in row_blocks(logits):
            log_p = _log_softmax(logits[rows], ctx.temperature)
            grad_log_p = (targets[rows] * -grad[rows].unsqueeze(-1)).to(log_p.dtype)
            scaled = torch._log_softmax_backward_data(grad_log_p, log_p, -1, log_p.dtype)
            grad_logits[rows] = scaled.div_(ctx.temperature)
        return None, grad_logits, None, None


def _log_softmax(logits: Tensor, temperature: float) -> Tensor:
    return (logits.to(_wide(logits.dtype)) / temperature).log_softmax(dim=-1)


def _wide(dtype: torch.dtype) -> torch.dtype:
    """Returns float32 for half precision, which would keep 8 bits or so of small probabilities, else `dtype`."""
    return torch.float32 if dtype in (torch.bfloat16, torch.float16) else dtype


def _is_leaf(x: Tensor) -> bool:
    """Whether x is, or is a view of, a leaf of the autograd graph."""
    return x.is_leaf if x._base is None else x._base.is_leaf
