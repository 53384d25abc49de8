"""schedules_dinov3*.json: the values of both kinds of schedules and of weights of terms, at the steps that it gives."""

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from dinoswap.build import build_schedules
from dinoswap.config.command_line import compose_config
from dinoswap.optim.schedules import Phases, Schedule
from parity.rows import SCHEDULE, Row, Scenarios, compare
from parity.tables import SCHEDULES, cosine_section

Config = dict[str, Any]

SCALING = {"sqrt_wrt_1024": ("sqrt_1024", 4.0), "linear_wrt_256": ("linear_256", 1.0), "none": ("none", 1.0)}
"""Their rule -> ours, and our lr for theirs: their root is that of batch / 64."""


def scenarios(path: Path) -> Scenarios:
    cases = {name: case for name, case in json.loads(path.read_text()).items() if name.startswith("recipe_")}
    return {name: partial(check_recipe, case) for name, case in cases.items()}


def check_recipe(case: Config) -> Iterator[Row]:
    config, total = case["config"], case["total"]
    epoch = int(config["OFFICIAL_EPOCH_LENGTH"])
    ours = compose_config(["preset=dinov3", f"trainer.max_steps={total}"])
    ours["schedule"] = schedule_section(config)
    ours["data"]["batch_size"] = config["batch_size_per_gpu"] * config["world_size"]
    schedules = build_schedules(ours)
    for name in SCHEDULES:
        yield compare_at(case["steps"], name, schedules[name], case[name])
    for key, weight in (
        ("dino_local_weight", config["dino_local_loss_weight_schedule"]),
        ("gram_weight", config["gram"]["loss_weight_schedule"]),
    ):
        if weight:
            yield compare_at(case["steps"], key, Phases(**phases(weight, epoch)).schedule(total, key), case[key])


def compare_at(at: list[int], name: str, schedule: Schedule, theirs: list[float]) -> Row:
    return compare(name, [schedule[step] for step in at], theirs, SCHEDULE, scale=1.0)


def schedule_section(config: Config) -> Config:
    """An official configuration's schedules, of whichever kind, as our section `schedule`."""
    rule, factor = SCALING[config["optim"]["scaling_rule"]]
    if not config.get("schedules"):
        return cosine_section(config, config["lr_before_scaling"] * factor, rule)
    official, epoch = config["schedules"], int(config["OFFICIAL_EPOCH_LENGTH"])
    section = {name: phases(official[name], epoch) for name in ("lr", "weight_decay", "momentum", "teacher_temp")}
    section["lr"] |= {name: section["lr"][name] * factor for name in ("peak", "end")}
    return compose_config(["preset=dinov3", "schedule=piecewise"])["schedule"] | {
        **section,
        "lr_scaling": rule,
        "freeze_last_layer": int(official["lr"]["freeze_last_layer_epochs"] * epoch),
    }


def phases(config: Config, epoch: int) -> Config:
    """An official schedule of the second kind as ours; without a cosine's length it takes the rest of the run."""
    lengths = {"warmup": "warmup_epochs", "cosine": "cosine_epochs"}
    values: Config = {name: config[name] for name in ("start", "peak", "end")}
    return values | {ours: int(config[key] * epoch) if key in config else None for ours, key in lengths.items()}
