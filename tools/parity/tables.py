"""schedules*.json, param_groups*.json, resolution*.json: every value of every schedule, the multipliers of every
parameter, the crop sizes of every step."""

import json
import math
import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dinoswap.config.command_line import compose_config
from dinoswap.config.schema import construct_option
from dinoswap.layer_decay.layerwise import Layerwise
from dinoswap.nn.projection_head import ProjectionHead
from dinoswap.nn.vit import LEARNED, VisionTransformer
from dinoswap.nn.weights.dinov3 import released_position
from dinoswap.optim.param_groups import parameter_groups
from dinoswap.optim.schedules import Schedule, cosine, scaled_lr
from dinoswap.resolution.mixed import MixedResolution
from dinoswap.weight_decay.all_groups import AllGroups
from parity.rows import EXACT, SCHEDULE, Row, Scenarios, compare, plain_name

SCHEDULES = ("lr", "last_layer_lr", "weight_decay", "momentum", "teacher_temp")
OFFICIAL_NAME = {"weight_decay": "wd"}


def cosine_section(config: dict[str, Any], lr: float, scaling: str) -> dict[str, Any]:
    """An official configuration's optim and teacher sections as our section `schedule`; what they do not speak of is
    that of `preset=official`."""
    optim, teacher, epoch = config["optim"], config["teacher"], int(config["OFFICIAL_EPOCH_LENGTH"])
    theirs = {
        "base_lr": lr,
        "lr_scaling": scaling,
        "min_lr": optim["min_lr"],
        "warmup": int(optim["warmup_epochs"] * epoch),
        "freeze_last_layer": int(optim["freeze_last_layer_epochs"] * epoch),
        "weight_decay": optim["weight_decay"],
        "weight_decay_end": optim["weight_decay_end"],
        "momentum": teacher["momentum_teacher"],
        "momentum_end": teacher["final_momentum_teacher"],
        "teacher_temp_start": teacher["warmup_teacher_temp"],
        "teacher_temp": teacher["teacher_temp"],
        "teacher_temp_warmup": int(teacher["warmup_teacher_temp_epochs"] * epoch),
    }
    return compose_config(["preset=official"])["schedule"] | theirs


def schedule_scenarios(path: Path) -> Scenarios:
    content = json.loads(path.read_text())
    cases = {name: case for name, case in content.items() if isinstance(case, dict) and "dinov3" not in name}
    named_checks: Scenarios = {}
    for name, case in cases.items():
        if "config" in case:
            named_checks[name] = partial(check_schedules, case)
        elif "schedule" in case:
            named_checks[name] = partial(check_cosine, case)
        elif name.endswith("lr_scaling"):
            named_checks[name] = partial(check_scaling, case)
    return named_checks


def check_schedules(case: dict[str, Any]) -> Iterator[Row]:
    config = case["config"]
    schedule = construct_option(cosine_section(config, config["optim"]["base_lr"], "sqrt_1024"), "schedule")
    schedules = schedule.schedules(
        int(config["optim"]["epochs"] * config["OFFICIAL_EPOCH_LENGTH"]),
        batch_size=config["batch_size_per_gpu"] * config["world_size"],
    )
    for name in SCHEDULES:
        yield compare_schedule(name, schedules[name], case[OFFICIAL_NAME.get(name, name)])


def check_cosine(case: dict[str, Any]) -> Iterator[Row]:
    args = case["args"]
    schedule = cosine(
        args["base_value"],
        args["final_value"],
        args["total_iters"],
        warmup=args.get("warmup_iters", 0),
        start=args.get("start_warmup_value", 0.0),
        frozen=args.get("freeze_iters", 0),
    )
    yield compare_schedule("schedule", schedule, case["schedule"])


def compare_schedule(name: str, schedule: Schedule, theirs: list[float]) -> Row:
    return compare(name, [schedule[step] for step in range(len(theirs))], theirs, SCHEDULE, scale=1.0)


def check_scaling(case: dict[str, float]) -> Iterator[Row]:
    """Batch size -> lr; the base is the lr at 1024."""
    base = case.get("1024", 0.004)
    ours = [scaled_lr(base, int(batch), "sqrt_1024") for batch in case]
    yield compare("lr", ours, list(case.values()), SCHEDULE)


def group_scenarios(path: Path) -> Scenarios:
    content = json.loads(path.read_text())
    cases = {name: case for name, case in content.items() if isinstance(case, dict) and "params" in case}
    return {name: partial(check_groups, case) for name, case in cases.items() if "dinov3" not in name}


def dinov3_group_scenarios(path: Path) -> Scenarios:
    content = json.loads(path.read_text())
    cases = {name: case for name, case in content.items() if isinstance(case, dict) and "params" in case}
    return {name: partial(check_groups, with_our_names(case), rotary=True) for name, case in cases.items()}


