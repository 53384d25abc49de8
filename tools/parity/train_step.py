"""train_step_dinov2*.npz: the official training step, run through the trainer's own.

Per scenario: parameter groups, then for each iteration losses, target probabilities, centres, gradients before clipping
and their norms, clip norms, schedules, and after it the weights of student and teacher and the optimiser's moments: all
that the file holds.
"""

import re
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dinoswap.trainer import Trainer
from dinoswap.values import Batch
from parity import dinov3_run
from parity.masks import WEIGHT as WEIGHT_OF_MASK
from parity.masks import masks_weight
from parity.official_run import TrainStepFile, build_trainer
from parity.recorder import LOSS, MOMENTS, NORM, PROBABILITY, WEIGHT, Recorder
from parity.rows import EXACT, SCHEDULE, Row, Scenarios, compare, compare_gradient, is_left_out, worst_of

SCHEDULES = {
    "lr": "lr",
    "last_layer_lr": "last_layer_lr",
    "weight_decay": "wd",
    "teacher_temp": "teacher_temp",
    "momentum": "momentum",
}


def scenarios(path: Path) -> Scenarios:
    file = TrainStepFile(path)
    return {name: partial(check_scenario, file, name, build_trainer) for name in file.scenarios}


def dinov3_scenarios(path: Path) -> Scenarios:
    file = dinov3_run.Dinov3File(path)
    return {
        name: partial(check_scenario, file, name, dinov3_run.build_trainer)
        for name in file.scenarios
        if not is_left_out(path, name, dinov3_run.reasons_to_leave_out(file, name))
    }


def check_scenario(file: TrainStepFile, scenario: str, build: Callable[..., Trainer]) -> Iterator[Row]:
    config = file.meta["configs"].get(scenario)
    if config is None:
        raise ValueError(f"{file.path}: its meta data have no configuration of the scenario {scenario}")
    trainer = build(file, scenario, config)
    yield from check_groups(trainer, file, file.meta.get("optimizer_groups", {}).get(scenario, []))
    recorder = Recorder(trainer)
    for iteration in sorted({int(m[1]) for k in file.own if (m := re.match(rf"{re.escape(scenario)}/it(\d+)/", k))}):
        at, batch = f"{scenario}/it{iteration}", file.batch(scenario, iteration)
        logs = trainer.step(iteration, [batch])
        yield from check_masks_weight(file, scenario, iteration, batch)
        yield from check_losses(file, at, logs, config)
        yield from check_targets(file, at, recorder, batch.images)
        yield from check_gradients(file, at, logs, recorder)
        yield from check_schedules(file, scenario, iteration, trainer, config)
        yield from check_weights(file, f"{scenario}/after{iteration + 1}", recorder)


def short(at: str) -> str:
    """scenario/it0 -> it0"""
    return at.rsplit("/", 1)[1]


def check_masks_weight(file: TrainStepFile, scenario: str, iteration: int, batch: Batch) -> Iterator[Row]:
    key = f"{file.batch_key(scenario, iteration)}/masks_weight"
    if key in file.own:
        yield compare(f"it{iteration}/masks_weight", masks_weight(batch.mask), file[key], WEIGHT_OF_MASK)


def check_losses(file: TrainStepFile, at: str, logs: dict[str, Tensor], config: dict[str, Any]) -> Iterator[Row]:
    for key, ours in file.terms(logs, config).items():
        if f"{at}/{key}" in file.own:
            yield compare(f"{short(at)}/{key}", ours, file[f"{at}/{key}"], LOSS[file.dtype], scale=1.0)


