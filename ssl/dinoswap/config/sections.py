"""Defines the sections of the config that no option is built from, as frozen dataclasses with their keys, types and
ranges.

Nothing here imports torch, which takes seconds, so that a wrong value is refused before.
"""

import inspect
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal, cast

from dinoswap.config.schema import ConfigError, construct, construct_option, option_class, require_section
from dinoswap.data.decoding import Decoding
from dinoswap.resolution.base import Resolution, StepSizes
from dinoswap.start.base import Start

Config = Mapping[str, Any]
Precision = Literal["fp32", "bf16", "fp16", "bf16_params"]
Dtype = Literal["fp32", "bf16", "fp16"]

SECTIONS = (
    "forward",
    "augmentation",
    "masking",
    "weight_decay",
    "layer_decay",
    "position",
    "schedule",
    "resolution",
    "start",
    "stream_seeds",
    "da3",
    "objectives",
    "data",
    "distributed",
    "model",
    "crops",
    "heads",
    "optimizer",
    "trainer",
    "evaluation",
    "tracker",
)


@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """Holds the keys outside of any section. Raises ValueError for a value out of range."""

    seed: int
    study: str | None
    results_dir: str
    objective_metric: str
    teacher_dropout: bool

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise ValueError(f"seed={self.seed}: must be 0 or more")
        if self.study is not None and not re.fullmatch(r"\w[\w.+-]*", self.study):
            raise ValueError(f"study={self.study}: names a folder; use letters, digits, '_', '-', '.' and '+'")
        if not self.results_dir.strip():
            raise ValueError("results_dir='': names no folder; leave it out, or give one, as in results_dir=results")


@dataclass(frozen=True, kw_only=True)
class CropSettings:
    """Holds the sides of the square crops in pixels, and the number of local crops per image. Raises ValueError when
    that number is negative."""

    global_size: int
    local_size: int
    local_number: int

    def __post_init__(self) -> None:
        if self.local_number < 0:
            raise ValueError(f"local_number={self.local_number}: must be 0 or more")


@dataclass(frozen=True, kw_only=True)
class TrainerSettings:
    """Holds the keys of `trainer`. `checkpoint_every`, `eval_every` and `log_every` count steps; with 0 checkpoints and
    evaluations are made at the end only. Raises ValueError for a value out of range."""

    max_steps: int
    precision: Precision
    matmul_precision: Literal["highest", "high"]
    accumulate: int
    log_every: int
    eval_every: int
    checkpoint_every: int
    checkpoint_minutes: float
    keep_checkpoints: int
    max_nonfinite_steps: int
    compile: bool | Literal["cudagraphs"]
    device: str

    def __post_init__(self) -> None:
        for name in ("max_steps", "accumulate", "log_every", "keep_checkpoints", "max_nonfinite_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: must be at least 1")
        for name in ("eval_every", "checkpoint_every", "checkpoint_minutes"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}={getattr(self, name)}: must be 0 (only at the end) or more")

    @property
    def arithmetic(self) -> str:
        """Returns the precision, and that of float32 products where it is not the highest."""
        return self.precision if self.matmul_precision == "highest" else f"{self.precision}, {self.matmul_precision}"


@dataclass(frozen=True, kw_only=True)
class EvaluationSettings:
    """Holds the keys of `evaluation` beside the families of metrics. `size` is the side of the crops in pixels, None
    for that of the global crops; `resize` is described in `features.EvalImages`. `more_sizes` are further sides, at
    which the full evaluation judges patch tokens too. `in_loop_images` is the largest number of images that the quick
    evaluation uses, of train and of test each; `images` is that of the full evaluation, which with `baselines` also
    judges initial weights and features that need no network. Raises ValueError for a value below 1, and for equal
    sizes.
    """

    size: int | None
    resize: int | None
    more_sizes: tuple[int, ...]
    in_loop_images: int
    images: int
    batch_size: int
    linear_probe: bool
    baselines: bool

    def __post_init__(self) -> None:
        for name in ("size", "resize", "in_loop_images", "images", "batch_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name}={value}: must be at least 1")
        if len({self.size, *self.more_sizes}) <= len(self.more_sizes):
            raise ValueError(f"more_sizes={list(self.more_sizes)}: must differ from each other and from `size`")


