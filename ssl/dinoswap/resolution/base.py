"""The base class of resolution options: the crop sizes that the steps of a run have, and which of them a step has."""

from abc import ABC, abstractmethod
from typing import NamedTuple


class StepSizes(NamedTuple):
    """Sides in pixels of the square crops of a step, and the share of the steps that have them."""

    global_size: int
    local_size: int
    share: float


class Resolution(ABC):
    """An option of the group."""

    @abstractmethod
    def sizes(self, global_size: int, local_size: int) -> list[StepSizes]:
        """Returns the sizes that a step may have, where these are those in `crops`. Their shares sum to 1."""

    @abstractmethod
    def index(self, seed: int, step: int) -> int:
        """Returns which of `sizes` the step has in a run with this seed. All ranks and micro-batches have the same."""
