"""Finds the folder of configs, and turns a composed config into plain containers."""

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
    """Returns the folder that DINOSWAP_CONFIG_DIR names; if it is not set, the folder of configs in the installed
    package, else that of the checkout. Raises ConfigError when there is no train.yaml in it."""
    package = Path(__file__).resolve().parents[1]
    override = os.environ.get("DINOSWAP_CONFIG_DIR")
    for folder in [Path(override).absolute()] if override else [package / "configs", package.parents[1] / "configs"]:
        if (folder / "train.yaml").is_file():
            return folder
    raise ConfigError(f"no train.yaml in {override or package}: point DINOSWAP_CONFIG_DIR at the folder that holds it")


def plain(cfg: DictConfig, strict: bool = True) -> dict[str, Any]:
    """Returns the resolved config as plain containers, without Hydra's own node. Raises ConfigError for an
    interpolation that cannot be resolved. Without `strict`, one that needs an environment variable stays as it is
    written, because only the nodes of a cluster may have the variable."""
    config = OmegaConf.masked_copy(cfg, [str(key) for key in cfg if key != "hydra"])
    try:
        return typing.cast(dict[str, Any], OmegaConf.to_container(config, resolve=True))
    except InterpolationResolutionError as error:
        if strict or not _of_the_environment(error):
            raise ConfigError(" ".join(str(error).split())) from error
    return typing.cast(dict[str, Any], _resolved(config))


def _of_the_environment(error: Exception) -> bool:
    """Tells whether an interpolation failed because an environment variable is not set."""
    return "Environment variable" in str(error)  # OmegaConf has no class for it


def _resolved(node: Any) -> Any:
    """Returns the node as plain containers, in which interpolations of missing environment variables stay as they are
    written."""
    if isinstance(node, DictConfig):
        return {key: _resolved_at(node, key) for key in node}
    return [_resolved_at(node, index) for index in range(len(node))]


def _resolved_at(node: Any, key: Any) -> Any:
    """Returns the resolved value of a key of a node, MISSING where it has none yet, and the interpolation itself where
    only another environment has its variable. Raises ConfigError for any other interpolation that cannot be
    resolved."""
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
    """Returns a dict from each dotted key to its value. A list is one value, and so is an empty section."""
    leaves: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            leaves |= flatten(value, f"{prefix}{key}.")
        else:
            leaves[f"{prefix}{key}"] = value
    return leaves
