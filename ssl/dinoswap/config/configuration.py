"""Where configs live, and what a resolved one is."""

import os
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import InterpolationResolutionError

from dinoswap.config.schema import MISSING, ConfigError

VERSION_BASE = "1.3"
"""The Hydra behaviour that the configs are written for."""


def config_dir() -> Path:
    """DINOSWAP_CONFIG_DIR, else the configs in the installed package, else those of the checkout."""
    here = Path(__file__).resolve().parents[1]
    asked = os.environ.get("DINOSWAP_CONFIG_DIR")
    for folder in [Path(asked).absolute()] if asked else [here / "configs", here.parents[1] / "configs"]:
        if (folder / "train.yaml").is_file():
            return folder
    raise ConfigError(f"no train.yaml in {asked or here}: point DINOSWAP_CONFIG_DIR at the folder that holds it")


def plain(cfg: DictConfig, strict: bool = True) -> dict[str, Any]:
    """The resolved config as plain containers, without Hydra's own node. What cannot be resolved is a ConfigError; not
    `strict`, it stays as it is written: an environment variable that only a cluster's nodes have."""
    own = OmegaConf.masked_copy(cfg, [str(key) for key in cfg if key != "hydra"])
    try:
        return typing.cast(dict[str, Any], OmegaConf.to_container(own, resolve=True))
    except InterpolationResolutionError as error:
        if strict or not _of_the_environment(error):
            raise ConfigError(" ".join(str(error).split())) from error
    return typing.cast(dict[str, Any], _resolved(own))


def _of_the_environment(error: Exception) -> bool:
    return "Environment variable" in str(error)  # OmegaConf has no class for it


def _resolved(node: Any) -> Any:
    """What can be resolved is."""
    if isinstance(node, DictConfig):
        return {key: _resolved_at(node, key) for key in node}
    return [_resolved_at(node, index) for index in range(len(node))]


def _resolved_at(node: Any, key: Any) -> Any:
    if OmegaConf.is_missing(node, key):
        return MISSING
    try:
        value = node[key]
    except InterpolationResolutionError as error:
        if not _of_the_environment(error):
            raise ConfigError(" ".join(str(error).split())) from error
        return typing.cast(Any, OmegaConf.to_container(node, resolve=False))[key]
    return _resolved(value) if OmegaConf.is_config(value) else value


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted key -> leaf. Lists are leaves."""
    leaves: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            leaves |= flatten(value, f"{prefix}{key}.")
        else:
            leaves[f"{prefix}{key}"] = value
    return leaves
