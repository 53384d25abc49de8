"""optim_legacy*.json: every value of every schedule, and what each parameter's group does to it, exactly.

The settings are those of our legacy preset, with the file's lengths, rates and depths.
"""

import json
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from dinoswap.build import build_objectives, build_schedules, build_student
from dinoswap.layer_decay.layerwise import Layerwise
from dinoswap.layer_decay.uniform import Uniform
from dinoswap.nn.legacy_weights import HEADS
from dinoswap.optim.param_groups import Group, WeightDecay, apply_schedules, parameter_groups
from dinoswap.optim.schedules import Schedules, scaled_lr
from dinoswap.schedule.base import ADAMW_WEIGHT_DECAY
from dinoswap.weight_decay.all_groups import AllGroups
from dinoswap.weight_decay.backbone_only import BackboneOnly
from parity.legacy_run import legacy_config, legacy_overrides, our_names
from parity.legacy_step import PROTOTYPE_LR, SCHEDULES
from parity.rows import EXACT, SCHEDULE, Row, Scenarios, compare

Case = dict[str, Any]
DECAY: dict[str, WeightDecay] = {"67f6a87": BackboneOnly(), "6f23b3b": AllGroups()}
TINY = {"embed_dim": 12, "num_heads": 3, "patch_size": 16}
TINY_HEAD = {"prototypes": 8, "hidden_dim": 8, "bottleneck_dim": 8}


def scenarios(path: Path) -> Scenarios:
    content = json.loads(path.read_text())
    named_checks: Scenarios = {
        name: partial(check_schedules, case) for name, case in content.get("schedules", {}).items()
    }
    for name, case in content.items():
        if name.startswith("groups_"):
            named_checks[name] = partial(check_groups, case)
    if "wd_by_group_over_schedule" in content:
        named_checks["wd_by_group_over_schedule"] = partial(check_decay, content)
    if "lr_scaling" in content:
        named_checks["lr_scaling"] = partial(check_scaling, content["lr_scaling"])
    for name, case in content.get("layer_decay_c3e4786", {}).items():
        named_checks[f"layer_decay_c3e4786 {name}"] = partial(check_layer_decay, case)
    for depth, case in content.get("layer_decay_comparison", {}).items():
        named_checks[f"layer_decay_comparison {depth}"] = partial(check_rows, int(depth), case["rows"])
    return named_checks


def check_schedules(case: Case) -> Iterator[Row]:
    """A warm-up that is longer than the run is refused, where the legacy trainer goes on."""
    config = case["config"]
    if config["warmup_iterations"] > config["total_iterations"]:
        yield compare("refused", is_refused(config), True, EXACT)
        return
    schedules = legacy_schedules(config)
    for name, key in SCHEDULES.items():
        factor = PROTOTYPE_LR if name == "prototype_lr" else 1
        ours = [schedules[name][step] * factor for step in range(len(case[key]))]
        yield compare(key, ours, case[key], SCHEDULE, scale=1.0)


def legacy_schedules(config: Case) -> Schedules:
    images = config["batch_size_per_gpu"] * config["world_size"]
    return build_schedules(legacy_config(*legacy_overrides({**config, "batch_size_per_gpu": images})))


def is_refused(config: Case) -> bool:
    try:
        legacy_schedules(config)
    except ValueError as error:
        return "schedule.warmup" in str(error)
    return False


def check_scaling(case: Case) -> Iterator[Row]:
    """Batch size -> lr, by both rules, whose base is the lr at 256 or at 1024."""
    preset = legacy_config("clustering=none")["schedule"]["lr_scaling"]
    for key, rule, base in (("examples", preset, "256"), ("official_sqrt_rule", "sqrt_1024", "1024")):
        ours = [scaled_lr(case[key][base], int(batch), rule) for batch in case[key]]
        yield compare(f"{key} ({rule})", ours, list(case[key].values()), SCHEDULE)


def legacy_student(depth: int, **head: bool) -> nn.ModuleDict:
    """The preset's networks without clustering, small ones."""
    cfg = legacy_config("clustering=none")
    heads = {name: {**section, **TINY_HEAD, **head} for name, section in cfg["heads"].items()}
    cfg = {**cfg, "model": {**cfg["model"], **TINY, "depth": depth}, "heads": heads}
    return nn.ModuleDict(build_student(cfg, build_objectives(cfg)))


def by_legacy_name(groups: list[Group], student: nn.ModuleDict) -> dict[str, Group]:
    """The group of each parameter that is in one."""
    ours = {name: group for group in groups for name in group["names"]}
    return {theirs: ours[name] for theirs, name in our_names(student).items() if name in ours}


