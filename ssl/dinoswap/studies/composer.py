"""The configs of a study's cells, composed, checked and remembered.

Composing a config takes a tenth of a second, explaining what is wrong with an override takes longer, and the check of
the settings imports torch: too slow for a table of what is running. So accepted configs are kept in the user's cache
folder, one file per set of overrides, until a file of the configs or of the package changes.
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
from dinoswap.config.sections import with_its_backbone
from dinoswap.files.reading import CONFIG_BYTES, parse_object, read_small
from dinoswap.files.writing import write_atomically


class Composer:
    """Composes the configs of cells from their overrides, and caches those that are accepted.

    With `check` they also pass `settings.check`, and a run can be built of them. An environment variable that only
    compute nodes have stays as it is written in the config.
    """

    def __init__(self, check: bool) -> None:
        self.check = check
        self._accepted: set[str] = set()

    def __call__(self, overrides: Sequence[str]) -> dict[str, Any]:
        """Returns the resolved config. Raises ConfigError for overrides that cannot be composed or are refused."""
        cache_file = _cache_file(overrides)
        cached = _read_cache(cache_file) if cache_file else None
        if cached is not None and (cached["checked"] or not self.check):
            return dict(cached["config"])
        config = self._composed(overrides) if cached is None else dict(cached["config"])
        first_check(config)
        if self.check:
            from dinoswap.config.settings import check  # imports torch, as does the next
            from dinoswap.run.buildable import require_buildable

            check(config)
            require_buildable(config)
        self._accepted.update(overrides)
        if cache_file:
            _write_cache(cache_file, {"config": config, "checked": self.check})
        return config

    def _composed(self, overrides: Sequence[str]) -> dict[str, Any]:
        """Returns the composed config. `compose_config` says what is wrong with an override but is slow, so it is not
        called where every override was accepted before."""
        if self._accepted.issuperset(overrides):
            try:
                with initialize_config_dir(str(config_dir()), version_base=VERSION_BASE):
                    return dict(with_its_backbone(plain(compose("train", list(overrides)), strict=False)))
            except (HydraException, OmegaConfBaseException):
                pass  # accepted one by one, but not together: compose_config says why
        return compose_config(overrides, strict=False)


def _cache_file(overrides: Sequence[str]) -> Path | None:
    """Returns the cache file of these overrides, or None where the config depends on more than files and overrides."""
    if any("${" in line or line.lstrip("+~").startswith(("hydra", "start.architecture")) for line in overrides):
        return None
    name = hashlib.sha256("\n".join(overrides).encode()).hexdigest()[:32]
    return _cache_folder() / _source_hash(config_dir()) / f"{name}.json"


def _cache_folder() -> Path:
    """Returns the folder of composed cells, which all studies of a user share."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dinoswap" / "cells"


@functools.cache
def _source_hash(configs: Path) -> str:
    """Returns a hash of all that a config and its check depend on: versions, config files and source files."""
    digest = hashlib.sha256(f"{version('hydra-core')} {version('omegaconf')}".encode())
    folders = [configs, Path(__file__).parents[1], *(guest.configs.parent for guest in guests())]
    for path in sorted(path for folder in folders for path in folder.rglob("*") if path.suffix in (".py", ".yaml")):
        digest.update(f"{path}\n".encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def _read_cache(path: Path) -> dict[str, Any] | None:
    """Returns the cached config of a cell; None where there is none that can be read."""
    try:
        cached = parse_object(read_small(path, CONFIG_BYTES))
        return cached if {"config", "checked"} <= cached.keys() else None
    except (OSError, ValueError):
        return None


def _write_cache(path: Path, cached: dict[str, Any]) -> None:
    """Writes a cache file and removes those of other states of the sources. Without a writable folder it does
    nothing."""
    try:
        if not path.parent.is_dir():
            path.parent.mkdir(parents=True)
            for other in set(_cache_folder().iterdir()) - {path.parent}:
                shutil.rmtree(other, ignore_errors=True)
        write_atomically(path, json.dumps(cached))
    except OSError:
        return
