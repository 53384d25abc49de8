"""The base classes of start options: any, and one that begins from a network that was trained before.

Nothing here or at the head of an option imports torch, which takes seconds, so that a wrong value is refused before.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from dinoswap.optim.schedules import Schedule, steps, with_frozen_start

if TYPE_CHECKING:
    from torch import nn

    from dinoswap.nn.vit import VisionTransformer

Config = Mapping[str, Any]
Architecture = Literal["as_configured", "from_path"]
BACKBONE_LR = "backbone_lr"
"""The schedule of the backbone's lr where it is frozen at first."""


class Start:
    """An option of the group, and what most of them do: nothing."""

    def check(self, total: int) -> None:
        """Raises ValueError, which begins with the full key, for what does not fit into a run of `total` steps."""

    def digest(self) -> str | None:
        """Returns a hexadecimal digest of the weights to begin with, None where there are none. Raises ValueError,
        which begins with the name of the key, where they are not there."""
        return None

    def is_elsewhere(self) -> bool:
        """Tells whether the weights decide what the backbone is, and are not on this machine."""
        return False

    def completed(self, config: Config) -> Config:
        """Returns a resolved config with what these weights decide of it, unless they are elsewhere: a run is named
        where they are. Raises ValueError, with the full key, where they cannot be read."""
        return config

    def require(self, config: Config) -> None:
        """Raises ValueError where the backbone of a resolved config cannot begin with these weights."""

    def fill(self, place: str, networks: "nn.ModuleDict") -> None:
        """Is called with the networks of student, teacher and objectives, each at its initial weights, in this order;
        `place` is the name of theirs. Teacher and student are alike but for the objectives' own networks, and where
        objectives copy the teacher's, they do so before their turn. Raises ValueError for weights that do not fit."""

    def schedules(self, lr: Schedule, total: int) -> Mapping[str, Schedule]:
        """Returns own schedules over a run of `total` steps, by name; `lr` is that of the run."""
        return {}

    def report(self) -> list[str]:
        """Returns a line for each network on what it began with, once all are filled."""
        return []


class TrainedStart(Start, ABC):
    """Begins from the backbone at `path`. Raises ValueError for a value out of range."""

    def __init__(self, *, path: str, architecture: Architecture, freeze_backbone: int | float) -> None:
        """With `architecture` from_path the backbone is that of `path`, whatever the sections `model` and `position`
        say. `freeze_backbone` steps, or this share of the run, train all but the backbone."""
        if not path:
            raise ValueError("path='': names nothing; give a file, or start=random")
        self.path, self.architecture, self.freeze_backbone = path, architecture, freeze_backbone
        self.lines: list[str] = []
        """What `report` returns."""

    @abstractmethod
    def backbone(self) -> dict[str, Any]:
        """Returns the arguments of VisionTransformer that the backbone at `path` was made with, {} where they are not
        known."""

    @property
    @abstractmethod
    def place(self) -> Path:
        """The file or folder that is read. Raises ValueError, which begins with path=, where there is none."""

    def check(self, total: int) -> None:
        if self._frozen(total) > total:
            raise ValueError(
                f"start.freeze_backbone={self.freeze_backbone}: is longer than the run of trainer.max_steps={total}; "
                "give fewer steps, or a share of the run such as 0.1"
            )

    def is_elsewhere(self) -> bool:
        try:
            return self.architecture == "from_path" and not self.place
        except ValueError:
            return True

    def completed(self, config: Config) -> Config:
        if self.architecture == "as_configured" or self.is_elsewhere():
            return config
        from dinoswap.nn.architecture import completed

        return completed(config, self.backbone())

    def require(self, config: Config) -> None:
        from dinoswap.nn.architecture import require_same

        hint = "" if self.architecture == "from_path" else ", or start.architecture=from_path, which sets them all"
        self.lines += require_same(config, self.backbone(), f"start.path={self.path}", hint)

    def fill(self, place: str, networks: "nn.ModuleDict") -> None:
        if place == "student" and self.freeze_backbone:
            cast("VisionTransformer", networks["backbone"]).group_options = {"lr_schedule": BACKBONE_LR}

    def schedules(self, lr: Schedule, total: int) -> Mapping[str, Schedule]:
        return {BACKBONE_LR: with_frozen_start(lr, self._frozen(total))} if self.freeze_backbone else {}

    def report(self) -> list[str]:
        return self.lines

    def _frozen(self, total: int) -> int:
        """Returns the number of steps in which the backbone is frozen, of `total`."""
        return steps(self.freeze_backbone, total, "start.freeze_backbone")