@dataclass(frozen=True, kw_only=True)
class LoadingSettings:
    """Holds the keys of `data` that every source shares. `batch_size` counts the images of a step over all ranks and
    micro-batches. Raises ValueError for a value out of range."""

    batch_size: int
    workers: int
    max_corrupt_fraction: float
    test_fraction: float
    max_pixels: int
    range_16bit: tuple[int, int]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    @property
    def decoding(self) -> Decoding:
        """Returns the settings that decide how an image is decoded."""
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
        if not all(deviation > 0 for deviation in self.std):
            raise ValueError(f"std={list(self.std)}: must be above 0")


def build_resolution(cfg: Config) -> Resolution:
    """Returns the option of the group `resolution`. Raises ConfigError for a wrong value."""
    return cast(Resolution, construct_option(cfg["resolution"], "resolution"))


def step_sizes(cfg: Config) -> list[StepSizes]:
    """Returns the crop sizes that the steps of a config may have. Raises ConfigError for a wrong value."""
    crops = construct(CropSettings, cfg["crops"], "crops")
    return build_resolution(cfg).sizes(crops.global_size, crops.local_size)


def gathered_dtype(cfg: Config) -> Dtype:
    """Returns the type that weights of matrix products are gathered in where they are sharded: the one that
    distributed.param_dtype names, and where it names none bf16 if the trainer computes in it, else fp32."""
    named = cfg["distributed"].get("param_dtype")
    return cast(Dtype, named or ("bf16" if cfg["trainer"]["precision"] in ("bf16", "bf16_params") else "fp32"))


def stream_dtype(cfg: Config) -> Dtype:
    """Returns the type of the tokens between blocks, and of what is added to them."""
    return "bf16" if cfg["trainer"]["precision"] == "bf16_params" else "fp32"


def build_start(cfg: Config) -> Start:
    """Returns the option of the group `start`. Raises ConfigError for a wrong value."""
    return cast(Start, construct_option(cfg["start"], "start"))


def with_its_backbone(cfg: Config) -> Config:
    """Returns a config with the backbone of the weights that training begins from, where start.architecture asks for it
    and they are on this machine. Raises ConfigError for weights that cannot be read."""
    require_section(cfg.get("start"), "start")
    try:
        return build_start(cfg).completed(cfg)
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(str(error)) from error
    except OSError as error:
        raise ConfigError(f"start.path={cfg['start']['path']}: cannot be read ({error})") from error


def begun_elsewhere(cfg: Config) -> Config:
    """Returns the config of a run whose weights are loaded anyway, so that what it began with is not read."""
    return {**cfg, "start": {"_target_": "dinoswap.start.random.RandomStart"}}


def evaluation_settings(cfg: Config) -> EvaluationSettings:
    """Returns the settings of a config that all metrics share. Raises ConfigError for a wrong value."""
    section = {key: value for key, value in cfg["evaluation"].items() if key not in OF_METRICS}
    return construct(EvaluationSettings, section, "evaluation")


JUDGED_ON = ("dense", "depth")
"""Groups of what those families of metrics are judged on that ask for it."""
OF_METRICS = ("metric", *JUDGED_ON)
"""Groups that fill sections of `evaluation`."""
LOADING = [field.name for field in fields(LoadingSettings)]
OF_ONE_SET = ("test_fraction",)
"""Keys among LOADING that are about one data set, and are not taken over for another one."""


def source_section(cfg: Config) -> dict[str, Any]:
    """Returns the keys of `data` that the chosen source takes: among those of loading only what it does itself, as
    `embedded` holds out its `test_fraction`. Raises ConfigError when there is no such source."""
    parameters = inspect.signature(option_class(cfg["data"], "data")).parameters
    return {key: value for key, value in cfg["data"].items() if key not in LOADING or key in parameters}


def loading_settings(cfg: Config) -> LoadingSettings:
    """Returns the loading settings of a config. Raises ConfigError for a wrong value."""
    return construct(LoadingSettings, {key: value for key, value in cfg["data"].items() if key in LOADING}, "data")
