"""Names the run of a Hydra job, once its images can be read and before its folder exists, and for people."""

import os
import textwrap
from collections.abc import Mapping, Sequence
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
from dinoswap.run.run_folder import PLACE, folder_of, own_identity, planned_id, write_pointers
from dinoswap.run.title import title_of

LONGEST = 100
"""Characters of a readable name before its seed, as wandb takes no more than 128 in all."""


@dataclass(frozen=True)
class Named:
    """A run before it begins: its folder, the identity that decides its result together with the seed, and its images.
    `near_duplicate` tells which existing run is nearly the same. `source` is the open image source, on the main process
    only."""

    folder: Path
    identity: dict[str, Any]
    data: DataFacts
    near_duplicate: str | None
    source: ImageSource | None = None


def name_run(config: Mapping[str, Any]) -> Named:
    """Returns the named run, on every rank; the first rank reads the images to name it. Raises ConfigError, on every
    rank, where the run was begun on other images."""
    opened: list[ImageSource] = []

    def named_by_main() -> Named:
        opened.append(build_source(config))
        data = DataFacts.of(config, opened[0])
        identity = own_identity(config, data, world_size())
        folder, near_duplicate = folder_of(config, run_id(identity), HydraConfig.get()), None
        if not (folder / "run.json").exists() and folder.parent.name == run_id(
            identity
        ):  # otherwise the user chose the folder
            require_same_images(folder.parents[1], config["seed"], identity, asdict(data))
            near_duplicate = nearest(folder.parents[1], identity)
        write_pointers(config, folder, identity)
        return Named(folder, identity, data, near_duplicate)

    named = on_main(named_by_main)
    return replace(named, source=opened[0] if opened else None)


def launched_place(cfg: DictConfig) -> Path:
    """Returns the folder where a launcher looks for this run when the run cannot be named."""
    config = plain(cfg, strict=False)
    launcher_folder = os.environ.get(PLACE)
    return Path(launcher_folder) if launcher_folder else folder_of(config, planned_id(config), HydraConfig.get())


def readable_name(choices: Mapping[str, str], overrides: Sequence[str], seed: int) -> str:
    """Returns a name for people, such as "official masking=bernoulli seed 0", of about LONGEST letters at most."""
    return f"{textwrap.shorten(title_of(choices, overrides), LONGEST, placeholder=' …')} seed {seed}".strip()
