"""Arms of the axes for tests: small trainers, and the batches that their own pipeline makes of a few small images."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dinoswap.build import build_pipeline, build_trainer
from dinoswap.config.command_line import compose_config
from dinoswap.config.configuration import config_dir, flatten
from dinoswap.config.explain import presets
from dinoswap.trainer import Trainer
from dinoswap.values import Batch

PRESETS = list(presets())
FLIPS = sorted(path.stem for path in (config_dir() / "flip").glob("*.yaml") if path.stem != "none")
SMALL = [
    "recipe=smoke", "trainer.device=cpu", "data.batch_size=4", "crops.local_size=8", "crops.global_size=32",
    "heads.dino_head.prototypes=16", "heads.ibot_head.prototypes=16", "objectives.clustering.prototypes=16",
]  # fmt: skip


class Noise:
    """Images as the trainer's pipeline reads them: 16 of uniform noise."""

    blocks = (16,)

    def __len__(self) -> int:
        return 16

    def load(self, row: int) -> NDArray[np.uint8]:
        return np.random.default_rng(row).integers(0, 256, (40, 48, 3), dtype=np.uint8)

    def name(self, row: int) -> str:
        return str(row)


class Arm:
    """The trainer of some overrides, and its batches."""

    def __init__(self, *overrides: str) -> None:
        self.config = compose_config([*SMALL, *overrides])
        self.trainer: Trainer = build_trainer(self.config)
        self.dataset = build_pipeline(self.config, self.trainer.model)(Noise())  # type: ignore[arg-type]

    def raw_batch(self, step: int) -> Batch:
        return self.dataset[step]

    def batch(self, step: int) -> Batch:
        return self.raw_batch(step).normalised(torch.full((3,), 0.5), torch.full((3,), 0.25))

    def step(self, step: int) -> dict[str, Tensor]:
        return self.trainer.step(step, [self.batch(step)])

    def weights(self) -> dict[str, Tensor]:
        return {name: value.clone() for name, value in self.trainer.model.state_dict().items()}


def differing_keys(a: Arm, b: Arm) -> set[str]:
    """Keys of the resolved config with another value."""
    one, other = flatten(a.config), flatten(b.config)
    return {key for key in one.keys() | other.keys() if one.get(key) != other.get(key)}
