"""Hydra's compositions, remembered: tests ask for the same configs again and again, and each costs 0.3 s of CPU, a
quarter of it for parsing the same files."""

import pickle
from pathlib import Path
from typing import Any

from hydra import version
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.sources_registry import SourcesRegistry
from hydra.core.plugins import Plugins
from hydra.core.utils import JobRuntime
from hydra.plugins.config_source import ConfigResult, ConfigSource
from omegaconf import DictConfig

from dinoswap.config.configuration import config_dir

_CONFIGS = f"file://{config_dir()}"
_compose = ConfigLoaderImpl.load_configuration
_known: dict[str, bytes] = {}
_files: dict[tuple[str, str], bytes] = {}


def remember_compositions() -> None:
    """From now on this process parses each file of configs/ once, and composes them once for each list of overrides.
    Every caller gets a config of its own. Where other folders are searched too, whose files a test may change, their
    files and such compositions are not remembered."""
    ConfigLoaderImpl.load_configuration = _load_configuration
    Plugins.instance()  # which registers the sources
    of_files = SourcesRegistry.instance().resolve("file")
    parse = of_files.load_config

    def load_config(self: ConfigSource, config_path: str) -> ConfigResult:
        if self.full_path() != _CONFIGS:
            return parse(self, config_path)
        asked = self.provider, config_path
        if asked not in _files:
            _files[asked] = pickle.dumps(parse(self, config_path))
        result: ConfigResult = pickle.loads(_files[asked])
        return result

    of_files.load_config = load_config


def _load_configuration(
    self: ConfigLoaderImpl, config_name: str | None, overrides: list[str], *rest: Any, **named: Any
) -> DictConfig:
    searched = [source.full_path() for source in self.get_sources() if source.scheme() == "file"]
    if searched != [_CONFIGS] or any("hydra.searchpath" in line for line in overrides):
        return _compose(self, config_name, overrides, *rest, **named)
    around = Path.cwd(), version.getbase(), JobRuntime.instance().conf
    asked = repr((config_name, overrides, rest, named, around))
    if asked not in _known:
        _known[asked] = pickle.dumps(_compose(self, config_name, overrides, *rest, **named))
    config: DictConfig = pickle.loads(_known[asked])
    return config
