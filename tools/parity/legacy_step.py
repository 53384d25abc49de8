"""train_step_{legacy,fixed}*.npz: the legacy training step, run through our trainer as the legacy preset builds it.

Per scenario: parameter groups, then for each iteration losses, targets, gradients and their norms before and after
clipping, the bank's gradients, the parameters without one, lr and weight decay of every parameter, schedules, and the
weights of student, teacher and bank and the optimiser's moments that it leaves: all that the file holds. What the
legacy student's loss leaves in the bank's gradient and the legacy trainer throws away does not come into being here.
"""

import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dinoswap.trainer import Trainer
from dinoswap.values import Batch
from parity.legacy_run import StoredScenario, build_scenario, our_names
from parity.masks import WEIGHT as WEIGHT_OF_MASK
from parity.masks import masks_weight
from parity.recorder import LOSS, MOMENTS, NORM, PROBABILITY, Recorder
from parity.rows import EXACT, SCHEDULE, Fixture, Row, Scenarios, compare, compare_gradient, worst_of

BANK_LOSS = {torch.float32: 5e-6, torch.float64: LOSS[torch.float64]}
BANK_PROBABILITY = {torch.float32: 1.5e-5, torch.float64: PROBABILITY[torch.float64]}
"""The bank's logits over the temperature reach 90, where float32 has steps of 7.6e-6. Measured: with last bits of the
initial weights changed, a float32 run lies 7.2e-6 from the float64 one in a target, 2.5e-6 in a loss; two lie twice as
far apart."""
WEIGHT = {torch.float32: 5e-6, torch.float64: 1e-6}
"""Absolute, as the fixtures' README has it. Measured likewise, beyond what rounding explains: 4.1e-6, in mlp.w12."""
LOGGED = {  # names in the log of the float64 runs
    "dino": "dino_class_loss",
    "koleo": "koleo_loss",
    "ibot": "ibot_loss",
    "clustering": "clustering_loss",
    "arrangement": "teacher_proto_arrangement_loss",
    "koleo_proto": "proto_koleo_loss",
    "student_total": "student_loss",
}
TARGETS = {"dino": "dino_teacher_probs", "ibot": "ibot_teacher_probs", "clustering": "cluster_targets"}
SCHEDULES = {
    "lr": "lr",
    "weight_decay": "wd",
    "prototype_lr": "proto_lr",
    "momentum": "momentum",
    "teacher_temp": "teacher_temp",
}
PROTOTYPE_LR = 0.5  # the bank's multiplier, which is in theirs
OPTIMIZERS = {"student": "optimizer_groups", "proto": "prototype_optimizer"}
Names = dict[str, str]  # of the student's and the bank's parameters, legacy: ours


def scenarios(path: Path) -> Scenarios:
    """Those that its keys begin with, or the one that the file is called after."""
    keys = [match for key in Fixture(path).file.files if (match := re.match(r"(?:(.+?)/)?(?:it|after)\d+/", key))]
    names = {match[1] or path.stem.removeprefix("train_step_") for match in keys}
    return {name: partial(check_scenario, path, name) for name in sorted(names)}


def check_scenario(path: Path, name: str) -> Iterator[Row]:
    stored = StoredScenario(path, name)
    trainer = build_scenario(stored)
    names, recorder = our_names(trainer.model.student), Recorder(trainer)
    yield from check_groups(stored, trainer, names)
    for iteration in range(stored.steps):
        at, batch = f"it{iteration}", stored.batch(iteration, trainer.model.plan.extra_crops)
        logs = trainer.step(iteration, [batch])
        yield from check_masks(stored, iteration, batch, recorder)
        yield from check_losses(stored, at, logs)
        yield from check_targets(stored, at, recorder)
        yield from check_gradients(stored, at, recorder, names)
        yield from check_hyper(stored, iteration, trainer, names)
        yield from check_weights(stored, f"after{iteration + 1}", recorder, names)


def check_groups(stored: StoredScenario, trainer: Trainer, names: Names) -> Iterator[Row]:
    """Which parameters are optimised, with which multipliers (where the legacy groups have them), betas and eps."""
    ours = {name: group for group in trainer.optimizer.param_groups for name in group["names"]}
    theirs = legacy_groups(stored, names)
    if not theirs:
        return
    differing = sorted(ours.keys() ^ theirs.keys())
    yield compare(f"{len(theirs)} parameters in groups, differing {differing}", len(differing), 0, EXACT)
    for field in ("lr_multiplier", "wd_multiplier", "betas", "eps"):
        known = [name for name in ours.keys() & theirs.keys() if theirs[name].get(field) is not None]
        if known:
            pairs = [ours[name][field] for name in known], [theirs[name][field] for name in known]
            yield compare(f"{field} of {len(known)} parameters", *pairs, EXACT)


def legacy_groups(stored: StoredScenario, names: Names) -> dict[str, dict[str, Any]]:
    """The group of each parameter by our name, with its `optimizer` and `number` there. The bank's has no names."""
    bank = [name for name in names if name.startswith("proto_layer.")]
    groups: dict[str, dict[str, Any]] = {}
    for optimizer, key in OPTIMIZERS.items():
        for number, group in enumerate(stored.described(key) or []):
            more = {**group, "optimizer": optimizer, "number": number}
            groups |= {names[name]: more for name in group.get("names", bank)}
    return groups


