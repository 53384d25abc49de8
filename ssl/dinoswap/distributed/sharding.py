"""Tensors of which every rank holds a share (torch's DTensor, as FSDP2 makes them), and ordinary ones alike."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor

from dinoswap.distributed import all_reduce_sum


def own_share(tensor: Tensor) -> Tensor:
    """The memory of this rank's part of a sharded tensor; of any other the tensor itself."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(tensor: Tensor) -> Tensor:
    """All of a sharded tensor, on every rank: they call it together."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def cut_like(tensor: Tensor, other: Tensor) -> Tensor:
    """`tensor`, which every rank has whole, cut as `other` is, or as it is. Nothing travels."""
    if not isinstance(other, DTensor):
        return tensor
    return distribute_tensor(tensor.to(other.device), other.device_mesh, other.placements, src_data_rank=None)


def norms(tensors: Sequence[Tensor]) -> Tensor:
    """L2 norms [len(tensors)] of whole tensors, from this rank's shares and one collective."""
    own = torch.stack(torch._foreach_norm([own_share(tensor) for tensor in tensors]))
    if not any(isinstance(tensor, DTensor) for tensor in tensors):
        return own
    return all_reduce_sum(own.square()).sqrt()
