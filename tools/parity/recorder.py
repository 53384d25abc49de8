"""A training step as fixtures see it: what the trainer's step computes and does not return, and how weights compare."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from dinoswap.targets.centering import Centering
from dinoswap.trainer import Trainer
from parity.rows import Row, compare, compare_gradient, worst_of

LOSS = {torch.float32: 2e-6, torch.float64: 1e-6}  # relative to max(1, |value|)
PROBABILITY = {
    torch.float32: 5e-6,
    torch.float64: 1e-6,
}  # a temperature of 0.04 multiplies the rounding of logits by 25
NORM = {torch.float32: 5e-5, torch.float64: 1e-6}  # relative to max(1e-2, |value|), or to the tensor's largest entry
WEIGHT = {torch.float32: 2e-6, torch.float64: 1e-6}  # absolute
ROUNDING = {torch.float32: 2.0**-21, torch.float64: 2.0**-23}
"""An entry of a gradient is known to this share of its tensor's largest: in float32 its sums round there, and the
float64 runs keep a float32 Sinkhorn. Adam divides by the entry's size, so that a step may move a weight by
lr * ROUNDING * largest / size away, and by 2 lr where the true gradient is 0, as that of the keys' bias is. What this
does not explain is the error."""
MOMENTS = {"adam_m": "exp_avg", "adam_v": "exp_avg_sq", "adam_step": "step"}


class Recorder:
    """Of the last step: targets, the centres they were made with, the masks that reductions were given, gradients
    before clipping, their norms after it, and the parameters that the optimiser passes over. And how far rounding may
    have moved each weight so far."""

    def __init__(self, trainer: Trainer) -> None:
        self.trainer = trainer
        self.targets: dict[str, Tensor] = {}
        self.centers: dict[str, Tensor] = {}
        self.masks: dict[str, Tensor] = {}
        self.gradients: dict[str, Tensor] = {}
        self.clipped: dict[str, Tensor] = {}
        self.passed_over: set[str] = set()
        self.rounding: dict[str, Tensor] = {}
        self._clip, trainer.clip = trainer.clip, self.clip
        trainer.optimizer.register_step_pre_hook(self._note_passed_over)
        trainer.optimizer.register_step_post_hook(self._add_rounding)
        for name, objective in trainer.model.objectives.items():
            if hasattr(objective, "targets"):
                objective.targets.register_forward_pre_hook(partial(self._keep_center, name))
                objective.targets.register_forward_hook(partial(self._keep_targets, name))
            if hasattr(objective, "reduction"):
                objective.reduction = partial(self._reduce, name, objective.reduction)

    def _keep_center(self, name: str, module: nn.Module, inputs: object) -> None:
        if isinstance(module, Centering):
            self.centers[name] = module.center.clone()

    def _keep_targets(self, name: str, module: nn.Module, inputs: object, output: Tensor) -> None:
        self.targets[name] = output

    def _reduce(self, name: str, reduction: Any, losses: Tensor, mask: Tensor, positions: Tensor) -> Tensor:
        self.masks[name] = mask
        reduced: Tensor = reduction(losses, mask, positions)
        return reduced

    def clip(self, groups: list[dict[str, Any]]) -> dict[str, Tensor]:
        for name, parameter in _named(groups):
            self.gradients[name] = _gradient(parameter).clone()
        norms = self._clip(groups)
        for name, parameter in _named(groups):
            self.clipped[name] = torch.linalg.vector_norm(_gradient(parameter))
        return norms

    def _note_passed_over(self, *_: object) -> None:
        self.passed_over = {name for name, p in self.trainer.model.student.named_parameters() if p.grad is None}

    def _add_rounding(self, optimizer: torch.optim.Optimizer, *_: object) -> None:
        for group in optimizer.param_groups:
            for name, parameter in _named([group]):
                if parameter.grad is None:
                    continue
                state = optimizer.state[parameter]
                size = (state["exp_avg_sq"] / (1 - group["betas"][1] ** state["step"])).sqrt()
                share = (ROUNDING[size.dtype] * size.max() / (size + group["eps"])).clamp(max=2)
                self.rounding[name] = self.rounding.get(name, torch.zeros(())) + group["lr"] * share

    def compare_weights(
        self, label: str, weights: Mapping[str, Tensor], stored: Mapping[str, Tensor], tolerance: float
    ) -> Iterator[Row]:
        """Of one network, by name, against the fixture's."""
        rounding = {name: self.rounding.get(name, torch.zeros(())) for name in stored}  # one never stepped has none
        vague = sum(int((value > tolerance).sum()) for value in rounding.values())
        yield from worst_of(f"{label} weights ({vague} rounded beyond the tolerance)", (
            compare_weight(name, weights[name], stored[name], rounding[name], tolerance) for name in stored
        ))  # fmt: skip

    def compare_moments(self, label: str, kind: str, stored: Mapping[str, Tensor], tolerance: float) -> Iterator[Row]:
        """Of Adam, of one of the MOMENTS, by name."""
        state = {n: self.trainer.optimizer.state.get(p, {}) for n, p in self.trainer.model.student.named_parameters()}
        yield from worst_of(f"{label}/{kind}", (
            compare_gradient(name, state[name].get(MOMENTS[kind]), value, tolerance) for name, value in stored.items()
        ))  # fmt: skip


def compare_weight(name: str, ours: Tensor, theirs: Tensor, rounding: Tensor, tolerance: float) -> Row:
    """The error is what rounding does not explain; the differences are those of the weights known to the tolerance."""
    if ours.shape != theirs.shape:
        return compare(name, ours, theirs, tolerance)
    known = rounding <= tolerance
    error = ((ours - theirs).abs() - rounding).clamp(min=0).max()
    return replace(compare(name, ours[known], theirs[known], tolerance), error=float(error))


def _named(groups: list[dict[str, Any]]) -> Iterator[tuple[str, Tensor]]:
    for group in groups:
        yield from zip(group["names"], group["params"], strict=True)


def _gradient(parameter: Tensor) -> Tensor:
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