def check_masks(stored: StoredScenario, iteration: int, batch: Batch, recorder: Recorder) -> Iterator[Row]:
    """Those that clustering selects by, and the weights of block masks, which are inputs of the fixed trainer."""
    theirs = stored.get(f"it{iteration}/cluster_mask")
    if theirs is not None:
        ours = recorder.masks["clustering"].flatten(0, 1)  # [P, B, N] -> [P B, N]
        yield compare(f"it{iteration}/cluster_mask", ours, theirs.reshape(ours.shape), EXACT)
    weights = stored.own.below(f"batch{iteration}/block_weight_")
    if weights and not batch.extra_crops.shape[0]:
        of_crops = torch.cat([weights[key] for key in sorted(weights)])  # [P B]
        of_tokens = of_crops[batch.masked_indices // batch.mask.shape[-1]]
        yield compare(f"it{iteration}/block_weight", masks_weight(batch.mask), of_tokens, WEIGHT_OF_MASK)


def check_losses(stored: StoredScenario, at: str, logs: dict[str, Tensor]) -> Iterator[Row]:
    """Our total holds the two terms that train the bank, theirs does not."""
    arrangement, koleo_proto = (logs.get(f"clustering/{term}", 0.0) for term in ("arrangement", "koleo_proto"))
    terms = {
        "dino": logs["dino/global"] + logs.get("dino/local", 0.0),
        "koleo": logs["koleo/cls"],
        "ibot": logs["ibot/masked"],
        "clustering": logs.get("clustering/clustering"),
        "arrangement": arrangement,
        "koleo_proto": koleo_proto,
        "student_total": logs["loss"] - arrangement - koleo_proto,
    }
    for term, ours in terms.items():
        tolerance = (BANK_LOSS if term in ("clustering", "arrangement") else LOSS)[stored.dtype]
        for key in (f"{at}/loss/{term}", f"{at}/{term}", f"{at}/logged/{LOGGED[term]}"):
            theirs = stored.get(key)
            if theirs is not None:
                yield compare(key, ours, theirs, tolerance, scale=1.0)


def check_targets(stored: StoredScenario, at: str, recorder: Recorder) -> Iterator[Row]:
    for name, key in TARGETS.items():
        theirs = stored.get(f"{at}/{key}")
        if theirs is not None:
            tolerance = (BANK_PROBABILITY if name == "clustering" else PROBABILITY)[stored.dtype]
            yield compare(f"{at}/{key}", recorder.targets[name], theirs, tolerance, scale=1.0)


def check_gradients(stored: StoredScenario, at: str, recorder: Recorder, names: Names) -> Iterator[Row]:
    tolerance, ours = NORM[stored.dtype], recorder.gradients
    norms = {name: torch.linalg.vector_norm(gradient) for name, gradient in ours.items()}
    for key, ours_by_name in (("grad_norm", norms), ("grad_norm_clipped", recorder.clipped)):
        yield from worst_of(f"{at}/{key}", (
            compare(name, ours_by_name[names[name]], norm, tolerance, scale=1e-2)
            for name, norm in stored.below(f"{at}/{key}/").items()
        ))  # fmt: skip
    for key in ("grad", "bank_grad_at_step"):
        yield from worst_of(f"{at}/{key}", (
            compare_gradient(name, ours[names[name]], gradient, tolerance)
            for name, gradient in stored.below(f"{at}/{key}/").items()
        ))  # fmt: skip
    if theirs := {names[name] for name in stored.below(f"{at}/grad_is_none_at_step/")}:
        differing = sorted(theirs ^ recorder.passed_over)
        yield compare(f"{at}/grad_is_none_at_step, differing {differing}", len(differing), 0, EXACT)


def check_hyper(stored: StoredScenario, iteration: int, trainer: Trainer, names: Names) -> Iterator[Row]:
    """lr and weight decay of every parameter, and the schedules."""
    ours = {name: group for group in trainer.optimizer.param_groups for name in group["names"]}
    groups = legacy_groups(stored, names)
    for optimizer in OPTIMIZERS:
        known = [name for name, group in groups.items() if group["optimizer"] == optimizer and name in ours]
        for short, field in (("lr", "lr"), ("wd", "weight_decay")):
            theirs = stored.get(f"it{iteration}/{optimizer}_group_{short}")
            if theirs is not None:
                expected = [float(theirs[groups[name]["number"]]) for name in known]
                label = f"it{iteration}/{optimizer}_group_{short} of {len(known)} parameters"
                yield compare(label, [ours[name][field] for name in known], expected, SCHEDULE)
    hyper = trainer.schedules.at(iteration)
    for name, key in SCHEDULES.items():
        theirs = stored.get(f"sched/{key}")
        if theirs is not None:
            value = hyper[name] * (PROTOTYPE_LR if name == "prototype_lr" else 1)
            yield compare(f"it{iteration}/sched/{key}", value, theirs[iteration], SCHEDULE)


def check_weights(stored: StoredScenario, at: str, recorder: Recorder, names: Names) -> Iterator[Row]:
    """Of the networks, then the optimiser's moments."""
    for network, part in (("student", "student"), ("teacher", "teacher"), ("bank", "student")):
        weights = getattr(recorder.trainer.model, part).state_dict()
        theirs = {names[name]: value for name, value in stored.below(f"{at}/{network}/").items()}
        yield from recorder.compare_weights(f"{at}/{network}", weights, theirs, WEIGHT[stored.dtype])
    for kind in MOMENTS:
        theirs = {names[name]: value for name, value in stored.below(f"{at}/{kind}/").items()}
        yield from recorder.compare_moments(at, kind, theirs, NORM[stored.dtype])
