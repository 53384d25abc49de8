"""Checks a config before anything of a run is built: keys that nobody reads, and settings of sections that contradict
each other.

`check` comes first in every run, so that what it refuses, and what the constructors refuse after it, has touched no
data. It reads the signatures of options, whose modules import torch; first_check.py checks what needs no torch.
"""

from typing import cast

from dinoswap.config.first_check import first_check
from dinoswap.config.schema import ConfigError, checked, construct, construct_option, option_class
from dinoswap.config.sections import LOADING, Config, TrainerSettings, loading_settings
from dinoswap.distributed import Parallel, world_size
from dinoswap.nn.projection_head import ProjectionHead
from dinoswap.nn.vit import configured_vit

__all__ = ["GIVEN_TO_DA3", "LOADING", "check"]

GIVEN_TO_DA3 = ("reduction", "teacher", "mean", "std")
"""Arguments that the builder passes to the option of `da3`."""


def check(cfg: Config) -> None:
    """Raises ConfigError for a key that nobody reads, and for settings of different sections that contradict each
    other."""
    first_check(cfg)
    check_da3(cfg)
    check_distributed(cfg)
    checked(configured_vit, cfg["model"], "model", given=["img_size", "position"])
    construct_option(cfg["position"], "position")
    for name, head in cfg["heads"].items():
        checked(ProjectionHead, head, f"heads.{name}", given=["in_dim"])
    accumulate = construct(TrainerSettings, cfg["trainer"], "trainer").accumulate
    images, slices = loading_settings(cfg).batch_size, accumulate * world_size()
    if images % slices:
        raise ConfigError(
            f"data.batch_size={images}: trainer.accumulate={accumulate} and {world_size()} ranks cut it into {slices} "
            f"equal parts; try data.batch_size={max(round(images / slices), 1) * slices}"
        )


def check_da3(cfg: Config) -> None:
    """Raises ConfigError for a wrong section `da3`. Its keys are checked even where `da3.enabled` is false."""
    section = cfg["da3"]
    enabled = section.get("enabled")
    if not isinstance(enabled, bool):
        raise ConfigError(f"da3.enabled={enabled}: must be true or false")
    if "_target_" in section:
        arguments = {name: value for name, value in section.items() if name not in ("enabled", "reduction", "teacher")}
        checked(option_class(section, "da3"), arguments, "da3", given=GIVEN_TO_DA3)
        teacher = section.get("teacher")
        checked(option_class(teacher, "da3.teacher"), teacher, "da3.teacher", given=["ckpt_path"])
        return
    for name, value in section.items():
        if name != "enabled":
            raise ConfigError(f"da3.{name}={value}: there is no such key in da3=disabled; choose da3=enabled")
    if enabled:
        raise ConfigError(f"da3.enabled={enabled}: there is nothing to switch on; choose the option, da3=enabled")


def check_distributed(cfg: Config) -> None:
    """Raises ConfigError for settings that the chosen way of distributing the model does not support."""
    section, precision = cfg["distributed"], cfg["trainer"]["precision"]
    parallel = cast(Parallel, construct_option(section, "distributed")) if section else None
    if parallel is not None and world_size() > 1:
        check_ranks(cfg, world_size())
    if cfg["da3"].get("use_fsdp") and not (parallel is not None and parallel.shards):
        raise ConfigError("da3.use_fsdp=true: there are no shares to cut the teacher into; choose distributed=fsdp2")
    fitting = ["bf16"] if precision == "bf16_params" else [*dict.fromkeys(("fp32", precision))]
    if parallel is not None and parallel.shards and cfg["trainer"]["compile"] == "cudagraphs":
        raise ConfigError(
            "trainer.compile=cudagraphs: a graph reads weights at one place, and distributed=fsdp2 gathers them anew "
            "for each call; use trainer.compile=true, or distributed=ddp"
        )
    if (param_dtype := section.get("param_dtype")) not in (None, *fitting):
        raise ConfigError(
            f"distributed.param_dtype={param_dtype}: does not go with trainer.precision={precision}; use "
            f"{' or '.join(fitting)}, or null for what goes with it"
        )


def check_ranks(cfg: Config, ranks: int) -> None:
    """Raises ConfigError where the option of the group `distributed` cannot spread a model over so many ranks."""
    try:
        cast(Parallel, construct_option(cfg["distributed"], "distributed")).check_ranks(ranks)
    except ValueError as error:
        raise ConfigError(f"distributed.{error}") from error
