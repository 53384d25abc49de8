"""train_step_dinov2*.npz: the official training step, run through the trainer's own.

Per scenario: parameter groups, then for each iteration losses, target probabilities, centres, gradients before clipping and
their norms, clip norms, schedules, and after it the weights of student and teacher and the optimiser's moments: all that
the file holds.
"""

import re
from collections.abc import Iterator
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dinoswap.forward.unified import Unified
from dinoswap.layer_decay.layerwise import Layerwise
from dinoswap.model import SelfDistillation
from dinoswap.nn.projection_head import ProjectionHead
from dinoswap.nn.vit import VisionTransformer
from dinoswap.objectives.base import Objective
from dinoswap.objectives.dino import DINO
from dinoswap.objectives.ibot import IBOT
from dinoswap.objectives.koleo import KoLeo
from dinoswap.optim.clip import ClipPerModule
from dinoswap.optim.param_groups import parameter_groups
from dinoswap.reduction.per_sample import PerSample
from dinoswap.schedules import build_schedules
from dinoswap.targets.centering import Centering
from dinoswap.targets.sinkhorn import SinkhornKnopp
from dinoswap.trainer import Trainer
from dinoswap.values import Batch
from dinoswap.weight_decay.all_groups import AllGroups
from parity.rows import EXACT, SCHEDULE, Fixture, Row, Scenarios, compare, compare_gradient, plain_name, worst_of
from parity.tables import schedule_settings

LOSS = {torch.float32: 2e-6, torch.float64: 1e-6}  # relative to max(1, |value|)
NORM = {torch.float32: 2e-5, torch.float64: 1e-6}  # relative to max(1e-2, |value|), or to the tensor's largest entry
WEIGHT = {torch.float32: 2e-6, torch.float64: 1e-6}  # absolute; the float64 runs keep a float32 Sinkhorn
PROBABILITY = 2e-6
RESOLUTION = 16 * torch.finfo(torch.float32).eps
"""Entries of a gradient below this share of its tensor's largest are rounding noise in float32, of which Adam makes steps
of the size of the learning rate. They say nothing, and are left out of float32 weights; float64 runs compare every one."""
SCHEDULES = {
    "lr": "lr",
    "last_layer_lr": "last_layer_lr",
    "weight_decay": "wd",
    "teacher_temp": "teacher_temp",
    "momentum": "momentum",
}
MOMENTS = {"adam_m": "exp_avg", "adam_v": "exp_avg_sq", "adam_step": "step"}


class TrainStepFile:
    """One train_step*.npz. What it leaves out (initial weights, batches, meta data of a float64 twin) is in another file
    of the folder, as the fixtures' README says."""

    def __init__(self, path: Path) -> None:
        base = path.with_name(path.name.replace("_f64", ""))
        family = dict.fromkeys(p for p in (path, base, *sorted(path.parent.glob("train_step*.npz"))) if p.exists())
        self.path = path
        self.stores = [Fixture(p) for p in family]
        self.own = set(self.stores[0].file.files)
        self.dtype = torch.float64 if path.stem.endswith("_f64") else torch.float32

    @cached_property
    def meta(self) -> dict[str, Any]:
        return next((store.meta for store in self.stores if "configs" in store.meta), self.stores[0].meta)

    @property
    def scenarios(self) -> list[str]:
        return sorted({key.split("/")[0] for key in self.own if re.match(r".+/it\d+/", key)})

    def __getitem__(self, key: str) -> Tensor:
        """From the file itself, else from the first of its family."""
        store = next((store for store in self.stores if key in store), None)
        if store is None:
            raise ValueError(f"{self.path}: neither this file nor one beside it has {key}")
        return store[key]

    def below(self, prefix: str) -> dict[str, Tensor]:
        """What this very file holds under a prefix, by plain parameter name."""
        return {plain_name(k): v for k, v in self.stores[0].below(prefix).items()}

    def initial_weights(self, scenario: str, network: str) -> dict[str, Tensor]:
        """The scenario's own, else those of the scenario that stores them for all."""
        for pattern in (f"{re.escape(scenario)}/init/{network}/", f"init/{network}/", rf"[^/]+/init/{network}/"):
            for store in self.stores:
                prefixes = [m[0] for k in store.file.files if (m := re.match(pattern, k))]
                if prefixes:
                    return {plain_name(k): v.to(self.dtype) for k, v in store.below(prefixes[0]).items()}
        raise ValueError(f"{self.path}: no initial weights of the {network} for {scenario}")

    def batch(self, scenario: str, iteration: int) -> Batch:
        """The scenario's own or the one that all share. Crops are stored as [2 B, ...] and [L B, ...], crop-major."""
        own = f"{scenario}/batch{iteration}"
        at = own if f"{own}/collated_masks" in self.own else f"batch{iteration}"
        crops, local = (self[f"{at}/collated_{kind}_crops"].to(self.dtype) for kind in ("global", "local"))
        images = crops.shape[0] // 2
        return Batch(
            global_crops=crops.unflatten(0, (2, images)),
            local_crops=local.unflatten(0, (-1, images)),
            extra_crops=crops[:0].unflatten(0, (0, images)),
            clean_crops=crops[:0].unflatten(0, (0, images)),
            mask=self[f"{at}/collated_masks"].unflatten(0, (2, images)),
            masked_indices=self[f"{at}/mask_indices_list"],
            indices=torch.arange(images),
        )


