"""The configs of a study's cells, composed, checked and remembered.

To compose one takes a tenth of a second, to look closely at its overrides two more, and the check of the settings
imports torch: too long for a table of what is running. So what was accepted is kept in the user's cache folder, a file
per set of overrides, for as long as no file of the configs and of the package has changed.
"""

import functools
import hashlib
import json
import os
import shutil
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from dinoswap.config.command_line import compose_config
from dinoswap.config.configuration import VERSION_BASE, config_dir, plain
from dinoswap.config.first_check import first_check
from dinoswap.config.guests import guests
from dinoswap.files.reading import CONFIG_BYTES, parse_object, read_small
from dinoswap.files.writing import write_atomically


class Composer:
    """`check`: with `settings.check`, otherwise composed only. An environment variable that only nodes have stays as it
    is written."""

    def __init__(self, check: bool) -> None:
        self.check = check
        self._accepted: set[str] = set()

    def __call__(self, overrides: Sequence[str]) -> dict[str, Any]:
        """The resolved config. Raises ConfigError."""
        place = _place(overrides)
        known = _read(place) if place else None
        if known is not None and (known["checked"] or not self.check):
            return dict(known["config"])
        config = self._composed(overrides) if known is None else dict(known["config"])
        first_check(config)
        if self.check:
            from dinoswap.config.settings import check  # imports torch

            check(config)
        self._accepted.update(overrides)
        if place:
            _write(place, {"config": config, "checked": self.check})
        return config

    def _composed(self, overrides: Sequence[str]) -> dict[str, Any]:
        """Each override is looked at closely once: `compose_config` says what is wrong with it, and takes longer."""
        if self._accepted.issuperset(overrides):
            try:
                with initialize_config_dir(str(config_dir()), version_base=VERSION_BASE):
                    return plain(compose("train", list(overrides)), strict=False)
            except (HydraException, OmegaConfBaseException):
                pass  # not together; told below
        return compose_config(overrides, strict=False)


def _place(overrides: Sequence[str]) -> Path | None:
    """None where the config depends on more than files and overrides."""
    if any("${" in line or line.lstrip("+~").startswith("hydra") for line in overrides):
        return None
    name = hashlib.sha256("\n".join(overrides).encode()).hexdigest()[:32]
    return _folder() / _state_of_the_files(config_dir()) / f"{name}.json"


def _folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dinoswap" / "cells"


@functools.cache
def _state_of_the_files(configs: Path) -> str:
    """A hash of what decides on a config and its check."""
    state = hashlib.sha256(f"{version('hydra-core')} {version('omegaconf')}".encode())
    folders = [configs, Path(__file__).parents[1], *(guest.configs.parent for guest in guests())]
    for path in sorted(path for folder in folders for path in folder.rglob("*") if path.suffix in (".py", ".yaml")):
        state.update(f"{path}\n".encode() + path.read_bytes())
    return state.hexdigest()[:16]


def _read(path: Path) -> dict[str, Any] | None:
    try:
        known = parse_object(read_small(path, CONFIG_BYTES))
        return known if {"config", "checked"} <= known.keys() else None
    except (OSError, ValueError):
        return None


def _write(path: Path, known: dict[str, Any]) -> None:
    """What was kept of another state of the files goes. Without a folder to write to nothing is kept."""
    try:
        if not path.parent.is_dir():
            path.parent.mkdir(parents=True)
            for other in set(_folder().iterdir()) - {path.parent}:
                shutil.rmtree(other, ignore_errors=True)
        write_atomically(path, json.dumps(known))
    except OSError:
        return
