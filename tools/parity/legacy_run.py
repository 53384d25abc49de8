"""A scenario of train_step_{legacy,fixed}*.npz, and the trainer that our legacy preset builds for it.

What a scenario's arguments set is what a recipe decides: sizes, lengths, rates, temperatures. Everything else is the
preset's, so that it is the preset that is compared. The runs had no dropout, and float32 or float64 on the CPU; ours
are on torch's default device.
"""

import json
import re
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dinoswap.build import build_trainer
from dinoswap.config.command_line import compose_config
from dinoswap.nn.legacy_weights import HEADS, WRAPPER, from_legacy, to_legacy
from dinoswap.trainer import Trainer
from dinoswap.values import Batch, masked_positions
from parity.rows import Fixture

SETTINGS = {  # legacy argument: our keys
    "patch_size": ("model.patch_size",),
    "embeddingdim": ("model.embed_dim",),
    "vitdepth": ("model.depth",),
    "vitheads": ("model.num_heads",),
    "out_dim": tuple(f"heads.{head}.prototypes" for head in HEADS.values()),
    "n_standard_local_crops": ("crops.local_number",),
    "local_crop_size": ("crops.local_size",),
    "batch_size_per_gpu": ("data.batch_size",),
    "total_iterations": ("trainer.max_steps",),
    "lr": ("schedule.base_lr",),
    "min_lr": ("schedule.min_lr",),
    "warmup_iterations": ("schedule.warmup",),
    "freeze_last_layer_iters": ("schedule.freeze_last_layer",),
    "weight_decay": ("schedule.weight_decay",),
    "weight_decay_end": ("schedule.weight_decay_end",),
    "momentum_teacher": ("schedule.momentum",),
    "warmup_teacher_temp": ("schedule.teacher_temp_start",),
    "teacher_temp": ("schedule.teacher_temp",),
    "teacher_temp_warmup_iters": ("schedule.teacher_temp_warmup",),
    "clip_grad": ("optimizer.clip_grad",),
    "koleo_loss_weight": ("objectives.koleo.loss_weight",),
    "ibot_loss_weight": ("objectives.ibot.loss_weight",),
}
CLUSTERING = {
    "num_prototypes": ("objectives.clustering.prototypes",),
    "clustering_weight": ("objectives.clustering.loss_weight",),
    "clustering_student_temp": ("objectives.clustering.student_temp",),
}
COMMITS = {  # what differs from the preset
    "67f6a87": [],
    "b23df50": [
        "forward=unified",
        "masking=block_accumulate",
        "reduction@objectives.ibot.reduction=per_sample",
        "reduction@objectives.clustering.reduction=per_sample",
        "weight_decay=all_groups",
        "layer_decay=layerwise",
        "layer_decay.patch_embed_lr_mult=1.0",
    ],
}


class StoredScenario:
    """What one file holds of a scenario. What it leaves out (initial weights, batches, arguments) is in another file
    of the folder, as the fixtures' README says."""

    def __init__(self, path: Path, name: str) -> None:
        self.path = path
        self.name = name
        self.own = Fixture(path)
        self.prefix = f"{name}/" if any(key.startswith(f"{name}/") for key in self.own.file.files) else ""
        self.dtype = torch.float64 if self.own.meta.get("dtype") == "float64" else torch.float32
        others = [Fixture(other) for other in sorted(path.parent.glob("train_step*.npz")) if other != path]
        others.sort(key=lambda other: not self._about(other))  # those that speak of this scenario come first
        self.family = [self.own, *others]

    def _about(self, file: Fixture) -> list[dict[str, Any]]:
        """The meta data of a file that describe this scenario."""
        metas = [meta for name, meta in file.meta.get("scenarios", {}).items() if name == self.name]
        return metas + ([file.meta] if file.meta.get("scenario") == self.name else [])

    def described(self, key: str, default: Any = None) -> Any:
        """Of the first such meta data that have it."""
        return next((meta[key] for file in self.family for meta in self._about(file) if key in meta), default)

    def inputs(self, prefix: str) -> dict[str, Tensor]:
        """Everything under a prefix: the scenario's own, else what all share."""
        for file in self.family:
            for at in (f"{self.name}/{prefix}", prefix):
                if value := file.below(at):
                    return value
        raise ValueError(f"{self.path}: neither this file nor one beside it has {prefix}* for {self.name}")

    def below(self, prefix: str) -> dict[str, Tensor]:
        """What this very file holds of the scenario under a prefix."""
        return self.own.below(self.prefix + prefix)

    def get(self, key: str) -> Tensor | None:
        """What this very file holds of the scenario, or for all of its scenarios."""
        names = [at for at in (self.prefix + key, key) if at in self.own]
        return self.own[names[0]] if names else None

    @property
    def steps(self) -> int:
        """How many this file tells of."""
        pattern = re.compile(rf"{re.escape(self.prefix)}(it|after)(\d+)/")
        matches = [match for key in self.own.file.files if (match := pattern.match(key))]
        return max(int(match[2]) + (match[1] == "it") for match in matches)

    def initial_weights(self, clustering: bool) -> dict[str, Tensor]:
        parts = {"student": "student", "teacher": "teacher"} | ({"prototype_bank": "bank"} if clustering else {})
        return from_legacy({ours: self.inputs(f"init/{theirs}/") for ours, theirs in parts.items()})

    def batch(self, iteration: int, extra_crops: int) -> Batch:
        """With an extra crop, that one carries the Bernoulli mask; else both global crops carry block masks."""
        stored = self.inputs(f"batch{iteration}/")
        images = stored["global_1"].shape[0]

        def stacked(pattern: str) -> Tensor:
            """[C, B, ...], of every name that matches, in the order of their numbers; C may be 0."""
            names = sorted((n for n in stored if re.fullmatch(pattern, n)), key=lambda n: (len(n), n))
            tensors = [stored[n].to(self.dtype) for n in names]
            return torch.stack(tensors) if tensors else torch.empty(0, images, 3, 0, 0, dtype=self.dtype)

        mask = stacked("bernoulli_mask" if extra_crops else r"block_mask_\d").bool()
        return Batch(
            global_crops=stacked("global_[12]"),
            local_crops=stacked(r"local_\d+"),
            extra_crops=stacked("global_3")[:extra_crops],
            mask=mask,
            **masked_positions(mask),
            indices=torch.arange(images),
        )