def scenarios(path: Path) -> Scenarios:
    file = TrainStepFile(path)
    return {name: partial(check_scenario, file, name) for name in file.scenarios}


# --- our classes, put together as the official configuration says -----------------------------------------------------


def build_backbone(file: TrainStepFile, scenario: str, config: dict[str, Any]) -> VisionTransformer:
    """Width and depth are read off the weights, the number of heads off the meta data."""
    weights, student = file.initial_weights(scenario, "student"), config["student"]
    heads = re.search(r"heads (\d+)", file.meta["arch"])
    if heads is None:
        raise ValueError(f"{file.path}: its meta data do not give the number of attention heads")
    return VisionTransformer(
        img_size=config["crops"]["global_crops_size"],
        patch_size=student["patch_size"],
        embed_dim=weights["backbone.cls_token"].shape[-1],
        depth=len({m[1] for name in weights if (m := re.match(r"backbone\.blocks\.(\d+)\.", name))}),
        num_heads=int(heads[1]),
        ffn="mlp" if student["ffn_layer"] == "mlp" else "swiglu",
        registers=student["num_register_tokens"],
        layerscale=student["layerscale"],
        drop_path=student["drop_path_rate"],
        drop_path_uniform=student["drop_path_uniform"],
        interpolate_offset=student["interpolate_offset"],
        interpolate_antialias=student["interpolate_antialias"],
        qkv_bias=student["qkv_bias"],
    )


def build_model(file: TrainStepFile, scenario: str, config: dict[str, Any]) -> SelfDistillation:
    """An objective of weight 0 does not exist, as in the official code."""
    backbone, dino, ibot = build_backbone(file, scenario, config), config["dino"], config["ibot"]
    student: dict[str, nn.Module] = {"backbone": backbone}

    def head(name: str, section: dict[str, Any]) -> str:
        sizes = (section[f"head_{key}"] for key in ("n_prototypes", "hidden_dim", "bottleneck_dim", "nlayers"))
        if name not in student:
            student[name] = ProjectionHead(backbone.embed_dim, *sizes)
        return name

    def targets(name: str) -> nn.Module:
        if config["train"]["centering"] == "centering":
            return Centering(student[name].get_parameter("last_layer.weight_g").shape[0])
        return SinkhornKnopp(3)

    objectives: dict[str, Objective] = {}
    if dino["loss_weight"]:
        name = head("dino_head", dino)
        objectives["dino"] = DINO(targets(name), name, dino["loss_weight"])
        if dino["koleo_loss_weight"]:
            objectives["koleo"] = KoLeo(dino["koleo_loss_weight"])
    if ibot["loss_weight"]:
        name = head("ibot_head", ibot) if ibot["separate_head"] else head("dino_head", dino)
        objectives["ibot"] = IBOT(targets(name), PerSample(), name, ibot["loss_weight"])
    model = SelfDistillation(student, objectives, Unified()).to(file.dtype)
    for network in ("student", "teacher"):
        wanted = getattr(model, network).state_dict()
        stored = file.initial_weights(scenario, network)
        getattr(model, network).load_state_dict({k: v for k, v in stored.items() if k in wanted})
    return model


