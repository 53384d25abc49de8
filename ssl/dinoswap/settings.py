"""The sections of the config that no class of the package is built from, and what has to fit between sections.

`check` comes first in every run: what it refuses, and what the constructors refuse after it, has touched no data.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, cast

from dinoswap.data.decoding import DEFAULT, Decoding
from dinoswap.distributed import Parallel, world_size
from dinoswap.evaluation.evaluator import EvaluationSettings
from dinoswap.nn.projection_head import ProjectionHead
from dinoswap.nn.vit import vit
from dinoswap.optim.clip import ClipBy
from dinoswap.schema import ConfigError, checked, construct, construct_option, nearest, option_class, require_section
from dinoswap.trainer import TrainerSettings

Config = Mapping[str, Any]

SECTIONS = (
    "forward",
    "augmentation",
    "masking",
    "weight_decay",
    "layer_decay",
    "da3",
    "objectives",
    "data",
    "distributed",
    "model",
    "crops",
    "heads",
    "schedule",
    "optimizer",
    "trainer",
    "evaluation",
)

GIVEN_TO_DA3 = ("reduction", "mean", "std")
"""Arguments that the builder gives to the option of `da3`."""

ACCURACIES = [f"{kind}_{top}" for kind in ("knn", "knn_patch", "linear", "linear_patch") for top in ("top1", "top5")]
OBJECTIVE_METRICS = [f"eval/{name}" for name in (*ACCURACIES, "rankme", "feature_std", "mean_cosine")]


@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """The keys outside any section. Besides OBJECTIVE_METRICS, `eval/<objective>/<diagnostic>` can be optimised."""

    seed: int
    study: str | None
    results_dir: str
    objective_metric: str
    teacher_dropout: bool = False

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise ValueError(f"seed={self.seed}: must be 0 or more")
        if self.study is not None and not re.fullmatch(r"\w[\w.+-]*", self.study):
            raise ValueError(f"study={self.study}: names a folder; use letters, digits, '_', '-', '.' and '+'")
        metric = self.objective_metric
        if metric not in OBJECTIVE_METRICS and not re.fullmatch(r"eval/\w+/\w+", metric):
            raise ValueError(
                f"objective_metric={metric}: no metric of this name is measured.{nearest(metric, OBJECTIVE_METRICS)} "
                f"Use one of {', '.join(OBJECTIVE_METRICS)}"
            )


@dataclass(frozen=True, kw_only=True)
class CropSettings:
    """Sides of the square crops in pixels, and local crops per image."""

    global_size: int = 224
    local_size: int = 96
    local_number: int = 8

    def __post_init__(self) -> None:
        if self.local_number < 0:
            raise ValueError(f"local_number={self.local_number}: must be 0 or more")


@dataclass(frozen=True, kw_only=True)
class OptimizerSettings:
    """AdamW."""

    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    clip_grad: float | None = 3.0
    clip: ClipBy = "per_module"

    def __post_init__(self) -> None:
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas={list(self.betas)}: both must lie in [0, 1)")
        if not self.eps > 0:
            raise ValueError(f"eps={self.eps}: must be above 0")
        if self.clip_grad is not None and not self.clip_grad > 0:
            raise ValueError(f"clip_grad={self.clip_grad}: must be above 0, or null for no clipping")


@dataclass(frozen=True, kw_only=True)
class LoadingSettings:
    """The keys of `data` that every source shares. `batch_size` counts images per step over ranks and micro-batches."""

    batch_size: int
    workers: int = 2
    max_corrupt_fraction: float = 0.01
    test_fraction: float = 0.0
    max_pixels: int = DEFAULT.max_pixels
    range_16bit: tuple[int, int] = DEFAULT.range_16bit
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)

    @property
    def decoding(self) -> Decoding:
        return Decoding(self.max_pixels, self.range_16bit)

    def __post_init__(self) -> None:
        _ = self.decoding  # refuses what it cannot use
        if self.batch_size < 1:
            raise ValueError(f"batch_size={self.batch_size}: must be at least 1")
        if self.workers < 0:
            raise ValueError(f"workers={self.workers}: must be 0 (load in the training process) or more")
        if not 0 <= self.max_corrupt_fraction <= 1:
            raise ValueError(f"max_corrupt_fraction={self.max_corrupt_fraction}: must lie between 0 and 1")
        if not 0 <= self.test_fraction < 1:
            raise ValueError(f"test_fraction={self.test_fraction}: a share of the images, 0 or more and below 1")
        if not all(s > 0 for s in self.std):
            raise ValueError(f"std={list(self.std)}: must be above 0")


LOADING = [f.name for f in fields(LoadingSettings)]
OF_ONE_SET = ("test_fraction",)
"""Of these keys the ones that do not go along to another data set."""


def loading_settings(cfg: Config) -> LoadingSettings:
    return construct(LoadingSettings, {k: v for k, v in cfg["data"].items() if k in LOADING}, "data")


def check(cfg: Config) -> None:
    """Raises ConfigError for a key that nobody reads, and for settings of different sections that do not fit."""
    run = construct(RunSettings, {key: value for key, value in cfg.items() if key not in SECTIONS}, "")
    for section in SECTIONS:
        require_section(cfg.get(section), section)
    check_da3(cfg)
    check_distributed(cfg)
    check_heads(cfg)
    check_crops(cfg)
    evaluation = construct(EvaluationSettings, cfg["evaluation"], "evaluation")
    if run.objective_metric.startswith("eval/linear") and not evaluation.linear_probe:
        raise ConfigError(f"objective_metric={run.objective_metric}: needs evaluation.linear_probe=true")
    accumulate = construct(TrainerSettings, cfg["trainer"], "trainer").accumulate
    images, slices = loading_settings(cfg).batch_size, accumulate * world_size()
    if images % slices:
        raise ConfigError(
            f"data.batch_size={images}: trainer.accumulate={accumulate} and {world_size()} ranks cut it into {slices} "
            f"equal parts; try data.batch_size={max(round(images / slices), 1) * slices}"
        )


def check_da3(cfg: Config) -> None:
    """`da3.enabled` switches an option on that has been chosen; its keys are checked even where it is off."""
    section = cfg["da3"]
    enabled = section.get("enabled")
    if not isinstance(enabled, bool):
        raise ConfigError(f"da3.enabled={enabled}: must be true or false")
    own = {name: value for name, value in section.items() if name not in ("enabled", "reduction")}
    if "_target_" in own:
        checked(option_class(section, "da3"), own, "da3", given=GIVEN_TO_DA3)
        return
    for name, value in own.items():
        raise ConfigError(f"da3.{name}={value}: there is no such key in da3=disabled; choose da3=enabled")
    if enabled:
        raise ConfigError(f"da3.enabled={enabled}: there is nothing to switch on; choose the option, da3=enabled")


def check_distributed(cfg: Config) -> None:
    """What only some ways of spreading a model can do."""
    section, precision = cfg["distributed"], cfg["trainer"]["precision"]
    shards = bool(section) and cast(Parallel, construct_option(section, "distributed")).shards
    if cfg["da3"].get("use_fsdp") and not shards:
        raise ConfigError("da3.use_fsdp=true: there are no shares to cut the teacher into; choose distributed=fsdp2")
    if (gathered := section.get("param_dtype", "fp32")) not in ("fp32", precision):
        raise ConfigError(
            f"distributed.param_dtype={gathered}: does not go with trainer.precision={precision}; make "
            "the two the same, or gather weights in fp32"
        )


def check_heads(cfg: Config) -> None:
    """Every head can be built, also those that no objective names, and every head that one names exists."""
    for name, head in cfg["heads"].items():
        checked(ProjectionHead, head, f"heads.{name}", given=["in_dim"])
    for name, objective in cfg["objectives"].items():
        head = objective.get("head") if isinstance(objective, Mapping) else None
        if head is not None and head not in cfg["heads"]:
            known = list(cfg["heads"])
            raise ConfigError(f"objectives.{name}.head={head}: is none of {', '.join(known)}.{nearest(head, known)}")


def check_crops(cfg: Config) -> None:
    """Crops, and images that are evaluated on, are cut into whole patches."""
    crops = construct(CropSettings, cfg["crops"], "crops")
    evaluation = construct(EvaluationSettings, cfg["evaluation"], "evaluation")
    patch = checked(vit, cfg["model"], "model", given=["img_size"])["patch_size"]
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
    if evaluation.resize is not None and evaluation.resize < evaluated:
        raise ConfigError(f"evaluation.resize={evaluation.resize}: must be at least the size evaluated on, {evaluated}")
