"""FLOPs of one step, counted by running its shapes on torch's meta device: nothing is computed.

Matrix products and convolutions count, forward and backward, a multiply-add as 2; norms, softmax, activations and the
optimiser do not. By default the algorithm is counted as it is published, every token through every block; `pruned`
counts what this implementation does, which leaves out the last block's rows that no loss reads.
"""

import torch
from torch.utils.flop_counter import FlopCounterMode

from dinoswap.model import SelfDistillation, shapes_of
from dinoswap.values import Batch, Hyper


def step_flops(model: SelfDistillation, batch: Batch, hyper: Hyper, *, pruned: bool = False) -> int:
    """Returns the FLOPs of teacher, student, heads, losses and backward for `batch`. Only the shapes of `batch` are
    read."""
    shadow = shapes_of(model)
    if not pruned:
        shadow.student_patches = shadow.teacher_patches = True
    shapes = batch.to(torch.device("meta")).normalised(torch.zeros(3, device="meta"), torch.ones(3, device="meta"))
    with FlopCounterMode(display=False) as counter:
        loss, _ = shadow(shapes, hyper)
        loss.backward()
    return int(counter.get_total_flops())