def with_our_names(case: dict[str, Any]) -> dict[str, Any]:
    """A case of DINOv3 by our names. Both halves of a SwiGLU, which we have in one, have to agree."""
    params: dict[str, dict[str, Any]] = {}
    for name, fields in case["params"].items():
        ours = re.sub(r"\.mlp\.w[12]\.", ".mlp.w12.", name.replace("storage_tokens", "register_tokens"))
        if params.setdefault(ours, fields) != fields:
            raise ValueError(f"{name}: {fields}, but its other half {params[ours]}; ours cannot differ in this")
    return {**case, "params": params}


def check_groups(case: dict[str, Any], rotary: bool = False) -> Iterator[Row]:
    """The case lists some or all of a student's parameters; a student that has them is built without memory."""
    settings = case["settings"]
    listed = {plain_name(name): fields for name, fields in case["params"].items()}
    student = student_with({name: fields.get("shape") for name, fields in listed.items()}, settings, rotary)
    decay = Layerwise(rate=settings["layerwise_decay"], patch_embed_lr_mult=settings["patch_embed_lr_mult"])
    groups = parameter_groups(student, decay, AllGroups())
    ours = {name: group for group in groups for name in group["names"]}
    missing = sorted(set(listed) - set(ours))
    yield compare(f"{len(listed)} parameters, missing {missing[:3]}" if missing else "missing", len(missing), 0, EXACT)
    for field in ("lr_multiplier", "wd_multiplier", "is_last_layer"):
        known = [name for name in listed if name in ours]
        pairs = ([ours[name][field] for name in known], [listed[name][field] for name in known])
        yield compare(f"{field} of {len(known)} parameters", *pairs, EXACT)


def student_with(shapes: dict[str, list[int]], settings: dict[str, Any], rotary: bool = False) -> nn.ModuleDict:
    """Backbone and heads as the listed shapes have them; the published ViT-S/14's where none is listed. A `rotary` one
    is DINOv3's, whose biases are listed where there are any."""
    norms = [shape for name, shape in shapes.items() if name.endswith(("norm1.weight", "proj.bias"))]
    dim = norms[0][0] if norms else 384
    patch = shapes.get("backbone.patch_embed.proj.weight", [dim, 3, 14, 14])[-1]
    side = math.isqrt(shapes.get("backbone.pos_embed", [1, 257, dim])[1] - 1)
    with torch.device("meta"):
        student = nn.ModuleDict({"backbone": VisionTransformer(
            img_size=side * patch,
            patch_size=patch,
            embed_dim=dim,
            depth=settings.get("depth", 12),
            num_heads=1,
            ffn="swiglu" if any(".w12." in name for name in shapes) else "mlp",
            registers=shapes.get("backbone.register_tokens", [1, 0])[1],
            position=released_position() if rotary else LEARNED,
            qkv_bias=not rotary or any(name.endswith(".attn.qkv.bias") for name in shapes),
            cls_norm="backbone.cls_norm.weight" in shapes,
            local_cls_norm="backbone.local_cls_norm.weight" in shapes,
        )})  # fmt: skip
        for head in ("dino_head", "ibot_head"):
            last = next((n for n in (f"{head}.last_layer.weight_v", f"{head}.last_layer.weight") if n in shapes), None)
            if last:
                prototypes, bottleneck = shapes[last]
                hidden = shapes.get(f"{head}.mlp.0.weight", [1])[0]
                layers = sum(name.startswith(f"{head}.mlp.") and name.endswith(".bias") for name in shapes)
                student[head] = ProjectionHead(
                    dim,
                    prototypes=prototypes,
                    hidden_dim=hidden,
                    bottleneck_dim=bottleneck,
                    layers=layers,
                    train_weight_g=True,
                    weight_norm=last.endswith("_v"),
                )
    return student


def resolution_scenarios(path: Path) -> Scenarios:
    content = json.loads(path.read_text())
    return {
        name: partial(check_resolution, case)
        for name, case in content.items()
        if isinstance(case, dict) and "indices" in case
    }


def check_resolution(case: dict[str, Any]) -> Iterator[Row]:
    """Which entry each step has, in a run of whatever seed."""
    ratios, theirs = case["ratios"], case["indices"]
    sizes = list(range(1, len(ratios) + 1))
    option = MixedResolution(global_sizes=sizes, local_sizes=None, ratios=ratios, seed=case["seed"])
    for seed in (0, 1):
        yield compare(f"indices, seed {seed}", [option.index(seed, step) for step in range(len(theirs))], theirs, EXACT)