def check_targets(file: TrainStepFile, at: str, recorder: Recorder, images: int) -> Iterator[Row]:
    for name, ours in recorder.targets.items():
        key = f"{at}/{name}_teacher_probs"
        if key in file.own:
            if name == "dino" and file.swaps_crops:
                ours = ours.unflatten(0, (2, images)).flip(0).flatten(0, 1)
            theirs = file[key].reshape(-1, ours.shape[-1])
            yield compare(f"{short(at)}/{name}_teacher_probs", ours, theirs, PROBABILITY[file.dtype], scale=1.0)
    for name, center in recorder.centers.items():
        key = f"{at}/{name}_center_used"
        if key in file.own:
            yield compare(f"{short(at)}/{name}_center_used", center, file[key].view(1, -1), WEIGHT[file.dtype])


def check_gradients(file: TrainStepFile, at: str, logs: dict[str, Tensor], recorder: Recorder) -> Iterator[Row]:
    tolerance, ours = NORM[file.dtype], recorder.gradients
    yield from worst_of(f"{short(at)}/grad_norm", (
        compare(name, torch.linalg.vector_norm(ours[name]), norm, tolerance, scale=1e-2)
        for name, norm in file.below(f"{at}/grad_norm/").items()
    ))  # fmt: skip
    yield from worst_of(f"{short(at)}/grad", (
        compare_gradient(name, ours[name], gradient, tolerance) for name, gradient in file.below(f"{at}/grad/").items()
    ))  # fmt: skip
    for module, norm in file.below(f"{at}/clip_total_norm/").items():
        key = f"{short(at)}/clip_total_norm/{module}"
        yield compare(key, logs[f"grad_norm/{module}"], norm, tolerance, scale=1e-2)


def check_schedules(
    file: TrainStepFile, scenario: str, iteration: int, trainer: Trainer, config: dict[str, Any]
) -> Iterator[Row]:
    hyper = trainer.schedules.at(iteration)
    for theirs, weight in file.weights(hyper, config).items():
        if f"{scenario}/it{iteration}/{theirs}" in file.own:
            yield compare(f"it{iteration}/{theirs}", weight, file[f"{scenario}/it{iteration}/{theirs}"], SCHEDULE)
    for ours, theirs in SCHEDULES.items():
        if f"{scenario}/sched/{theirs}" in file.own:
            value = file[f"{scenario}/sched/{theirs}"][iteration]
            yield compare(f"it{iteration}/{theirs}", hyper[ours], value, SCHEDULE)


def check_weights(file: TrainStepFile, at: str, recorder: Recorder) -> Iterator[Row]:
    """Every weight, then the optimiser's moments."""
    tolerance = file.weight_tolerance(at.rsplit("/", 1)[0])
    for network in ("student", "teacher"):
        weights = getattr(recorder.trainer.model, network).state_dict()
        stored = file.below(f"{at}/{network}/")
        yield from recorder.compare_weights(f"{short(at)}/{network}", weights, stored, tolerance)
    if stored := file.below(f"{at}/gram_teacher/backbone."):
        weights = recorder.trainer.model.objectives["gram"].backbone.state_dict()
        ours, theirs = (file.used({f"backbone.{k}": v for k, v in w.items()}, at) for w in (weights, stored))
        yield from recorder.compare_weights(f"{short(at)}/gram_teacher", ours, theirs, tolerance)
    for kind in MOMENTS:
        yield from recorder.compare_moments(short(at), kind, file.below(f"{at}/{kind}/"), NORM[file.dtype])


def check_groups(trainer: Trainer, file: TrainStepFile, official: list[dict[str, Any]]) -> Iterator[Row]:
    """Multipliers of each parameter, exactly."""
    fields = ("lr_multiplier", "wd_multiplier", "is_last_layer")

    def table(groups: list[dict[str, Any]]) -> dict[str, tuple[Any, ...]]:
        return {file.our_name(name): tuple(group[f] for f in fields) for group in groups for name in group["names"]}

    if official:
        ours, theirs = table(trainer.optimizer.param_groups), table(official)
        differing = sum(ours.get(name) != theirs.get(name) for name in ours | theirs)
        yield compare(f"parameter groups, {len(theirs)} parameters: differing", differing, 0, EXACT)
