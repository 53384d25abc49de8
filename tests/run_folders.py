"""A run's folder after one step, without the run."""

from pathlib import Path

from omegaconf import OmegaConf

from dinoswap.build import build_trainer
from dinoswap.config.configuration import plain
from dinoswap.config.identity import identity
from dinoswap.run import checkpoint
from dinoswap.trainer import Trainer
from small_models import composed, small_batch


def write_run(folder: Path, *overrides: str) -> Trainer:
    """config.yaml and the checkpoints of steps 0 and 1 of `recipe=smoke`; the trainer that they are of."""
    config = plain(composed(["recipe=smoke", "trainer.device=cpu", "schedule.base_lr=1", *overrides]))
    folder.mkdir(parents=True)
    OmegaConf.save(OmegaConf.create(config), folder / "config.yaml")
    trainer = build_trainer(config)
    for step in range(2):
        if step:
            trainer.step(5, [small_batch(0)])  # past the warm-up
        checkpoint.save(folder / "checkpoints", step, trainer.state_dict(), config=identity(config), keep=2)
    return trainer