def depth_of(names: Mapping[str, Any]) -> int:
    return len({name.split("blocks.")[1].split(".")[0] for name in names if "blocks." in name})


def check_groups(case: Case) -> Iterator[Row]:
    """Which parameters are in a group, and what their weight decay follows, before and after the fix @ 6f23b3b."""
    theirs = {name: group for group in case["groups"] for name in group["names"]}
    student = legacy_student(depth_of(theirs), train_weight_g=not case["not_in_any_group"])
    everything = our_names(student).keys()
    for commit, decay in DECAY.items():
        ours = by_legacy_name(parameter_groups(student, Uniform(), decay), student)
        differing = sorted(ours.keys() ^ theirs.keys())
        yield compare(f"{commit}: {len(theirs)} parameters in groups, differing {differing}", len(differing), 0, EXACT)
        outside = set(case["not_in_any_group"]) ^ (everything - ours.keys())
        yield compare(f"{commit}: not in any group, differing {sorted(outside)}", len(outside), 0, EXACT)
        wrong = [name for name, group in theirs.items() if follows(ours.get(name)) != group[f"wd_{commit}"]]
        yield compare(f"{commit}: weight decay, differing {wrong}", len(wrong), 0, EXACT)


def follows(group: Group | None) -> str | list[float] | None:
    """'schedule', or the one value that weight decay has; None outside any group."""
    if group is None:
        return None
    if group["wd_multiplier"] == 0:
        return [0.0]
    return "schedule" if group["wd_schedule"] == "weight_decay" else [ADAMW_WEIGHT_DECAY]


def check_decay(content: Case) -> Iterator[Row]:
    """Weight decay of every parameter at every step."""
    case, groups = content["wd_by_group_over_schedule"], content["groups_67f6a87_norm_last_layer_True"]["groups"]
    schedule = content["schedules"][case["schedule"].removeprefix("schedules.")]
    number = {name: number for number, group in enumerate(groups) for name in group["names"]}
    student, schedules = legacy_student(depth_of(number)), legacy_schedules(schedule["config"])
    for commit, decay in DECAY.items():
        theirs = [case[f"at_{commit}"][group] for group in number.values()]  # a row for each parameter
        own, table = parameter_groups(student, Uniform(), decay), []
        ours = by_legacy_name(own, student)
        for step in range(len(theirs[0])):
            apply_schedules(own, schedules.at(step))
            table.append([ours[name]["weight_decay"] for name in number])
        yield compare(f"{commit}: {len(number)} parameters, {len(table)} steps", np.transpose(table), theirs, SCHEDULE)


def check_layer_decay(case: Case) -> Iterator[Row]:
    """The multipliers of each parameter @ c3e4786: the official rule, but for the patch embedding's factor."""
    parts = [("backbone", case["backbone_groups"]), *((head, case["head_groups"]) for head in HEADS)]
    theirs = {f"{part}.{name}": group for part, groups in parts for group in groups for name in group["names"]}
    ours = layerwise_groups(case["depth"], case["rate"], patch_embed_lr_mult=1.0)
    differing = sorted(ours.keys() ^ theirs.keys())
    yield compare(f"{len(theirs)} parameters in groups, differing {differing}", len(differing), 0, EXACT)
    for field in ("lr_multiplier", "wd_multiplier"):
        known = [name for name in theirs if name in ours]
        yield compare(field, [ours[name][field] for name in known], [theirs[name][field] for name in known], EXACT)


def check_rows(depth: int, rows: list[Case]) -> Iterator[Row]:
    """Selected parameters at rate 0.9, by the rule @ c3e4786 and by the official one."""
    for rule, factor in (("legacy_c3e4786", 1.0), ("official_rule", 0.2)):
        groups = layerwise_groups(depth, 0.9, patch_embed_lr_mult=factor)
        ours = [[groups[f"backbone.{row['name']}"][f"{kind}_multiplier"] for kind in ("lr", "wd")] for row in rows]
        yield compare(f"{rule}, {len(rows)} parameters", ours, [row[rule] for row in rows], EXACT)


def layerwise_groups(depth: int, rate: float, patch_embed_lr_mult: float) -> dict[str, Group]:
    student = legacy_student(depth)
    return by_legacy_name(
        parameter_groups(student, Layerwise(rate=rate, patch_embed_lr_mult=patch_embed_lr_mult), AllGroups()), student
    )
