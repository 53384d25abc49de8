"""What the configs describe, but for what a test changes: defaults stand in YAML, and in no signature or test."""

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any, TypeVar

import yaml

from dinoswap.config.configuration import config_dir
from dinoswap.config.schema import checked, option_class
from dinoswap.nn.projection_head import ProjectionHead

T = TypeVar("T")


def build_option(name: str, /, **changes: Any) -> Any:
    """The option of `masking/block.yaml`. `changes` are other values, and arguments that the builder gives."""
    section = {key: value for key, value in written(name).items() if key not in ("defaults", "enabled")}
    return _built(option_class(section, name.partition("/")[0]), section, changes)


def build_augmentation(name: str, /, **changes: Any) -> Any:
    """One of the group, for crops as train.yaml has them."""
    written_crops = written("train")["crops"]
    crops = {
        "global_crops_size": written_crops["global_size"],
        "local_crops_size": written_crops["local_size"],
        "local_crops_number": written_crops["local_number"],
    }
    return build_option(f"augmentation/{name}", **(crops | changes))


def open_source(name: str, path: str, /, **changes: Any) -> Any:
    """One of the group `data`, of the images at `path`."""
    return build_option(f"data/{name}", path=path, **changes)


def build_objective(name: str, /, **changes: Any) -> Any:
    """One of those in train.yaml, likewise."""
    section = written("train")["objectives"][name]
    return _built(option_class(section, f"objectives.{name}"), section, changes)


def build_head(in_dim: int, prototypes: int, hidden_dim: int, bottleneck_dim: int, **changes: Any) -> ProjectionHead:
    """A projection head as train.yaml describes that of DINO, likewise."""
    sizes = {"in_dim": in_dim, "prototypes": prototypes, "hidden_dim": hidden_dim, "bottleneck_dim": bottleneck_dim}
    return _built(ProjectionHead, written("train")["heads"]["dino_head"], sizes | changes)


def build_settings(target: Callable[..., T], section: str, /, **changes: Any) -> T:
    """The settings that a section of train.yaml holds, likewise. What groups put into it is left out."""
    stated = {name: value for name, value in written("train")[section].items() if not isinstance(value, dict)}
    return _built(target, stated, changes)


@cache
def written(name: str) -> Any:
    """The content of a YAML file in configs/."""
    return yaml.safe_load((config_dir() / f"{name}.yaml").read_text())


def _built(target: Callable[..., T], section: Mapping[str, Any], changes: Mapping[str, Any]) -> T:
    unchanged = {name: value for name, value in section.items() if name not in changes}
    return target(**checked(target, unchanged, "", given=changes), **changes)
