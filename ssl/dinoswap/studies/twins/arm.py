"""One arm at given weights: what it computes on given steps of its own batches."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dinoswap.build import build_pipeline, build_trainer
from dinoswap.config.command_line import compose_config
from dinoswap.config.facts import build_source
from dinoswap.config.sections import loading_settings
from dinoswap.distributed import rank
from dinoswap.rng import seed_torch
from dinoswap.studies.overrides import combined, quoted
from dinoswap.values import Batch

ALONE = ("trainer.accumulate=1", "trainer.compile=false", "distributed=none", "tracker=none")
"""Overrides by which an arm is one process that computes a batch at once."""
FRESH = "fresh"
"""How a line of `SelfDistillation.origin` begins, after the network's name, where nothing was taken."""


@dataclass
class Gradient:
    """The mean gradient over some batches by the parameter's name, and the mean of each loss term."""

    tensors: dict[str, Tensor] = field(default_factory=dict)
    terms: dict[str, float] = field(default_factory=dict)


class Arm:
    """An arm of a study with the weights of a checkpoint, of student and teacher, or its own initial ones for None.

    Networks that the checkpoint does not have, or has in another shape, keep the initial weights of their seed, as
    `fresh` says. Raises ConfigError for a configuration that is refused, and for a backbone that does not fit.
    """

    def __init__(self, overrides: Sequence[str], seed: int, checkpoint: Path | None) -> None:
        begun = [] if checkpoint is None else ["start=run", f"start.path={quoted(checkpoint)}"]
        self.config: dict[str, Any] = compose_config(combined(overrides, ALONE, begun, [f"seed={seed}"]))
        self.trainer = build_trainer(self.config)
        loading, device = loading_settings(self.config), self.trainer.device
        self._mean, self._std = (torch.tensor(values, device=device) for values in (loading.mean, loading.std))
        pipeline = build_pipeline(self.config, self.trainer.model)
        self._dataset = pipeline(build_source(self.config).train())
        self.steps = int(self.config["trainer"]["max_steps"])
        origins = (line.partition(": ") for line in self.trainer.model.origin)
        self.fresh = [network for network, _, how in origins if how.startswith(FRESH)]

    def batch(self, step: int) -> Batch:
        """Returns the batch of a step of the run, normalised and on the device."""
        return self._dataset[step].to(self.trainer.device).normalised(self._mean, self._std)

    def gradient(self, steps: Sequence[int], at: int) -> Gradient:
        """Returns the mean gradient over the batches of some steps, with the schedules of step `at`. Weights, centres
        and the optimiser stay as they are, but an objective that renews its teacher at that step does so."""
        trainer, mean = self.trainer, Gradient()
        hyper = trainer.schedules.at(at)
        trainer.model.begin_step(hyper)
        buffers = [buffer.clone() for buffer in trainer.buffers]
        for step in steps:
            seed_torch(trainer.seed, "step", step, rank())  # as in training
            terms = trainer.gradients([self.batch(step)], hyper)
            for name, parameter in trainer.model.student.named_parameters():
                if parameter.grad is not None:
                    share = parameter.grad / len(steps)
                    mean.tensors[name] = mean.tensors[name] + share if name in mean.tensors else share
            for name, value in terms.items():
                mean.terms[name] = mean.terms.get(name, 0.0) + float(value) / len(steps)
            for buffer, before in zip(trainer.buffers, buffers, strict=True):
                buffer.copy_(before)
        return mean

    def update(self, steps: Iterable[int]) -> dict[str, Tensor]:
        """Makes these steps of training, with fresh moments of the optimiser, and returns by how much each parameter
        has changed."""
        parameters = dict(self.trainer.model.student.named_parameters())
        before = {name: parameter.detach().clone() for name, parameter in parameters.items()}
        for step in steps:
            self.trainer.step(step, [self.batch(step)])
        return {name: parameter.detach() - before[name] for name, parameter in parameters.items()}

    def targets(self, step: int) -> dict[str, Tensor]:
        """Returns the target distributions [rows, K] by objective for the batch of a step."""
        return self.trainer.model.teacher_targets(self.batch(step), self.trainer.schedules.at(step))
