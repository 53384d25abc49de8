"""Training begins from a released backbone, for the student and for the teacher; heads are seldom released with it."""

from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from dinoswap.files.checkpoint_folder import checkpoint_at
from dinoswap.files.weights import digest_of, weight_file
from dinoswap.start.base import Architecture, TrainedStart

if TYPE_CHECKING:
    from torch import nn

    from dinoswap.nn.vit import VisionTransformer
    from dinoswap.nn.weights.load import Weights

NEEDED = (
    "A run that is continued needs it too, as it is known by the content of what it began with, wherever that lies: "
    "give start.path=COPY. If none is left, begin another run from the run's own weights: start=run start.path=RUN"
)
"""What to do where the file is not there."""


class WeightsStart(TrainedStart):
    """The weights in a file of any layout that `nn/weights` reads, or in a folder with model.safetensors or its
    parts."""

    def __init__(
        self, *, path: str, architecture: Architecture, num_heads: int | None, freeze_backbone: int | float
    ) -> None:
        """`num_heads` is that of the file's network where the file does not say it; None for the 64 channels a head of
        published models."""
        super().__init__(path=path, architecture=architecture, freeze_backbone=freeze_backbone)
        self.num_heads = num_heads

    def digest(self) -> str:
        return digest_of(self.place)

    def backbone(self) -> dict[str, Any]:
        return self._weights.architecture

    def fill(self, place: str, networks: "nn.ModuleDict") -> None:
        super().fill(place, networks)
        if place == "objectives":
            return
        from dinoswap.nn.architecture import fitted
        from dinoswap.nn.weights.load import load_into

        weights, backbone = self._weights, cast("VisionTransformer", networks["backbone"])
        patch = weights.architecture["patch_size"]
        height, width = weights.architecture["img_size"]
        state = dict(weights.state)
        resampled = fitted(backbone, state, (height // patch, width // patch))
        load_into(backbone, state)
        self.lines.append(f"{place}.backbone: the weights of {self.path}{resampled}")
        if place == "student":
            others = ", ".join(f"{place}.{name}" for name in networks if name != "backbone")
            self.lines.append(f"{others}: fresh, as the file holds a backbone alone")

    def report(self) -> list[str]:
        weights = self._weights
        assumed = f"does not say, so as in published models: {', '.join(weights.assumed)}"
        notes = [*weights.notes, *([assumed] if weights.assumed else [])]
        return [*self.lines, *(f"{self.path}: {note}" for note in notes)]

    @property
    def place(self) -> Path:
        path = Path(self.path)
        if path.is_dir() and _is_run(path):
            raise ValueError(f"path={path}: is a run, no file of weights; choose start=run")
        try:
            return weight_file(self.path, "path")
        except ValueError as error:
            raise ValueError(f"{error}. {NEEDED}") from error

    @cached_property
    def _weights(self) -> "Weights":
        """Returns the backbone in the file. Raises ValueError, which begins with the key, where it cannot be read."""
        from dinoswap.nn.weights.load import load_backbone

        try:
            return load_backbone(self.place, self.num_heads)
        except ValueError as error:
            key = "" if str(error).startswith("path=") else "path: "
            raise ValueError(f"start.{key}{error}".replace("give num_heads", "give start.num_heads")) from error


def _is_run(path: Path) -> bool:
    """Tells whether a checkpoint of a run is at `path`."""
    try:
        return bool(checkpoint_at(path))
    except ValueError:
        return False
