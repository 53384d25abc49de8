"""Training begins from a run: whatever of its newest checkpoint fits into another configuration.

Student and teacher each get the backbone, its position table resampled to another size of crops, the heads and the
networks of objectives; objectives their centres. What the run does not have, or has in another shape, is fresh. Moments
of the optimiser, schedules and the count of steps begin anew.
"""

from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import yaml

from dinoswap.files.checkpoint_folder import CheckpointError, checkpoint_at, digest
from dinoswap.files.reading import CONFIG_BYTES, read_small
from dinoswap.files.weights import weights_in
from dinoswap.start.base import Architecture, TrainedStart

if TYPE_CHECKING:
    from torch import Tensor, nn

    from dinoswap.files.checkpoint import Checkpoint
    from dinoswap.objectives.base import Objective

STATE = "model"
"""The entry of a checkpoint's state with all networks."""


class RunStart(TrainedStart):
    """The newest checkpoint of the run folder `path`, or the checkpoint `path`."""

    def __init__(self, *, path: str, architecture: Architecture, freeze_backbone: int | float) -> None:
        super().__init__(path=path, architecture=architecture, freeze_backbone=freeze_backbone)
        self._taken: set[str] = set()

    def digest(self) -> str:
        return digest(self.place)

    def backbone(self) -> dict[str, Any]:
        """Returns what the run's config.yaml says, {} where the checkpoint lies elsewhere."""
        from dinoswap.nn.architecture import configured

        path = self.place.parents[1] / "config.yaml"
        if not path.is_file():
            return {}
        try:
            return configured(yaml.safe_load(read_small(path, CONFIG_BYTES)))
        except (yaml.YAMLError, LookupError, TypeError, AttributeError, ValueError) as error:
            reason = " ".join(str(error).split())
            raise ValueError(f"start.path={self.path}: {path} is not the config of a run ({reason})") from error

    def fill(self, place: str, networks: "nn.ModuleDict") -> None:
        super().fill(place, networks)
        for name, network in networks.items():
            if network.state_dict():
                obstacle = self._obstacle(name, cast("Objective", network)) if place == "objectives" else ""
                self.lines.append(f"{place}.{name}: {self._begin(f'{place}.{name}', network, obstacle)}")

    def report(self) -> list[str]:
        left = sorted({".".join(name.split(".")[:2]) for name in self._left})
        return [*self.lines, *(f"{network}: left out, as this run has none" for network in left)]

    def _begin(self, network_name: str, network: "nn.Module", obstacle: str) -> str:
        """Copies the run's tensors into a network, unless there is an obstacle, and returns in words what was done.
        Raises ValueError for a backbone that does not fit."""
        from dinoswap.nn.architecture import fitted
        from dinoswap.nn.weights.names import misfits, some

        prefix = f"{network_name}."
        names = [name for name in self._left if name.startswith(prefix)]
        tensors = {name.removeprefix(prefix): self._left.pop(name) for name in names}
        if not tensors or obstacle:
            return f"fresh, as {obstacle if tensors else 'the run has none'}"
        resampled = fitted(network, tensors)
        if problems := misfits(network.state_dict(), tensors):
            if network_name.endswith(".backbone"):
                raise ValueError(f"start.path={self.path}: {network_name} does not fit: {some(problems)}")
            return f"fresh, as in the run {some(problems, 3)}"
        network.load_state_dict(tensors)
        self._taken.add(network_name)
        return f"taken{resampled}"

    def _obstacle(self, name: str, objective: "Objective") -> str:
        """Returns why the state of an objective cannot be the run's, "" where it can."""
        own = {f"{name}.{key}": value for key, value in objective.identity().items()}
        if any(self._checkpoint.config.get(key) != value for key, value in own.items()):
            return "it has frozen weights of its own, and other ones than in the run"
        head = getattr(objective, "head", None)
        return f"teacher.{head} is" if head and f"teacher.{head}" not in self._taken else ""

    @property
    def place(self) -> Path:
        path = Path(self.path)
        if weights_in(path).is_file():
            raise ValueError(f"path={path}: is a file of weights, no run; choose start=weights")
        try:
            return checkpoint_at(path)
        except (ValueError, CheckpointError) as error:
            raise ValueError(f"path={path}: {error}") from error

    @cached_property
    def _checkpoint(self) -> "Checkpoint":
        """Returns the checkpoint at `place`, of which the state alone is read."""
        from dinoswap.files.checkpoint import read

        return read(self.place, part=STATE)

    @cached_property
    def _left(self) -> "dict[str, Tensor]":
        """The tensors that no network has been offered yet."""
        return dict(self._checkpoint.state[STATE])
