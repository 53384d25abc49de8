"""Modules parts of which can be compiled by torch.compile, for sizes that change from call to call, and replayed as
CUDA graphs, for sizes that stay.

A CUDA graph is a recording of a call's kernels, which the host starts at once instead of one by one. It is made for one
size and for one place among the calls of a step, and where an earlier call of a step has another size, all that follow
are recorded again. So only calls whose sizes do not depend on the masks are replayed. What a graph returns lies in
memory of its own, which the next step overwrites: outside of steps nothing is replayed.
"""

import contextlib
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any, Literal

import torch
from torch import Tensor, nn

Compilation = bool | Literal["cudagraphs"]


class Compilable(nn.Module):
    """A module of which some methods are compiled where `compiled` is set. Modules of one class share their graphs, and
    the module's hooks (those of FSDP2) stay outside of them."""

    compiled: Compilation = False
    in_step = False
    """Whether a training step is under way, within `replayed_step`. It is set for all modules at once, and not for a
    thread: a backward pass, which may compute blocks again, has a thread of its own."""

    def run(self, method: Callable[..., Tensor], *args: Any) -> Tensor:
        """Returns what this method of the module's class returns, compiled or not."""
        called = _compiled(method) if self.compiled else method
        return called(self, *args)

    def replay(self, method: Callable[..., Tensor], *args: Any) -> Tensor:
        """Returns what `run` does, for arguments whose sizes are those of the step before. In a step it is replayed
        where `compiled` is "cudagraphs"."""
        if self.compiled == "cudagraphs" and Compilable.in_step:
            return _replayed(method)(self, *args)
        return self.run(method, *args)


def set_compiled(network: nn.Module, compiled: Compilation) -> None:
    """Has every part of `network` that can be compiled run so from its next call on, or no longer."""
    for module in network.modules():
        if isinstance(module, Compilable):
            module.compiled = compiled


@contextlib.contextmanager
def replayed_step() -> Iterator[None]:
    """A context of one training step, forward and backward passes, in which CUDA graphs are replayed. It ends the use
    of what they returned in the step before, gradients included, which have to be None by the first call."""
    torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
    Compilable.in_step = True
    try:
        yield
    finally:
        Compilable.in_step = False


@cache
def _compiled(method: Callable[..., Tensor]) -> Callable[..., Tensor]:
    # The sizes are symbols from the start: masked patches, sequences that are not dropped, and crops vary by the step
    return torch.compile(method, dynamic=True)


@cache
def _replayed(method: Callable[..., Tensor]) -> Callable[..., Tensor]:
    # Symbols again: student and teacher have crops of different numbers, and share what is compiled
    return torch.compile(method, dynamic=True, mode="reduce-overhead")
