"""Run our code on a folder of parity fixtures and compare number by number.

    python tools/check_parity.py official --dir tests/parity/official
    python tools/check_parity.py masks    --dir tests/parity/official

`official` runs every training scenario of every train_step*.npz there through the trainer's own step: losses, target
probabilities, gradient norms before clipping, clip norms, schedules, parameter groups, weights of student and teacher
after the steps that the file holds. `masks` compares draws, collate and generator state bit for bit. --scenario and
--name pick one scenario, one file. Exit status 1 when a quantity is out of tolerance, 2 when there is nothing to compare.
"""

import argparse
import json
import random
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from dinoswap.forward.unified import Unified
from dinoswap.layer_decay.layerwise import Layerwise
from dinoswap.masking.batch_policy import generate_block_masks
from dinoswap.masking.block import BlockMaskGenerator
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
from dinoswap.schedules import ScheduleSettings, build_schedules
from dinoswap.targets.centering import Centering
from dinoswap.targets.sinkhorn import SinkhornKnopp
from dinoswap.trainer import Trainer
from dinoswap.values import Batch
from dinoswap.weight_decay.all_groups import AllGroups

EXACT = 0.0
SCHEDULE = 1e-15
LOSS = {torch.float32: 2e-6, torch.float64: 1e-6}  # relative to max(1, |value|)
NORM = {torch.float32: 2e-5, torch.float64: 1e-6}  # relative to max(1e-2, |value|)
WEIGHT = {torch.float32: 2e-6, torch.float64: 1e-6}  # absolute; the float64 runs keep a float32 Sinkhorn
RESOLUTION = 16 * torch.finfo(torch.float32).eps
"""Entries of a gradient below this share of its tensor's largest are rounding noise in float32, of which Adam makes steps
of the size of the learning rate. They say nothing, and are left out of float32 weights; float64 runs compare every one."""


@dataclass
class Row:
    """One compared quantity. `tolerance` bounds `error`: absolute, or relative to `scale` where that is given."""

    name: str
    absolute: float
    relative: float
    error: float
    tolerance: float

    @property
    def passed(self) -> bool:
        return self.error <= self.tolerance  # false for NaN


def compare(name: str, ours: Any, theirs: Any, tolerance: float, scale: float | None = None) -> Row:
    """Largest difference of two arrays. With `scale` the error is relative to max(scale, |theirs|)."""
    a, b = (np.asarray(x.detach() if isinstance(x, Tensor) else x, dtype=np.float64) for x in (ours, theirs))
    if a.shape != b.shape:
        return Row(f"{name} (shapes {a.shape}, {b.shape})", np.inf, np.inf, np.inf, tolerance)
    if a.size == 0:
        return Row(name, 0.0, 0.0, 0.0, tolerance)
    difference = np.abs(a - b)
    relative = float((difference / np.maximum(np.abs(b), 1e-12)).max())
    error = difference if scale is None else difference / np.maximum(np.abs(b), scale)
    return Row(name, float(difference.max()), relative, float(error.max()), tolerance)


# --- a training scenario ------------------------------------------------------------------------------------------------


