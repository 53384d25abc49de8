"""Where configs live, what a resolved one is, and what the run that it describes is called."""

import hashlib
import json
import os
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from dinoswap.schema import ConfigError

VERSION_BASE = "1.3"
"""The Hydra behaviour that the configs are written for."""

# What cannot change the result, keys and whole sections, and so is neither in a run's name nor compared at a resume.
VOLATILE = (
    "distributed",
    "seed",
    "study",
    "results_dir",
    "objective_metric",
    "data.workers",
    "data.path",
    "data.test_path",
    "data.download",
    "da3.ckpt_path",
    "da3.use_fsdp",
    "trainer.device",
    "trainer.log_every",
    "trainer.eval_every",
    "trainer.checkpoint_every",
    "trainer.checkpoint_minutes",
    "trainer.keep_checkpoints",
    "trainer.tensorboard",
)
NAMED_BY_FILE = ("data.path", "data.test_path", "da3.ckpt_path")
HUB_FILE = "model.safetensors"
"""What the weights of every model on the Hugging Face hub are called: its folder has the name."""


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


def identity(config: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a resolved config that decides the result: flat, less what is volatile. Data and weights are known
    by the name of their file or folder, not by where it lies."""
    leaves = flatten(config)
    kept = {key: _canonical(value) for key, value in leaves.items() if not is_volatile(key)}
    for key in NAMED_BY_FILE:
        if leaves.get(key):
            kept[f"{key}.name"] = _name(Path(str(leaves[key])))
    return kept


def is_volatile(key: str) -> bool:
    return any(key == name or key.startswith(f"{name}.") for name in VOLATILE)


def _name(path: Path) -> str:
    return path.parent.name if path.name == HUB_FILE and path.parent.name else path.name


def _canonical(value: Any) -> Any:
    """One spelling of a number: 3 and 3.0 configure the same run."""
    if isinstance(value, list):
        return [_canonical(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def run_id(config: Mapping[str, Any]) -> str:
    """A short content hash of the resolved config: equal for equal experiments, however they were asked for."""
    text = json.dumps(identity(config), sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:10]


def run_folder(config: Mapping[str, Any]) -> str:
    """<study or "single">/<run_id>/seed<k>, below results_dir/runs."""
    return f"{config['study'] or 'single'}/{run_id(config)}/seed{config['seed']}"


# `${run_folder:}` in configs/train.yaml: the same folder for a single run, a multirun and a study
OmegaConf.register_new_resolver("run_folder", lambda *, _root_: run_folder(plain(_root_)), replace=True)
