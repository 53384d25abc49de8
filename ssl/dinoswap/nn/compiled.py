"""Modules parts of which can be compiled by torch.compile, for sizes that change from call to call."""

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn


class Compilable(nn.Module):
    """A module of which some methods are compiled where `compiled` is set. Modules of one class share their graphs, and
    the module's hooks (those of FSDP2) stay outside of them."""

    compiled = False

    def run(self, method: Callable[..., Tensor], *args: Any) -> Tensor:
        """Returns what this method of the module's class returns, compiled or not."""
        called = _compiled(method) if self.compiled else method
        return called(self, *args)


def set_compiled(network: nn.Module, compiled: bool) -> None:
    """Has every part of `network` that can be compiled run so from its next call on, or no longer."""
    for module in network.modules():
        if isinstance(module, Compilable):
            module.compiled = compiled


@cache
def _compiled(method: Callable[..., Tensor]) -> Callable[..., Tensor]:
    # The sizes are symbols from the start: masked patches, sequences that are not dropped, and crops vary by the step
    return torch.compile(method, dynamic=True)
