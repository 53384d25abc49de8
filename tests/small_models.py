"""The trainer of `recipe=smoke`, batches for it that need no data, and the scripts in tools/."""

import importlib.util
import json
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import ModuleType

import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig
from torch import Tensor

from dinoswap.build import build_pipeline, build_trainer
from dinoswap.config.configuration import VERSION_BASE, config_dir, plain
from dinoswap.config.facts import build_source
from dinoswap.data.images import Images
from dinoswap.trainer import Trainer
from dinoswap.values import Batch, masked_positions

CENTERING = ["targets@objectives.dino.targets=centering", "targets@objectives.ibot.targets=centering"]


def composed(overrides: list[str]) -> DictConfig:
    """The config of `dinoswap-train <overrides>`."""
    with initialize_config_dir(str(config_dir()), version_base=VERSION_BASE):
        return compose("train", overrides)


def small_trainer(*overrides: str) -> Trainer:
    return build_trainer(plain(composed(["recipe=smoke", "trainer.device=cpu", *overrides])))


@cache
def _images(data: str) -> Images:
    """The training images of a section `data`, given as JSON: cutting the tiles takes longer than five steps."""
    return build_source({"data": json.loads(data)}).train()


def small_run(overrides: list[str]) -> tuple[Trainer, Callable[[int], list[Batch]]]:
    """The same on the images in the package, and its micro-batches of each step."""
    cfg = plain(composed(["recipe=smoke", "trainer.device=cpu", *overrides]))
    trainer = build_trainer(cfg)
    dataset = build_pipeline(cfg, trainer.model)(_images(json.dumps(cfg["data"])))
    mean, std = (torch.tensor(cfg["data"][key]) for key in ("mean", "std"))

    @cache
    def batches(step: int) -> list[Batch]:
        first = step * dataset.accumulate
        return [dataset[first + micro].normalised(mean, std) for micro in range(dataset.accumulate)]

    return trainer, batches


def small_batch(seed: int, images: int = 4) -> Batch:
    """Noise, with about a third of the patches masked."""
    generator = torch.Generator().manual_seed(seed)

    def noise(crops: int, side: int) -> Tensor:
        return torch.randn(crops, images, 3, side, side, generator=generator)

    mask = torch.rand(2, images, 16, generator=generator) < 0.3  # patches of 8 pixels in crops of 32
    return Batch(
        global_crops=noise(2, 32),
        local_crops=noise(2, 16),
        extra_crops=noise(0, 0),
        mask=mask,
        **masked_positions(mask),
        indices=torch.arange(images),
    )


def named_parameters(trainer: Trainer) -> dict[str, Tensor]:
    """The trained ones."""
    return dict(trainer.model.student.named_parameters())


def state_tensors(trainer: Trainer) -> dict[str, Tensor]:
    """A copy of all that a step changes: weights of student and teacher, centres, moments and step counts of AdamW."""
    state = trainer.state_dict()
    moments = {f"{name}/{key}": value for name, entry in state["optimizer"].items() for key, value in entry.items()}
    return {name: value.clone() for name, value in (state["model"] | moments).items()}


def load_tool(name: str) -> ModuleType:
    """tools/<name>.py as a module."""
    spec = importlib.util.spec_from_file_location(name, Path(__file__).parents[1] / "tools" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # where a dataclass looks for its own module
    spec.loader.exec_module(module)
    return module
