"""Communicates between ranks. The options of the `distributed` group, one module each, spread a model over the ranks.

Collectives are called in this package only. Without a process group every call behaves as on a single rank. Every rank
calls them, in the same order, also when it has nothing to contribute.
"""

import pickle
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from dinoswap.distributed.patience import patience

T = TypeVar("T")
Dtype = Literal["fp32", "bf16", "fp16"]

SHOWN = 5
"""The largest number of differences between ranks that a message lists."""


class RankFailed(RuntimeError):
    """Raised when another rank failed, was killed, or does not answer."""


@dataclass(frozen=True, kw_only=True)
class Networks:
    """The networks of a model by what becomes of their weights, and what else decides how they are spread."""

    trained: Sequence[nn.Module]
    averaged: Sequence[nn.Module]  # over steps, from trained ones
    frozen: Sequence[nn.Module]  # as far as they are to be sharded where the others are
    products: Dtype  # what weights of matrix products are gathered in, where the option does not say
    stream: Dtype  # what is added in the residual stream
    one_backward: bool  # whether there is no backward pass but that of each step's only micro-batch


class Parallel(Protocol):
    """Defines the interface of an option of the `distributed` group."""

    timeout_minutes: float
    shards: bool  # whether a rank holds a shard of each weight instead of all weights

    def check_ranks(self, ranks: int) -> None:
        """Raises ValueError where the option cannot spread a model over so many ranks, 2 or more."""
        ...

    def prepare(self, model: nn.Module, networks: Networks, device: torch.device) -> nn.Module:
        """Spreads `model`, of which `networks` are a part, over the ranks, and returns the module to call in its
        place."""
        ...


def is_active() -> bool:
    """Tells whether this process is one of a group of ranks."""
    return dist.is_available() and dist.is_initialized()


def rank() -> int:
    """Returns the number of this rank, 0 for a single process."""
    return dist.get_rank() if is_active() else 0


def world_size() -> int:
    """Returns the number of ranks, 1 for a single process."""
    return dist.get_world_size() if is_active() else 1


def is_main() -> bool:
    """Tells whether this is the first rank, which writes and prints."""
    return rank() == 0


def all_reduce_sum(value: Tensor) -> Tensor:
    """Returns the sum over ranks in a new tensor; with one rank, `value` itself. It is not differentiable: it is meant
    for targets, centres and counters."""
    if world_size() == 1:
        return value
    total = value.detach().clone()
    dist.all_reduce(total)
    return total


def all_reduce_mean(value: Tensor) -> Tensor:
    """Returns the mean of a tensor over all ranks."""
    return all_reduce_sum(value) / world_size()


def all_reduce_max(value: Tensor) -> Tensor:
    """Returns the maximum over ranks in a new tensor; with one rank, `value` itself. It is not differentiable."""
    if world_size() == 1:
        return value
    largest = value.detach().clone()
    dist.all_reduce(largest, op=dist.ReduceOp.MAX)
    return largest


def rows_per_rank(rows: Tensor) -> Tensor:
    """Returns the number of rows [R, ...] averaged over the ranks, a float32 scalar, counting at least one row in all.
    A sum over this rank's rows divided by it yields the mean over the rows of all ranks, because gradients are averaged
    over ranks."""
    count = all_reduce_sum(rows.new_full((), float(len(rows)), dtype=torch.float32))
    return count.clamp(min=1) / world_size()


class _GatherRows(torch.autograd.Function):
    """The rows of all ranks, whose gradients go back to the rank that they are of."""

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
    """Returns the rows [R, ...] of every rank, with the same R on each, as [ranks * R, ...]. It is differentiable: the
    backward pass returns to these rows the gradients of the losses of all ranks."""
    if world_size() == 1:
        return rows
    gathered: Tensor = _GatherRows.apply(rows)
    return gathered


def any_rank(*flags: bool) -> list[bool]:
    """Returns for each of `flags` whether it is true on any rank. It is meant for decisions that all ranks must take
    together, and takes one small reduction for all of them. Hosts reduce it, so that no device is waited for."""
    if world_size() == 1:
        return list(flags)
    return [bool(flag) for flag in all_reduce_max(torch.tensor(flags, dtype=torch.uint8)).tolist()]


def on_main(work: Callable[[], T]) -> T:
    """Runs `work` on the main process, however long it takes, and returns its result on every rank. What it raises is
    raised on every rank. The outcome is sent by pickle, between the processes of this run only."""
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
    """Runs `work` on every rank, however long it takes, and returns this rank's result once all ranks have finished.
    Raises what `work` raised here, and RankFailed when it raised on another rank. `work` must not call this function
    itself: a rank that fails would not reach the collective in which the others wait."""
    if world_size() == 1:
        return work()
    with patience():
        result, error = _outcome(work)
    messages = gathered(None if error is None else f"{type(error).__name__}: {error}")
    if error is not None:
        raise error
    if failed := [f"rank {number}: {text}" for number, text in enumerate(messages) if text]:
        raise RankFailed("; ".join(failed))
    return cast(T, result)


def on_all(work: Callable[[], T], group: dist.ProcessGroup | None = None) -> list[T]:
    """Runs `work` on every rank, however long it takes, and returns the results of all ranks, by rank, on every rank.
    Raises RankFailed on every rank, saying what was raised on which, when `work` raised on one; on a single rank, what
    it raised. Another thread than the main one gives a `group` of its own."""
    if world_size() == 1:
        return [work()]
    with patience(group):
        result, error = _outcome(work)
    outcomes = gathered((result, None if error is None else f"{type(error).__name__}: {error}"), group)
    if failed := [f"rank {number}: {text}" for number, (_, text) in enumerate(outcomes) if text]:
        raise RankFailed("; ".join(failed)) from error
    return [of_rank for of_rank, _ in outcomes]


def require_same(described: Mapping[str, Any], remedy: str) -> None:
    """Raises ValueError on every rank, listing the differences, unless `described` is the same on all ranks."""
    first, *others = gathered(dict(described))
    for number, other in enumerate(others, start=1):
        keys = [key for key in {**first, **other} if first.get(key) != other.get(key)]
        if keys:
            listed = ", ".join(f"{key}: {first.get(key)} and {other.get(key)}" for key in keys[:SHOWN])
            raise ValueError(f"ranks 0 and {number} differ in {listed}{' ...' * (len(keys) > SHOWN)}; {remedy}")


def gathered(value: T, group: dist.ProcessGroup | None = None) -> list[T]:
    """Returns the values of all ranks, by rank, on every rank. They are sent by pickle, between the processes of this
    run only. `group` is the run's own by default."""
    if world_size() == 1:
        return [value]
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value, group)
    return values


def rows_of_ranks(rows: Tensor, counts: Sequence[int]) -> list[Tensor]:
    """Returns the rows [R, ...] of every rank, by rank, on every rank; `counts` are the numbers R of all ranks. Nothing
    is pickled or padded, so that no rank holds more than these rows."""
    parts = [
        rows.contiguous() if number == rank() else rows.new_empty(count, *rows.shape[1:])
        for number, count in enumerate(counts)
    ]
    for number, part in enumerate(parts):
        if world_size() > 1 and len(part):
            dist.broadcast(part, number)
    return parts


def _outcome(work: Callable[[], Any]) -> list[Any]:
    """Returns [result, None] when `work` returns, and [None, exception] when it raises."""
    try:
        return [work(), None]
    except Exception as error:  # whatever it is: it is sent to the other ranks
        return [None, error]


def _portable(error: Exception) -> Exception:
    """Returns `error`, or a RuntimeError with its text when pickle cannot restore it."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # whatever the constructor of its class raises
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error
