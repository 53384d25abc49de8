"""Optimiser state by parameter name, so that it does not depend on how groups are ordered."""

from collections.abc import Mapping

import torch
from torch import Tensor

State = dict[str, dict[str, Tensor]]
MOMENTS = ("exp_avg", "exp_avg_sq")
"""Names of the entries that have the shape of their parameter."""


def named_parameters(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Returns all parameters that the optimiser trains, by name."""
    return {
        name: parameter
        for group in optimizer.param_groups
        for name, parameter in zip(group["names"], group["params"], strict=True)
    }


def optimizer_state(optimizer: torch.optim.Optimizer) -> State:
    """Returns {exp_avg, exp_avg_sq, step} by parameter name. Parameters that were never updated are absent."""
    return {
        name: dict(optimizer.state[parameter])
        for name, parameter in named_parameters(optimizer).items()
        if parameter in optimizer.state
    }


def load_optimizer_state(optimizer: torch.optim.Optimizer, state: Mapping[str, Mapping[str, Tensor]]) -> None:
    """Loads an `optimizer_state`, as copies on the parameters' devices. Raises ValueError for unknown parameters."""
    named = named_parameters(optimizer)
    unknown = sorted(set(state) - set(named))
    if unknown:
        raise ValueError(f"the checkpoint has optimiser state for unknown parameters: {', '.join(unknown[:5])}")
    for name, values in state.items():
        parameter = named[name]
        optimizer.state[parameter] = {key: value.to(parameter.device).clone() for key, value in values.items()}
