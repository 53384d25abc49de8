"""Hydra's compositions, remembered: tests ask for the same configs again and again, and each costs 0.2 s of CPU."""

import pickle
from pathlib import Path
from typing import Any

from hydra import version
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.utils import JobRuntime
from omegaconf import DictConfig

from dinoswap.config.configuration import config_dir

_compose = ConfigLoaderImpl.load_configuration
_known: dict[str, bytes] = {}


def remember_compositions() -> None:
    """From now on this process composes the files of configs/ once for each list of overrides. Every caller gets a
    config of its own. Where other folders are searched too, whose files a test may change, nothing is remembered."""
    alone = [f"file://{config_dir()}"]

    def load_configuration(
        self: ConfigLoaderImpl, config_name: str | None, overrides: list[str], *rest: Any, **named: Any
    ) -> DictConfig:
        searched = [source.full_path() for source in self.get_sources() if source.scheme() == "file"]
        if searched != alone or any("hydra.searchpath" in line for line in overrides):
            return _compose(self, config_name, overrides, *rest, **named)
        around = Path.cwd(), version.getbase(), JobRuntime.instance().conf
        asked = repr((config_name, overrides, rest, named, around))
        if asked not in _known:
            _known[asked] = pickle.dumps(_compose(self, config_name, overrides, *rest, **named))
        config: DictConfig = pickle.loads(_known[asked])
        return config

    ConfigLoaderImpl.load_configuration = load_configuration
