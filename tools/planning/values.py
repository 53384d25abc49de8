"""What is planned, and the plan."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

Config = Mapping[str, Any]


@dataclass(frozen=True)
class Request:
    """What is planned besides the config."""

    gpu: str
    gpus: int
    sharding: str
    utilisation: float
    runs: int
    price: float | None  # of a GPU hour
    evaluated: tuple[int, int, int] | None = None  # training images, test images and classes of the final evaluation


@dataclass(frozen=True)
class Plan:
    """Bytes are per GPU. `memory` is at the peak of a step, by part, for activation checkpointing off and on."""

    overrides: list[str]
    request: Request
    precision: str
    checkpointing: bool
    images_per_step: int
    images_per_gpu: int  # of one micro-batch
    masked_tokens_per_gpu: int
    parameters: dict[str, int]
    flops_per_image: float
    recomputed_flops_per_image: float
    frozen_flops_per_image: float
    memory: dict[str, dict[str, int]]
    largest_logits: int
    communication: dict[str, float]  # bytes sent per step
    seconds: dict[str, float]  # of a step
    study: dict[str, float | None]
    evaluation: dict[str, float]  # seconds of its parts; empty where it is not planned

    @property
    def memory_bytes(self) -> int:
        """The bytes on each GPU at the peak, with activation checkpointing as the config has it."""
        return sum(self.memory["on" if self.checkpointing else "off"].values())
