"""Parameter groups, found by name fields and never by index.

Each group carries `module`, `names`, `lr_multiplier`, `wd_multiplier`, `is_last_layer`, `clip`, and the names of the
schedules that its lr and weight decay follow. A module may overrule them, and AdamW's betas, by an attribute
`group_options`. Zero weight decay: `.bias`, norms, LayerScale gamma; tokens and
position table are decayed. Follows dinov2/utils/param_groups.py of facebookresearch/dinov2 @ b8931f7.
"""

from typing import Any, Protocol

from rich.table import Table
from torch import nn

from dinoswap.values import Hyper

Group = dict[str, Any]


class LayerDecay(Protocol):
    """An option of the `layer_decay` group: returns the lr multiplier of a backbone parameter by its name."""

    def multiplier(self, name: str, depth: int) -> float: ...


class WeightDecay(Protocol):
    """An option of the `weight_decay` group: returns the name of the schedule that a module follows."""

    def schedule(self, module: str) -> str: ...


def is_regularised(name: str) -> bool:
    """Tells whether the parameter `name` gets weight decay."""
    return not (name.endswith(".bias") or "norm" in name or "gamma" in name)


def parameter_groups(student: nn.ModuleDict, layer_decay: LayerDecay, weight_decay: WeightDecay) -> list[Group]:
    """Returns one group per module and combination of multipliers, in the order of first appearance. A module with
    blocks (the backbone) gets lr multipliers by layer, the others 1."""
    groups: dict[tuple[object, ...], Group] = {}
    for module_name, module in student.items():
        blocks = getattr(module, "blocks", None)
        depth = None if blocks is None else len(blocks)
        for name, parameter in module.named_parameters():
            if not parameter.requires_grad:
                continue
            lr_multiplier = 1.0 if depth is None else layer_decay.multiplier(name, depth)
            wd_multiplier = 1.0 if is_regularised(name) else 0.0
            last = "last_layer" in name
            group = groups.setdefault(
                (module_name, lr_multiplier, wd_multiplier, last),
                {
                    "params": [],
                    "names": [],
                    "module": module_name,
                    "lr_multiplier": lr_multiplier,
                    "wd_multiplier": wd_multiplier,
                    "is_last_layer": last,
                    "lr_schedule": "last_layer_lr" if last else "lr",
                    "wd_schedule": weight_decay.schedule(module_name),
                    "clip": True,
                    **getattr(module, "group_options", {}),
                },
            )
            group["params"].append(parameter)
            group["names"].append(f"{module_name}.{name}")
    return list(groups.values())


def group_table(groups: list[Group]) -> Table:
    """Returns a table with a row per group: its parameters, multipliers and schedules."""
    table = Table("module", "tensors", "weights", "lr x", "weight decay x", "schedules", title="parameter groups")
    for group in groups:
        table.add_row(
            group["module"],
            f"{len(group['names'])}, from {group['names'][0].removeprefix(group['module'] + '.')}",
            f"{sum(parameter.numel() for parameter in group['params']):,}",
            f"{group['lr_multiplier']:.4g}",
            f"{group['wd_multiplier']:g}",
            f"{group['lr_schedule']}, {group['wd_schedule']}",
        )
    return table


def apply_schedules(groups: list[Group], hyper: Hyper) -> None:
    """Sets lr and weight decay of every group for one step."""
    for group in groups:
        group["lr"] = hyper[group["lr_schedule"]] * group["lr_multiplier"]
        group["weight_decay"] = hyper[group["wd_schedule"]] * group["wd_multiplier"]


def drop_frozen_gradients(groups: list[Group], hyper: Hyper) -> None:
    """Removes the gradients of the last layer while the schedule `last_layer_dropped` is 1: the optimiser then leaves
    its weights and moments unchanged."""
    if not hyper["last_layer_dropped"]:
        return
    for group in groups:
        if group["is_last_layer"]:
            for parameter in group["params"]:
                parameter.grad = None
