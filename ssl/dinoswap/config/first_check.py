"""Checks what the values of a composed config show by themselves. Nothing here imports torch, which takes seconds.

The commands make this check before anything else, and `settings.check` repeats it at the beginning of a run.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import cast

from dinoswap.config.measured import build_metrics, obstacle, require_metric
from dinoswap.config.schema import (
    ConfigError,
    checked,
    construct,
    construct_option,
    nearest,
    option_class,
    require_section,
)
from dinoswap.config.sections import (
    SECTIONS,
    Config,
    CropSettings,
    RunSettings,
    TrainerSettings,
    build_start,
    evaluation_settings,
    loading_settings,
    source_section,
    step_sizes,
)
from dinoswap.config.streams import stream_seeds
from dinoswap.config.tracked import build_trackers
from dinoswap.optim.settings import OptimizerSettings
from dinoswap.schedule.base import SchedulePlan

WITHOUT_TORCH = ("masking", "weight_decay", "layer_decay", "resolution")
"""Groups whose options can be built without importing torch, beside `schedule` and `start`."""


def first_check(cfg: Config) -> None:
    """Raises ConfigError for a section that is missing, a value out of range, and values that contradict each other."""
    run = construct(RunSettings, {key: value for key, value in cfg.items() if key not in SECTIONS}, "")
    for section in SECTIONS:
        require_section(cfg.get(section), section)
    stream_seeds(cfg)
    evaluation_settings(cfg)
    check_metrics(cfg, run.objective_metric)
    construct(OptimizerSettings, cfg["optimizer"], "optimizer")
    check_schedule(cfg)
    check_start(cfg)
    if not build_start(cfg).is_elsewhere():  # else the size of patches is not known
        check_crops(cfg)
    check_heads(cfg)
    check_data(cfg)
    build_trackers(cfg)
    for group in WITHOUT_TORCH:
        construct_option(cfg[group], group)


def check_metrics(cfg: Config, objective_metric: str) -> None:
    """Raises ConfigError for a family of metrics with a wrong value, and for an objective metric that is not
    measured."""
    require_section(cfg["evaluation"].get("metric"), "evaluation.metric")
    build_metrics(cfg)
    require_metric(objective_metric, f"objective_metric={objective_metric}")
    if needed := obstacle(cfg, objective_metric):
        raise ConfigError(f"objective_metric={objective_metric}: needs {needed}")


def require_writable(cfg: Config) -> None:
    """Raises ConfigError when no run folder can be made below `results_dir`. Nothing is created."""
    folder = Path(cfg["results_dir"])
    existing = next(parent for parent in (folder.absolute(), *folder.absolute().parents) if parent.exists())
    if not (existing.is_dir() and os.access(existing, os.W_OK | os.X_OK)):
        reason = "is not writable" if existing.is_dir() else "is no folder"
        raise ConfigError(
            f"results_dir={folder}: cannot be written to: {existing} {reason}; give another results_dir=..."
        )


def check_schedule(cfg: Config) -> None:
    """Raises ConfigError for a wrong section `schedule`, and for schedules that do not fit into the run."""
    schedule = cast(SchedulePlan, construct_option(cfg["schedule"], "schedule"))
    total = construct(TrainerSettings, cfg["trainer"], "trainer").max_steps
    try:
        schedule.check(total)
    except ValueError as error:
        raise ConfigError(str(error)) from error


def check_start(cfg: Config) -> None:
    """Raises ConfigError for a wrong section `start`, and for a length in it that does not fit into the run."""
    try:
        build_start(cfg).check(construct(TrainerSettings, cfg["trainer"], "trainer").max_steps)
    except ValueError as error:
        raise ConfigError(str(error)) from error


def check_data(cfg: Config) -> None:
    """Raises ConfigError for a wrong key or value of `data`. The data set itself is not opened."""
    loading_settings(cfg)
    section = source_section(cfg)
    checked(option_class(section, "data"), section, "data", given=["decoding"])


def check_heads(cfg: Config) -> None:
    """Raises ConfigError when an objective names a head that does not exist."""
    for name, objective in cfg["objectives"].items():
        head = objective.get("head") if isinstance(objective, Mapping) else None
        if head is not None and (not isinstance(head, str) or head not in cfg["heads"]):
            heads = list(cfg["heads"])
            suggestion = nearest(str(head), heads)
            raise ConfigError(f"objectives.{name}.head={head}: is none of {', '.join(heads)}.{suggestion}")


def check_crops(cfg: Config) -> None:
    """Raises ConfigError when a crop, or an image as evaluation sees it, cannot be cut into whole patches, and when
    evaluation crops more than it resizes to."""
    crops = construct(CropSettings, cfg["crops"], "crops")
    evaluation = evaluation_settings(cfg)
    patch = cfg["model"].get("patch_size")
    if type(patch) is not int:
        raise ConfigError(f"model.patch_size={patch}: must be a whole number; 14 and 16 are usual")
    if patch < 1:
        raise ConfigError(f"model.patch_size={patch}: must be at least 1; 14 and 16 are usual")
    evaluated = evaluation.size or crops.global_size
    sizes = {"crops.global_size": crops.global_size, "crops.local_size": crops.local_size, "evaluation.size": evaluated}
    for key, size in sizes.items():
        if size < patch or size % patch:
            raise ConfigError(
                f"{key}={size}: must be a multiple of model.patch_size={patch}; "
                f"try {key}={max(round(size / patch), 1) * patch}"
            )
    for size in evaluation.more_sizes:
        if size < patch or size % patch or size == evaluated:
            raise ConfigError(
                f"evaluation.more_sizes={list(evaluation.more_sizes)}: must be multiples of model.patch_size={patch} "
                f"beside the size of {evaluated} pixels"
            )
    for name in ("global_size", "local_size"):
        mixed = [getattr(sizes, name) for sizes in step_sizes(cfg)]
        multiples = [max(round(size / patch), 1) * patch for size in mixed]
        if mixed != multiples:
            raise ConfigError(
                f"resolution.{name}s={mixed}: must be multiples of model.patch_size={patch}; "
                f"try resolution.{name}s={str(multiples).replace(' ', '')}"
            )
    if evaluation.resize is not None and evaluation.resize < evaluated:
        raise ConfigError(f"evaluation.resize={evaluation.resize}: must be at least the size evaluated on, {evaluated}")
