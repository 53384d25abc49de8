"""Optimiser state by parameter name, so that it does not depend on how groups are ordered."""

from collections.abc import Mapping

import torch
from torch import Tensor

from dinoswap.distributed.sharding import cut_like

State = dict[str, dict[str, Tensor]]


def _named(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    return {n: p for group in optimizer.param_groups for n, p in zip(group["names"], group["params"], strict=True)}


def optimizer_state(optimizer: torch.optim.Optimizer) -> State:
    """Parameter name -> {exp_avg, exp_avg_sq, step}; parameters never stepped are absent."""
    return {name: dict(optimizer.state[p]) for name, p in _named(optimizer).items() if p in optimizer.state}


def load_optimizer_state(optimizer: torch.optim.Optimizer, state: Mapping[str, Mapping[str, Tensor]]) -> None:
    named = _named(optimizer)
    unknown = sorted(set(state) - set(named))
    if unknown:
        raise ValueError(f"the checkpoint has optimiser state for unknown parameters: {', '.join(unknown[:5])}")
    for name, values in state.items():
        parameter = named[name]
        optimizer.state[parameter] = {key: _as_kept(value, parameter) for key, value in values.items()}


def _as_kept(value: Tensor, parameter: Tensor) -> Tensor:
    """A moment is cut as its parameter is, the number of steps is not."""
    value = cut_like(value, parameter) if value.shape == parameter.shape else value
    return value.to(parameter.device).clone()
