"""Builds the trackers of a run. Nothing here imports torch, or the package of a tracker."""

from collections.abc import Mapping
from typing import Any, cast

from dinoswap.config.errors import ConfigError
from dinoswap.config.schema import construct_option
from dinoswap.tracker.base import Tracker


def build_trackers(cfg: Mapping[str, Any]) -> dict[str, Tracker]:
    """Returns the trackers of a config by name. Raises ConfigError for a wrong section."""
    sections = cfg["tracker"].items()
    return {name: cast(Tracker, construct_option(section, f"tracker.{name}")) for name, section in sections}


def require_packages(cfg: Mapping[str, Any]) -> None:
    """Raises ConfigError for a tracker whose package is not installed."""
    for name, tracker in build_trackers(cfg).items():
        if not tracker.is_installed():
            raise ConfigError(f"tracker={name}: the package {tracker.package} is not installed; {tracker.install}")