def build_trainer(file: TrainStepFile, scenario: str, config: dict[str, Any]) -> Trainer:
    optim, train = config["optim"], config["train"]
    settings = schedule_settings({**config, **train}, optim["lr"], "none")  # this lr is scaled already
    total = int(optim["epochs"] * train["OFFICIAL_EPOCH_LENGTH"])
    model = build_model(file, scenario, config)
    decay = Layerwise(optim["layerwise_decay"], optim["patch_embed_lr_mult"])
    groups = parameter_groups(model.student, decay, AllGroups())
    betas = (optim["adamw_beta1"], optim["adamw_beta2"])
    return Trainer(
        model,
        torch.optim.AdamW(groups, betas=betas, fused=True),
        build_schedules(settings, total=total, batch_size=train["batch_size_per_gpu"]),
        ClipPerModule(optim["clip_grad"] or None),
        precision="fp32",
        seed=0,
        device=torch.device("cpu"),
        max_nonfinite_steps=1,
    )


class Recorder:
    """What a step computes and does not return: targets, the centres they were made with, gradients before clipping,
    and which of their entries float32 resolves."""

    def __init__(self, trainer: Trainer) -> None:
        self.trainer = trainer
        self.targets: dict[str, Tensor] = {}
        self.centers: dict[str, Tensor] = {}
        self.gradients: dict[str, Tensor] = {}
        self.resolved: dict[str, Tensor] = {}
        self._clip, trainer.clip = trainer.clip, self.clip
        for name, objective in trainer.model.objectives.items():
            if hasattr(objective, "targets"):
                objective.targets.register_forward_pre_hook(partial(self._keep_center, name))
                objective.targets.register_forward_hook(partial(self._keep_targets, name))

    def _keep_center(self, name: str, module: nn.Module, inputs: object) -> None:
        if isinstance(module, Centering):
            self.centers[name] = module.center.clone()

    def _keep_targets(self, name: str, module: nn.Module, inputs: object, output: Tensor) -> None:
        self.targets[name] = output

    def clip(self, groups: list[dict[str, Any]]) -> dict[str, Tensor]:
        for group in groups:
            for name, parameter in zip(group["names"], group["params"], strict=True):
                gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
                self.gradients[name] = gradient.clone()
                self.resolved[name] = self.resolved.get(name, True) & self._resolved(name, gradient.abs())
        return self._clip(groups)

    def _resolved(self, name: str, size: Tensor) -> Tensor:
        if size.dtype == torch.float64:
            return torch.ones_like(size, dtype=torch.bool)
        usable = size >= RESOLUTION * size.max()
        if name.endswith("attn.qkv.bias"):  # the softmax does not see the keys' bias: its true gradient is 0
            usable[usable.shape[0] // 3 : 2 * usable.shape[0] // 3] = False
        return usable


# --- comparing --------------------------------------------------------------------------------------------------------


def check_scenario(file: TrainStepFile, scenario: str) -> Iterator[Row]:
    config = file.meta["configs"].get(scenario)
    if config is None:
        raise ValueError(f"{file.path}: its meta data have no configuration of the scenario {scenario}")
    trainer = build_trainer(file, scenario, config)
    yield from check_groups(trainer, file.meta.get("optimizer_groups", {}).get(scenario, []))
    recorder = Recorder(trainer)
    for iteration in sorted({int(m[1]) for k in file.own if (m := re.match(rf"{re.escape(scenario)}/it(\d+)/", k))}):
        at, batch = f"{scenario}/it{iteration}", file.batch(scenario, iteration)
        logs = trainer.step(iteration, [batch])
        yield from check_losses(file, at, logs, config)
        yield from check_targets(file, at, recorder, batch.images)
        yield from check_gradients(file, at, logs, recorder)
        yield from check_schedules(file, scenario, iteration, trainer)
        yield from check_weights(file, f"{scenario}/after{iteration + 1}", recorder)


def short(at: str) -> str:
    """scenario/it0 -> it0"""
    return at.rsplit("/", 1)[1]


def check_losses(file: TrainStepFile, at: str, logs: dict[str, Tensor], config: dict[str, Any]) -> Iterator[Row]:
    """The official log holds KoLeo weighted and halved, iBOT halved."""
    nothing = torch.zeros(())
    terms = {
        "loss_dict/dino_local_crops_loss": logs.get("dino/local", nothing),
        "loss_dict/dino_global_crops_loss": logs.get("dino/global", nothing),
        "loss_dict/koleo_loss": logs.get("koleo/cls", nothing) * config["dino"]["koleo_loss_weight"] / 2,
        "loss_dict/ibot_loss": logs.get("ibot/masked", nothing) / 2,
        "total_loss": logs["loss"],
    }
    for key, ours in terms.items():
        if f"{at}/{key}" in file.own:
            yield compare(f"{short(at)}/{key}", ours, file[f"{at}/{key}"], LOSS[file.dtype], scale=1.0)


def check_targets(file: TrainStepFile, at: str, recorder: Recorder, images: int) -> Iterator[Row]:
    for name, ours in recorder.targets.items():
        key = f"{at}/{name}_teacher_probs"
        if key in file.own:
            if (
                name == "dino"
            ):  # stored with the two crops swapped, in the order of the student rows they are paired with
                ours = ours.unflatten(0, (2, images)).flip(0).flatten(0, 1)
            theirs = file[key].reshape(-1, ours.shape[-1])
            yield compare(f"{short(at)}/{name}_teacher_probs", ours, theirs, PROBABILITY, scale=1.0)
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


def check_schedules(file: TrainStepFile, scenario: str, iteration: int, trainer: Trainer) -> Iterator[Row]:
    hyper = trainer.schedules.at(iteration)
    for ours, theirs in SCHEDULES.items():
        if f"{scenario}/sched/{theirs}" in file.own:
            value = file[f"{scenario}/sched/{theirs}"][iteration]
            yield compare(f"it{iteration}/{theirs}", hyper[ours], value, SCHEDULE)


def check_weights(file: TrainStepFile, at: str, recorder: Recorder) -> Iterator[Row]:
    """Every weight that is resolved, then the optimiser's moments."""
    trainer = recorder.trainer
    for network in ("student", "teacher"):
        ours, rows, left_out = getattr(trainer.model, network).state_dict(), [], 0
        for name, theirs in file.below(f"{at}/{network}/").items():
            usable = recorder.resolved[name]
            rows.append(compare(name, ours[name][usable], theirs[usable], WEIGHT[file.dtype]))
            left_out += int((~usable).sum())
        yield from worst_of(f"{short(at)}/{network} weights ({left_out} without a resolved gradient)", rows)
    state = {n: trainer.optimizer.state[p] for n, p in trainer.model.student.named_parameters()}
    for theirs_name, ours_name in MOMENTS.items():
        yield from worst_of(f"{short(at)}/{theirs_name}", (
            compare_gradient(name, state[name][ours_name], value, NORM[file.dtype])
            for name, value in file.below(f"{at}/{theirs_name}/").items()
        ))  # fmt: skip


def check_groups(trainer: Trainer, official: list[dict[str, Any]]) -> Iterator[Row]:
    """Multipliers of each parameter, exactly."""
    fields = ("lr_multiplier", "wd_multiplier", "is_last_layer")

    def table(groups: list[dict[str, Any]]) -> dict[str, tuple[Any, ...]]:
        return {plain_name(name): tuple(group[f] for f in fields) for group in groups for name in group["names"]}

    if official:
        ours, theirs = table(trainer.optimizer.param_groups), table(official)
        differing = sum(ours.get(name) != theirs.get(name) for name in ours | theirs)
        yield compare(f"parameter groups, {len(theirs)} parameters: differing", differing, 0, EXACT)
