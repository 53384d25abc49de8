"""Finds options that installed packages bring for the groups of dinoswap: a mask, an objective, a source of images.

A package announces itself by an entry point of the group `dinoswap.options`, whose value is its module and, after the
colon, the folder of its configs within the module's own:

    [project.entry-points."dinoswap.options"]
    my_options = "my_options:configs"

`my_options/configs/masking/checker.yaml`, whose `_target_` is a class of my_options, is then `masking=checker`. Nothing
of the package is executed before such an option is built, and no config executes anything else (schema.option_class).
"""

import functools
import importlib.util
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

from dinoswap.config.errors import ConfigError

GROUP = "dinoswap.options"


@dataclass(frozen=True)
class Guest:
    """Describes an installed package that brings options: its distribution and version, its module, its folder of
    configs."""

    name: str
    version: str
    module: str
    configs: Path


@functools.cache
def guests() -> tuple[Guest, ...]:
    """Returns all installed packages that bring options, sorted by name. Raises ConfigError for an entry point that
    does not say where its configs are."""
    return tuple(sorted(map(_guest, entry_points(group=GROUP)), key=lambda guest: (guest.name, guest.module)))


def modules() -> tuple[str, ...]:
    """Returns the names of the modules that bring options."""
    return tuple(guest.module for guest in guests())


def used_guests(config: Mapping[str, Any]) -> dict[str, str]:
    """Returns the version of each package that an option of this config comes from, under the key
    `guests.<distribution>`."""
    roots = {target.partition(".")[0] for target in _targets(config)}
    return {f"guests.{guest.name}": guest.version for guest in guests() if guest.module in roots}


def _guest(point: EntryPoint) -> Guest:
    """Describes the package of an entry point, without importing it. Raises ConfigError for an entry point that does
    not say where the configs are."""
    spec = importlib.util.find_spec(point.module) if "." not in point.module else None
    if spec is None or not spec.submodule_search_locations or not point.attr:
        raise ConfigError(
            f"entry point {point.name} = {point.value} of {GROUP}: write package:folder, a package at the top level "
            "and the folder of its configs within it"
        )
    distribution = point.dist
    name, version = (distribution.name, distribution.version) if distribution else (point.module, "unknown")
    return Guest(name, version, point.module, Path(spec.submodule_search_locations[0], point.attr))


def _targets(section: Mapping[str, Any]) -> Iterator[str]:
    """Yields every `_target_` in a section and in the sections inside it."""
    for name, value in section.items():
        if isinstance(value, Mapping):
            yield from _targets(value)
        elif name == "_target_":
            yield str(value)
