"""Where configs live, and what a resolved one is."""

import os
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from dinoswap.schema import ConfigError

VERSION_BASE = "1.3"
"""The Hydra behaviour that the configs are written for."""


def config_dir() -> Path:
    """DINOSWAP_CONFIG_DIR, else the configs in the installed package, else those of the checkout."""
    here = Path(__file__).resolve().parent
    asked = os.environ.get("DINOSWAP_CONFIG_DIR")
    for folder in [Path(asked).absolute()] if asked else [here / "configs", here.parents[1] / "configs"]:
        if (folder / "train.yaml").is_file():
            return folder
    raise ConfigError(f"no train.yaml in {asked or here}: point DINOSWAP_CONFIG_DIR at the folder that holds it")


def plain(cfg: DictConfig) -> dict[str, Any]:
    """The resolved config as plain containers, without Hydra's own node."""
    container = OmegaConf.to_container(OmegaConf.masked_copy(cfg, [str(k) for k in cfg if k != "hydra"]), resolve=True)
    return typing.cast(dict[str, Any], container)


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted key -> leaf. Lists are leaves."""
    leaves: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            leaves |= flatten(value, f"{prefix}{key}.")
        else:
            leaves[f"{prefix}{key}"] = value
    return leaves
