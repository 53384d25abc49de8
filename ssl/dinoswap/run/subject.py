"""What a command is asked to read a backbone from: a run, one of its checkpoints, or a weight file.

Nothing here imports torch before a checkpoint is read, so that a wrong path is refused at once.
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dinoswap.config.command_line import compose_config
from dinoswap.config.schema import ConfigError
from dinoswap.config.stored import read_config
from dinoswap.files.checkpoint_folder import CheckpointError
from dinoswap.files.weights import preparation_of, weights_in

if TYPE_CHECKING:
    from dinoswap.files.checkpoint import Checkpoint

Config = dict[str, Any]


@dataclass(frozen=True)
class Subject:
    """A checkpoint of a run with its resolved config, or a weight file with the default config."""

    path: Path
    config: Config
    run: Path | None  # None for a weight file, and then there is no checkpoint
    trained: "Checkpoint | None"

    @classmethod
    def find(cls, path: Path) -> "Subject":
        """Returns the run, checkpoint or weight file at `path`. Raises ConfigError when there is none, CheckpointError
        for a damaged checkpoint."""
        config, run = config_of(path)
        if run is None:
            return cls(path, config, None, None)
        from dinoswap.run import checkpoint

        return cls(path, config, run, newest(run) if path == run else checkpoint.read(path))

    @property
    def checkpoint(self) -> "Checkpoint":
        """The checkpoint. Raises ConfigError for a weight file, which has none."""
        if self.trained is None:
            raise ConfigError(f"{self.path}: is a file; give a run folder or a checkpoint in one")
        return self.trained


def newest(run: Path) -> "Checkpoint":
    """Reads the newest intact checkpoint of a run. Raises CheckpointError where there is none."""
    from dinoswap.run import checkpoint

    loaded = checkpoint.newest(run / "checkpoints", lambda sentence: print(sentence, file=sys.stderr))
    if loaded is None:
        raise CheckpointError(f"{run}: no whole checkpoint in its folder checkpoints; train it first")
    return loaded


def config_of(path: Path) -> tuple[Config, Path | None]:
    """Returns the config that a run folder, or a checkpoint in one, was trained with, and the run folder; for a weight
    file, or a folder with one, the default config, with the mean and std that it says, and None. Raises ConfigError
    where `path` is none of these."""
    weights = weights_in(path)
    if weights.is_file():
        config = default_config()
        preparation = preparation_of(weights)
        config["data"] |= {name: preparation[name] for name in ("mean", "std") if name in preparation}
        return config, None
    run = path if (path / "config.yaml").is_file() else path.parent.parent
    if not (run / "config.yaml").is_file():
        raise ConfigError(f"{path}: neither a run folder (with config.yaml), a checkpoint in one, nor a weight file")
    return read_config(run / "config.yaml"), run


def default_config() -> Config:
    """Returns the config of dinoswap-train without overrides, but at full precision, as published accuracies are those
    of float32."""
    return compose_config(["trainer.precision=fp32"])
