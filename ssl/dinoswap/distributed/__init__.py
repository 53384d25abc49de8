"""Talking to other ranks, and how a model is spread over them: one module per option of the `distributed` group.

The only place with collectives. Without a process group every call is the one-rank identity. Every rank calls them, in
the same order, also when it has nothing to contribute.
"""

import pickle
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from dinoswap.distributed.patience import patience

T = TypeVar("T")


SHOWN = 5
"""Differences between ranks in a message."""


class RankFailed(RuntimeError):
    """Another rank failed, was killed, or does not answer."""


class Parallel(Protocol):
    """An option of the `distributed` group."""

    timeout_minutes: float
    shards: bool  # whether a rank holds a share of the weights, or all of them

    def prepare(
        self, model: nn.Module, trained: Iterable[nn.Module], inference_only: Iterable[nn.Module], device: torch.device
    ) -> nn.Module:
        """Spread `model`, whose loss trains the networks in `trained`; what is called in its place."""
        ...


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


def all_reduce_max(value: Tensor) -> Tensor:
    """Maximum over ranks, in a new tensor. Not differentiable."""
    if world_size() == 1:
        return value
    largest = value.detach().clone()
    dist.all_reduce(largest, op=dist.ReduceOp.MAX)
    return largest


def rows_per_rank(rows: Tensor) -> Tensor:
    """The mean number of rows [R, ...] over the ranks, but at least one row in all: what a sum over this rank's rows is
    divided by for a mean over those of all ranks, as gradients are averaged over ranks."""
    count = all_reduce_sum(rows.new_full((), float(len(rows)), dtype=torch.float32))
    return count.clamp(min=1) / world_size()


class _GatherRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        ctx.rows = len(rows)
        parts = [torch.empty_like(rows) for _ in range(world_size())]
        dist.all_gather(parts, rows.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        first = rank() * ctx.rows
        return all_reduce_sum(gradients[0])[first : first + ctx.rows]


def gather_rows(rows: Tensor) -> Tensor:
    """[R, ...] of every rank, the same R everywhere, as [ranks * R, ...]. Differentiable: what other ranks' losses make
    of these rows comes back to them."""
    if world_size() == 1:
        return rows
    gathered: Tensor = _GatherRows.apply(rows)
    return gathered


def any_rank(*wishes: bool) -> list[bool]:
    """Each of `wishes` true on every rank when it is true on one: decisions that all ranks must take together, in one
    small reduction for all of them. Between the hosts: no device is waited for."""
    if world_size() == 1:
        return list(wishes)
    return [bool(wished) for wished in all_reduce_max(torch.tensor(wishes, dtype=torch.uint8)).tolist()]


def on_main(work: Callable[[], T]) -> T:
    """What `work` returns, or raises, on the main process, on every rank, however long it takes. It travels by pickle,
    between these processes alone."""
    if world_size() == 1:
        return work()
    outcome: list[Any] = [None, None]
    with patience():
        if is_main():
            outcome = _outcome(work)
    if outcome[1] is not None:
        outcome[1] = _portable(outcome[1])
    dist.broadcast_object_list(outcome, device=torch.device("cpu"))
    if outcome[1] is not None:
        raise outcome[1]
    result: T = outcome[0]
    return result


def together(work: Callable[[], T]) -> T:
    """What `work` returns here, once it has returned on every rank, however long that takes. Where it raised on another
    one, RankFailed. `work` may not call this in turn: a rank that fails would not be where the others are."""
    if world_size() == 1:
        return work()
    with patience():
        result, error = _outcome(work)
    said = gathered(None if error is None else f"{type(error).__name__}: {error}")
    if error is not None:
        raise error
    if failed := [f"rank {number}: {text}" for number, text in enumerate(said) if text]:
        raise RankFailed("; ".join(failed))
    return cast(T, result)


def require_same(described: Mapping[str, Any], remedy: str) -> None:
    """Raises ValueError on every rank, with what differs, unless `described` is the same on all."""
    first, *others = gathered(dict(described))
    for number, other in enumerate(others, start=1):
        keys = [key for key in {**first, **other} if first.get(key) != other.get(key)]
        if keys:
            listed = ", ".join(f"{key}: {first.get(key)} and {other.get(key)}" for key in keys[:SHOWN])
            raise ValueError(f"ranks 0 and {number} differ in {listed}{' ...' * (len(keys) > SHOWN)}; {remedy}")


def gathered(value: T) -> list[T]:
    """Of every rank, on every rank. It travels by pickle, between these processes alone."""
    if world_size() == 1:
        return [value]
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


def _outcome(work: Callable[[], Any]) -> list[Any]:
    """[what it returns, None] or [None, what it raises]."""
    try:
        return [work(), None]
    except Exception as error:  # each rank is told
        return [None, error]


def _portable(error: Exception) -> Exception:
    """`error`, or its words where it cannot be made again from what pickle keeps."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # whatever its class does when it is made
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error
