"""Arms of the axes for tests: small trainers, and the batches that their own pipeline makes of a few small images."""

import itertools
import random
from collections.abc import Iterator, Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dinoswap.build import build_pipeline, build_trainer
from dinoswap.config.command_line import compose_config
from dinoswap.config.configuration import flatten
from dinoswap.config.explain import options, presets
from dinoswap.trainer import Trainer
from dinoswap.values import Batch
from fixtures import DA3

PRESETS = list(presets())
AXES = list(presets()["official"])
OPTIONS = {axis: [option.name for option in options(axis)] for axis in AXES}
SMALL = [
    "recipe=smoke", "trainer.device=cpu", "data.batch_size=4", "crops.local_size=8", "crops.global_size=32",
    "heads.dino_head.prototypes=16", "heads.ibot_head.prototypes=16", "objectives.clustering.prototypes=16",
]  # fmt: skip


Pairs = set[frozenset[tuple[str, str]]]


def pairs_of(arm: Mapping[str, str]) -> Pairs:
    return {frozenset(pair) for pair in itertools.combinations(arm.items(), 2)}


def covering_arms(options: Mapping[str, list[str]], seed: int = 0) -> Iterator[dict[str, str]]:
    """Choices for every axis, such that each pair of options of two axes occurs: greedy, of some random candidates."""
    generator = random.Random(seed)
    left: Pairs = set()
    for a, b in itertools.combinations(options, 2):
        left |= {frozenset([(a, x), (b, y)]) for x, y in itertools.product(options[a], options[b])}
    while left:
        first = dict(generator.choice(sorted(sorted(pair) for pair in left)))
        candidates = [{axis: generator.choice(names) for axis, names in options.items()} | first for _ in range(50)]
        covers = [left & pairs_of(arm) for arm in candidates]
        best = max(range(len(covers)), key=lambda index: len(covers[index]))
        left -= covers[best]
        yield candidates[best]


PAIRWISE = list(covering_arms(OPTIONS))
"""One choice for each axis in each, all pairs of options in some."""


def teacher_of(option: str) -> list[str]:
    """The settings of a small teacher for this option of da3."""
    return [f"da3.ckpt_path={DA3 / 'da3_tiny.safetensors'}", "da3.projector_hidden_dim=32"] * (option == "enabled")


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


class PairwiseArm(Arm):
    """One of PAIRWISE. `overrides` are its choices as typed."""

    def __init__(self, choices: Mapping[str, str]) -> None:
        self.overrides = [f"{axis}={option}" for axis, option in choices.items()]
        super().__init__(*self.overrides, *teacher_of(choices["da3"]))


def differing_keys(a: Arm, b: Arm) -> set[str]:
    """Keys of the resolved config with another value."""
    one, other = flatten(a.config), flatten(b.config)
    return {key for key in one.keys() | other.keys() if one.get(key) != other.get(key)}