class TrainStepFile:
    """One train_step*.npz. What it leaves out (initial weights, batches, meta data of a float64 twin) is in another file
    of the folder, as the fixtures' README says."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.stores = [np.load(p, allow_pickle=False) for p in self._family(path)]
        metas = [json.loads(str(store["meta_json"])) for store in self.stores]
        self.meta = next((m for m in metas if "configs" in m), metas[0])
        self.own = set(self.stores[0].files)
        self.dtype = torch.float64 if path.stem.endswith("_f64") else torch.float32

    @staticmethod
    def _family(path: Path) -> list[Path]:
        base = path.with_name(path.name.replace("_f64", ""))
        return list(dict.fromkeys(p for p in (path, base, *sorted(path.parent.glob("train_step*.npz"))) if p.exists()))

    @property
    def scenarios(self) -> list[str]:
        return sorted({key.split("/")[0] for key in self.own if re.match(r".+/it\d+/", key)})

    def get(self, key: str) -> Tensor | None:
        for store in self.stores:
            if key in store.files:
                return torch.from_numpy(np.asarray(store[key]))
        return None

    def floats(self, key: str) -> Tensor:
        value = self.get(key)
        if value is None:
            raise KeyError(key)
        return value.float().to(self.dtype)

    def initial_weights(self, scenario: str, network: str) -> dict[str, Tensor]:
        """The scenario's own, else those of the scenario that stores them for all."""
        for pattern in (f"{scenario}/init/{network}/", f"init/{network}/", rf"[^/]+/init/{network}/"):
            for store in self.stores:
                found = [k for k in store.files if re.match(pattern, k)]
                if found:
                    return {k.split(f"init/{network}/")[1]: torch.from_numpy(store[k]).to(self.dtype) for k in found}
        raise ValueError(f"{self.path}: no initial weights of the {network} for {scenario}")

    def batch(self, iteration: int) -> Batch:
        """Crops are stored as [2 B, ...] and [L B, ...], crop-major."""
        crops, local = (self.floats(f"batch{iteration}/collated_{k}_crops") for k in ("global", "local"))
        masks = self.get(f"batch{iteration}/collated_masks")
        indices = self.get(f"batch{iteration}/mask_indices_list")
        assert masks is not None and indices is not None
        images = crops.shape[0] // 2
        return Batch(
            global_crops=crops.unflatten(0, (2, images)),
            local_crops=local.unflatten(0, (-1, images)),
            extra_crops=crops[:0].unflatten(0, (0, images)),
            clean_crops=crops[:0].unflatten(0, (0, images)),
            mask=masks.unflatten(0, (2, images)),
            masked_indices=indices,
            indices=torch.arange(images),
        )


def build_model(file: TrainStepFile, scenario: str, config: dict[str, Any]) -> SelfDistillation:
    """Our classes put together as the official configuration says."""
    weights = file.initial_weights(scenario, "student")
    student_cfg, separate = config["student"], config["ibot"]["separate_head"]
    width, heads = weights["backbone.cls_token"].shape[-1], re.search(r"heads (\d+)", file.meta["arch"])
    if heads is None:
        raise ValueError(f"{file.path}: its meta data do not give the number of attention heads")
    blocks = {int(m[1]) for k in weights if (m := re.match(r"backbone\.blocks\.(?:\d+\.)?(\d+)\.", k))}
    student: dict[str, torch.nn.Module] = {
        "backbone": VisionTransformer(
            img_size=config["crops"]["global_crops_size"],
            patch_size=student_cfg["patch_size"],
            embed_dim=width,
            depth=len(blocks),
            num_heads=int(heads[1]),
            ffn="mlp" if student_cfg["ffn_layer"] == "mlp" else "swiglu",
            registers=student_cfg["num_register_tokens"],
            layerscale=student_cfg["layerscale"],
            drop_path=student_cfg["drop_path_rate"],
            drop_path_uniform=student_cfg["drop_path_uniform"],
            interpolate_offset=student_cfg["interpolate_offset"],
            interpolate_antialias=student_cfg["interpolate_antialias"],
            qkv_bias=student_cfg["qkv_bias"],
        )
    }
    head_names = {"dino": "dino_head", "ibot": "ibot_head" if separate else "dino_head"}
    for section, name in head_names.items():
        cfg = config[section]
        student.setdefault(
            name,
            ProjectionHead(
                width, cfg["head_n_prototypes"], cfg["head_hidden_dim"], cfg["head_bottleneck_dim"], cfg["head_nlayers"]
            ),
        )

    def targets(head: str) -> torch.nn.Module:
        if config["train"]["centering"] == "centering":
            return Centering(student[head].last_layer.weight_g.shape[0])
        return SinkhornKnopp(3)

    objectives: dict[str, Objective] = {
        "dino": DINO(targets(head_names["dino"]), head_names["dino"], config["dino"]["loss_weight"]),
        "koleo": KoLeo(config["dino"]["koleo_loss_weight"]),
        "ibot": IBOT(targets(head_names["ibot"]), PerSample(), head_names["ibot"], config["ibot"]["loss_weight"]),
    }
    model = SelfDistillation(student, objectives, Unified()).to(file.dtype)
    for network in ("student", "teacher"):
        stored = file.initial_weights(scenario, network)
        wanted = getattr(model, network).state_dict()
        getattr(model, network).load_state_dict({k: v for k, v in stored.items() if k in wanted})
    return model


