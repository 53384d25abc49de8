"""A job of Hydra finds out which run it is: once its images can be seen, and before its folder is there."""

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from dinoswap.config.configuration import plain
from dinoswap.config.facts import DataFacts, build_source
from dinoswap.config.identity import run_id
from dinoswap.data.images import ImageSource
from dinoswap.distributed import on_main, world_size
from dinoswap.run.earlier_runs import nearest, require_same_images
from dinoswap.run.run_folder import PLACE, folder_of, leave_word, own_identity, planned_id


@dataclass(frozen=True)
class Named:
    """A run before it begins: its folder, what decides its result but the seed, its images. `news` is what it has to do
    with runs that are there. `source`, on the main process, is open already."""

    folder: Path
    identity: dict[str, Any]
    data: DataFacts
    news: str | None
    source: ImageSource | None = None


def name_run(config: Mapping[str, Any]) -> Named:
    """By the first rank, which looks at the images. Raises ConfigError, on every rank, where these are not those that
    the run was begun on."""
    opened: list[ImageSource] = []

    def look() -> Named:
        opened.append(build_source(config))
        data = DataFacts.of(config, opened[0])
        own = own_identity(config, data, world_size())
        folder, news = folder_of(config, run_id(own), HydraConfig.get()), None
        if not (folder / "run.json").exists() and folder.parent.name == run_id(own):  # else it is where the user says
            require_same_images(folder.parents[1], config["seed"], own, asdict(data))
            news = nearest(folder.parents[1], own)
        leave_word(config, folder, own)
        return Named(folder, own, data, news)

    named = on_main(look)
    return replace(named, source=opened[0] if opened else None)


def launched_place(cfg: DictConfig) -> Path:
    """Where a launcher looks for this run, which cannot be named."""
    config = plain(cfg, strict=False)
    asked = os.environ.get(PLACE)
    return Path(asked) if asked else folder_of(config, planned_id(config), HydraConfig.get())