def legacy_overrides(args: Mapping[str, Any], settings: Mapping[str, Iterable[str]] = SETTINGS) -> list[str]:
    """The arguments that we have keys for."""
    return [f"{key}={json.dumps(args[name])}" for name, keys in settings.items() if name in args for key in keys]


def scenario_overrides(stored: StoredScenario) -> list[str]:
    args, commit = stored.described("args"), stored.described("commit")
    if args is None or commit not in COMMITS:
        given = "are not given" if args is None else f"are of commit {commit}, not of {' or '.join(COMMITS)}"
        raise ValueError(f"{stored.path}: the arguments of the scenario {stored.name} {given}")
    lines = [*COMMITS[commit], *legacy_overrides(args), *initial_sizes(stored), "model.residual_dropout=0.0"]
    lines.append("clustering=" + (args["clustering_mode"] if args["use_prototype_clustering"] else "none"))
    if args["use_prototype_clustering"]:
        lines += legacy_overrides(args, CLUSTERING)
    if "layer_decay=layerwise" in lines:
        lines.append(f"layer_decay.rate={args['lr_decay_rate']}")
    if not args["norm_last_layer"]:
        lines += [f"heads.{head}.train_weight_g=true" for head in HEADS.values()]
    return lines


def initial_sizes(stored: StoredScenario) -> list[str]:
    """Which no argument gives: of the crops and of the heads, whose factory the fixtures' makers replaced."""
    crop, student = stored.inputs("batch0/")["global_1"], stored.inputs("init/student/")
    lines = [f"crops.global_size={crop.shape[-1]}"]
    for theirs, ours in HEADS.items():
        lines.append(f"heads.{ours}.hidden_dim={student[f'{theirs}.mlp.0.weight'].shape[0]}")
        lines.append(f"heads.{ours}.bottleneck_dim={student[f'{theirs}.last_layer.weight_v'].shape[1]}")
    return lines


@cache
def legacy_config(*overrides: str) -> dict[str, Any]:
    crops = ["crops.global_size=32", "crops.local_size=16"]  # any that patches of 4, 8 and 16 px divide
    return compose_config(["preset=legacy", "trainer.precision=fp32", *crops, *overrides])


def build_scenario(stored: StoredScenario) -> Trainer:
    device = f"trainer.device={torch.get_default_device()}"
    trainer = build_trainer(legacy_config(*scenario_overrides(stored), device))
    trainer.model.to(stored.dtype)
    weights = stored.initial_weights(clustering="prototype_bank" in trainer.model.student)
    trainer.model.load_state_dict(weights)
    return trainer


def our_names(student: nn.ModuleDict) -> dict[str, str]:
    """Legacy name: ours, of every parameter of a student, the bank's included."""
    names = {f"student.{name}": name for name in student.state_dict()}
    parts: Mapping[str, Mapping[str, Any]] = to_legacy(names)  # type: ignore[arg-type]  # names stand for their tensors
    return {theirs.removeprefix(WRAPPER): ours for part in parts.values() for theirs, ours in part.items()}