def build_trainer(file: TrainStepFile, scenario: str, config: dict[str, Any]) -> Trainer:
    optim, teacher, epoch = config["optim"], config["teacher"], config["train"]["OFFICIAL_EPOCH_LENGTH"]
    settings = ScheduleSettings(
        base_lr=optim["lr"],  # scaled already
        lr_scaling="none",
        min_lr=optim["min_lr"],
        warmup=optim["warmup_epochs"] * epoch,
        freeze_last_layer=optim["freeze_last_layer_epochs"] * epoch,
        weight_decay=optim["weight_decay"],
        weight_decay_end=optim["weight_decay_end"],
        momentum=teacher["momentum_teacher"],
        momentum_end=teacher["final_momentum_teacher"],
        teacher_temp_start=teacher["warmup_teacher_temp"],
        teacher_temp=teacher["teacher_temp"],
        teacher_temp_warmup=teacher["warmup_teacher_temp_epochs"] * epoch,
    )
    schedules = build_schedules(
        settings, total=optim["epochs"] * epoch, batch_size=config["train"]["batch_size_per_gpu"]
    )
    model = build_model(file, scenario, config)
    decay = Layerwise(optim["layerwise_decay"], optim["patch_embed_lr_mult"])
    groups = parameter_groups(model.student, decay, AllGroups())
    betas = (optim["adamw_beta1"], optim["adamw_beta2"])
    return Trainer(
        model,
        torch.optim.AdamW(groups, betas=betas, fused=True),
        schedules,
        ClipPerModule(optim["clip_grad"]),
        precision="fp32",
        seed=0,
        device=torch.device("cpu"),
        max_nonfinite_steps=1,
    )


