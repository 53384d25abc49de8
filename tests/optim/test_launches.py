"""How many operations clipping, AdamW, the moving average and the buffers take: as many for 12 blocks as for 2."""

from collections import Counter
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from axis_arms import Arm

PER_MODULE = 10
"""Of a backbone and each head: norms, their norm, a coefficient, a product."""
PER_GROUP = 3
"""Of AdamW: its step counts, the fused kernel, and the counts again where the step is skipped."""


class Operations(TorchDispatchMode):
    """Counts those within it by name, but for views, which launch nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.count: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not func.is_view:
            self.count[str(func)] += 1
        return func(*args, **(kwargs or {}))


def operations(depth: int, *overrides: str) -> tuple[Counter[str], int, int]:
    """Those of all that follows a backward pass, and the numbers of modules and of parameter groups."""
    arm = Arm("trainer.device=meta", "model.size=small", f"model.depth={depth}", *overrides)
    trainer, nonfinite = arm.trainer, torch.zeros((), device="meta")
    groups = trainer.optimizer.param_groups
    for parameter in (parameter for group in groups for parameter in group["params"]):
        parameter.grad = torch.empty_like(parameter)
    trainer.optimizer.found_inf = nonfinite  # type: ignore[attr-defined]
    with patch("torch.optim.adam._device_dtype_check_for_fused"):  # which does not know the meta device
        trainer.optimizer.step()  # makes the moments
        with Operations() as operations:
            trainer.clip(groups)
            trainer.optimizer.step()
            trainer.ema.update(0.99, nonfinite)
            trainer._set_buffers([torch.zeros_like(buffer) for buffer in trainer.buffers])
    return operations.count, len({group["module"] for group in groups}), len(groups)


@pytest.mark.parametrize("centres", [[], ["targets@objectives.dino.targets=centering"]], ids=["no buffer", "a buffer"])
def test_as_many_for_any_depth(centres: list[str]) -> None:
    shallow, deep = (operations(depth, "layer_decay=uniform", *centres)[0] for depth in (2, 12))
    assert shallow == deep
    assert deep["aten._foreach_lerp_.List"] == 1
    assert deep["aten._foreach_copy_.default"] == len(centres)


@pytest.mark.parametrize("preset", ["official", "dinov3"])
def test_few_for_each_module_and_group(preset: str) -> None:
    """A group for each layer, where the lr decays by layer."""
    count, modules, groups = operations(12, f"preset={preset}", "layer_decay=layerwise", "optimizer.clip=per_module")
    assert groups > 24
    assert count.total() <= PER_MODULE * modules + PER_GROUP * groups + 5
