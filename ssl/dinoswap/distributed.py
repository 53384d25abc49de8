"""The only place that talks to other ranks. Without a process group every call is the one-rank identity."""

import torch
import torch.distributed as dist
from torch import Tensor


def is_active() -> bool:
    return dist.is_available() and dist.is_initialized()


def rank() -> int:
    return dist.get_rank() if is_active() else 0


def world_size() -> int:
    return dist.get_world_size() if is_active() else 1


def is_main() -> bool:
    return rank() == 0


def all_reduce_sum(value: Tensor) -> Tensor:
    """Sum over ranks, in a new tensor. Not differentiable: for targets, centres and counters."""
    if world_size() == 1:
        return value
    total = value.detach().clone()
    dist.all_reduce(total)
    return total


def all_reduce_mean(value: Tensor) -> Tensor:
    return all_reduce_sum(value) / world_size()


def any_rank(flag: bool, device: torch.device) -> bool:
    """True on every rank when it is true on one: decisions that all ranks must take together."""
    if world_size() == 1:
        return flag
    return bool(all_reduce_sum(torch.tensor(float(flag), device=device)).item())


def barrier() -> None:
    if world_size() > 1:
        dist.barrier()


def all_reduce_max(value: Tensor) -> Tensor:
    """Maximum over ranks, in a new tensor. Not differentiable."""
    if world_size() == 1:
        return value
    largest = value.detach().clone()
    dist.all_reduce(largest, op=dist.ReduceOp.MAX)
    return largest