class Recorder:
    """What a step computes and does not return: target distributions, and each gradient before clipping."""

    def __init__(self, trainer: Trainer) -> None:
        self.targets: dict[str, Tensor] = {}
        self.norms: dict[str, Tensor] = {}
        self.resolved: dict[str, Tensor] = {}
        self.dtype = next(trainer.model.parameters()).dtype
        self._clip, trainer.clip = trainer.clip, self.clip
        for name in ("dino", "ibot"):
            trainer.model.objectives[name].targets.register_forward_hook(partial(self._keep_targets, name))

    def _keep_targets(self, name: str, module: torch.nn.Module, inputs: object, output: Tensor) -> None:
        self.targets[name] = output

    def clip(self, groups: list[dict[str, Any]]) -> dict[str, Tensor]:
        for group in groups:
            for name, parameter in zip(group["names"], group["params"], strict=True):
                size = parameter.grad.abs()
                self.norms[name] = torch.linalg.vector_norm(parameter.grad)
                usable = size >= RESOLUTION * size.max() if self.dtype == torch.float32 else size >= 0
                if name.endswith("attn.qkv.bias"):  # the softmax does not see the keys' bias: its true gradient is 0
                    usable[usable.shape[0] // 3 : 2 * usable.shape[0] // 3] = False
                self.resolved[name] = self.resolved.get(name, True) & usable
        return self._clip(groups)


def check_scenario(file: TrainStepFile, scenario: str) -> Iterator[Row]:
    config = file.meta["configs"][scenario]
    trainer = build_trainer(file, scenario, config)
    prefix = f"{file.path.stem}:{scenario}"
    yield from check_groups(prefix, trainer, file.meta.get("optimizer_groups", {}).get(scenario, []))
    recorder = Recorder(trainer)
    iterations = sorted({int(m[1]) for k in file.own if (m := re.match(rf"{re.escape(scenario)}/it(\d+)/", k))})
    for iteration in iterations:
        logs = trainer.step(iteration, [file.batch(iteration)])
        at = f"{scenario}/it{iteration}"
        yield from check_iteration(file, f"{prefix}/it{iteration}", at, logs, recorder)
        yield from check_schedules(file, prefix, scenario, iteration, trainer)
        yield from check_weights(file, f"{prefix}/after{iteration + 1}", f"{scenario}/after{iteration + 1}", trainer, recorder)


def check_iteration(
    file: TrainStepFile, label: str, at: str, logs: dict[str, Tensor], recorder: Recorder
) -> Iterator[Row]:
    images = file.batch(int(at.rsplit("it", 1)[1])).images
    # the official log halves KoLeo and iBOT
    terms = {
        "loss_dict/dino_local_crops_loss": logs.get("dino/local", torch.zeros(())),
        "loss_dict/dino_global_crops_loss": logs["dino/global"],
        "loss_dict/koleo_loss": logs["koleo/cls"] * file.meta["configs"][at.split("/")[0]]["dino"]["koleo_loss_weight"] / 2,
        "loss_dict/ibot_loss": logs["ibot/masked"] / 2,
        "total_loss": logs["loss"],
    }
    for key, ours in terms.items():
        theirs = file.get(f"{at}/{key}")
        if theirs is not None and f"{at}/{key}" in file.own:
            yield compare(f"{label}/{key}", ours, theirs, LOSS[file.dtype], scale=1.0)
    for name, key in (("dino", "dino_teacher_probs"), ("ibot", "ibot_teacher_probs")):
        if f"{at}/{key}" not in file.own:
            continue
        ours = recorder.targets[name]
        if name == "dino":  # stored with the two crops swapped, in the order of the student rows they are paired with
            ours = ours.unflatten(0, (2, images)).flip(0).flatten(0, 1)
        theirs = file.floats(f"{at}/{key}").reshape(-1, ours.shape[-1])
        yield compare(f"{label}/{key}", ours, theirs, LOSS[torch.float32], scale=1.0)
    compared = [
        compare(name, norm, file.get(f"{at}/grad_norm/{name}"), NORM[file.dtype], scale=1e-2)
        for name, norm in recorder.norms.items()
        if f"{at}/grad_norm/{name}" in file.own
    ]
    if compared:
        worst = max(compared, key=lambda row: row.error)
        yield replace(worst, name=f"{label}/grad_norm of {len(compared)} tensors ({worst.name})")
    for key in sorted(k for k in file.own if k.startswith(f"{at}/clip_total_norm/")):
        ours = logs[f"grad_norm/{key.rsplit('/', 1)[1]}"]
        yield compare(f"{label}/clip_total_norm/{key.rsplit('/', 1)[1]}", ours, file.get(key), NORM[file.dtype], scale=1e-2)


def check_schedules(file: TrainStepFile, label: str, scenario: str, iteration: int, trainer: Trainer) -> Iterator[Row]:
    hyper = trainer.schedules.at(iteration)
    for ours, theirs in (("lr", "lr"), ("last_layer_lr", "last_layer_lr"), ("weight_decay", "wd"),
                         ("teacher_temp", "teacher_temp"), ("momentum", "momentum")):  # fmt: skip
        stored = file.get(f"{scenario}/sched/{theirs}")
        if stored is not None:
            yield compare(f"{label}/it{iteration}/{theirs}", hyper[ours], stored[iteration], SCHEDULE)


def check_weights(file: TrainStepFile, label: str, at: str, trainer: Trainer, recorder: Recorder) -> Iterator[Row]:
    for network in ("student", "teacher"):
        rows, compared, total = [], 0, 0
        for name, weight in getattr(trainer.model, network).state_dict().items():
            if f"{at}/{network}/{name}" not in file.own:
                continue
            usable = recorder.resolved[name]
            theirs = file.floats(f"{at}/{network}/{name}")
            rows.append(compare(name, weight[usable], theirs[usable], WEIGHT[file.dtype]))
            compared, total = compared + int(usable.sum()), total + usable.numel()
        if rows:
            worst = max(rows, key=lambda row: row.error)
            yield replace(worst, name=f"{label}/{network}: {compared} of {total} weights ({worst.name})")


def check_groups(label: str, trainer: Trainer, official: list[dict[str, Any]]) -> Iterator[Row]:
    """Multipliers of each parameter, exactly."""
    fields = ("lr_multiplier", "wd_multiplier", "is_last_layer")

    def table(groups: list[dict[str, Any]]) -> dict[str, tuple[Any, ...]]:
        return {name: tuple(group[f] for f in fields) for group in groups for name in group["names"]}

    if official:
        ours, theirs = table(trainer.optimizer.param_groups), table(official)
        differing = sum(ours.get(name) != theirs.get(name) for name in ours | theirs)
        yield compare(f"{label}/parameter groups, {len(theirs)} parameters, differing", differing, 0, EXACT)


# --- masks --------------------------------------------------------------------------------------------------------------


def to_hex(mask: np.ndarray) -> str:
    return np.packbits(mask.flatten()).tobytes().hex()


def check_masks(content: dict[str, Any], label: str) -> Iterator[Row]:
    """Draws and collate of every version of the generator that we have."""
    for grid, case in content.get("exact_draws", {}).get("dinov2", {}).items():
        generator = BlockMaskGenerator(tuple(case["grid"]), case["max_num_patches"])
        wrong, states = 0, 0
        for draw in case["draws"]:
            rng = random.Random(draw["seed"])
            masks = [to_hex(generator(target, rng)) for target in case["targets"]]
            wrong += sum(a != b for a, b in zip(masks, draw["masks"], strict=True))
            states += rng.random() != draw["next_random_random"]
        yield compare(f"{label}/draws {grid}: masks that differ", wrong, 0, EXACT)
        yield compare(f"{label}/draws {grid}: generator states that differ", states, 0, EXACT)
    for number, case in enumerate(c for c in content.get("collate", []) if c["version"] == "dinov2"):
        yield from check_collate(case, f"{label}/collate {number}")


def check_collate(case: dict[str, Any], label: str) -> Iterator[Row]:
    grid, rng = tuple(case["grid"]), random.Random(case["seed"])
    patches = grid[0] * grid[1]
    generator = BlockMaskGenerator(grid, case["max_num_patches"])
    masks = generate_block_masks(
        generator, 2 * case["n_images"], patches, probability=case["mask_probability"],
        ratio_min_max=tuple(case["mask_ratio"]), rng=rng,
    )  # fmt: skip
    yield compare(f"{label}: masks that differ", sum(to_hex(m) != t for m, t in zip(masks, case["masks"], strict=True)), 0, EXACT)
    indices = np.flatnonzero(masks)
    yield compare(f"{label}: mask_indices_list", indices, case["mask_indices_list"], EXACT)
    # masks_weight is what PerSample multiplies each token's loss with, times the number of crops
    losses = torch.zeros(len(indices), requires_grad=True)
    mask = torch.from_numpy(masks).unflatten(0, (2, -1))
    PerSample()(losses, mask, torch.from_numpy(indices)).backward()
    assert losses.grad is not None
    yield compare(f"{label}: masks_weight", losses.grad * len(masks), case["masks_weight"], 1e-7)
    yield compare(f"{label}: generator state", rng.random(), case["next_random_random"], EXACT)


# --- command line -------------------------------------------------------------------------------------------------------


def rows_of(arguments: argparse.Namespace) -> Iterator[Row]:
    folder: Path = arguments.dir
    if arguments.kind == "masks":
        for path in sorted(folder.glob("mask*.json")):
            if arguments.name in (None, path.stem):
                yield from check_masks(json.loads(path.read_text()), path.stem)
        return
    for path in sorted(folder.glob("train_step_dinov2*.npz")):
        if arguments.name not in (None, path.stem):
            continue
        file = TrainStepFile(path)
        for scenario in file.scenarios:
            if arguments.scenario in (None, scenario):
                yield from check_scenario(file, scenario)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=["official", "masks"])
    parser.add_argument("--dir", type=Path, required=True, help="a folder of fixtures")
    parser.add_argument("--scenario", help="only this training scenario")
    parser.add_argument("--name", help="only this file (its name without the ending)")
    arguments = parser.parse_args()
    torch.use_deterministic_algorithms(True)
    rows = list(rows_of(arguments))
    if not rows:
        print(f"check_parity: no fixture of kind '{arguments.kind}' matches in {arguments.dir}", file=sys.stderr)
        return 2
    table = Table("quantity", "max abs", "max rel", "error", "tolerance", "verdict")
    for row in rows:
        verdict = "ok" if row.passed else "FAIL"
        table.add_row(row.name, *(f"{v:.1e}" for v in (row.absolute, row.relative, row.error, row.tolerance)), verdict)
    Console(width=180 if not sys.stdout.isatty() else None).print(table)
    failed = [row for row in rows if not row.passed]
    worst = max(rows, key=lambda row: row.error / row.tolerance if row.tolerance else row.error)
    print(f"parity: {len(rows)} quantities, worst {worst.error:.1e}, {'FAIL' if failed else 'PASS'}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
