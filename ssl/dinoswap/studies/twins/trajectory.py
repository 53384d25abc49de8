"""The trajectory of the reference: the checkpoints of one run, along which the arms are compared."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from dinoswap.config.schema import ConfigError
from dinoswap.config.typed_paths import key_of
from dinoswap.files.checkpoint_folder import CheckpointError, listed
from dinoswap.run.run_folder import planned_id
from dinoswap.studies.composer import Composer
from dinoswap.studies.design import Cell
from dinoswap.studies.launch import launch
from dinoswap.studies.ledger import Entry, entries, run_statuses
from dinoswap.studies.overrides import combined
from dinoswap.studies.study import Study

POINTS = 5
"""How many checkpoints a trajectory that is trained here has, evenly spaced, the last at its end."""


def trajectory_of(study: Study, reference: Cell) -> Entry:
    """Returns the run of the study's first cell and first seed that keeps all its checkpoints. It is the run that the
    study itself has, in a folder of its own: how many checkpoints are kept decides no result."""
    every = max(int(reference.config["trainer"]["max_steps"]) // POINTS, 1)
    keeping = [
        f"trainer.checkpoint_every={every}",
        f"trainer.keep_checkpoints={POINTS + 1}",
        "trainer.checkpoint_minutes=0",
    ]
    overrides = combined(reference.overrides, keeping)
    config = Composer(check=True)(overrides)
    cell = replace(reference, overrides=tuple(overrides), config=config, run_id=planned_id(config))
    (entry,) = entries(replace(study, name=f"{study.name}_twins", seeds=study.seeds[:1]), [cell])
    return entry


def train_trajectory(entry: Entry, hydra_overrides: Sequence[str]) -> Path:
    """Trains the trajectory, or continues it, and returns its folder. Raises ConfigError where it does not come to its
    end."""
    (status,) = run_statuses([entry.folder])
    if status.state != "completed":
        launch([entry], hydra_overrides)
        (status,) = run_statuses([entry.folder])
    if status.state != "completed":
        raise ConfigError(f"the run of the reference is not complete ({status.words}); see {entry.folder}")
    return entry.folder


def checkpoints(run: Path) -> dict[int, Path]:
    """Returns the checkpoints of a run by step. Raises ConfigError for a folder without any."""
    try:
        steps = listed(run / "checkpoints")
    except CheckpointError as error:
        raise ConfigError(str(error)) from error
    if not steps:
        raise ConfigError(f"--from {run}: no run with checkpoints; give the folder of a run, results/runs/.../seed0")
    return steps


def require_one_start(study: Study) -> None:
    """Raises ConfigError for a study that varies what its runs begin from, as here all begin from the reference."""
    for factor, levels in study.factors.items():
        for line in (line for lines in levels.values() for line in lines):
            if key_of(line).partition(".")[0] == "start":
                raise ConfigError(
                    f"factors.{factor}: {line} varies what runs begin from, and here all arms begin from the reference"
                )
