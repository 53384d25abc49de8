"""The base class of sources of images with depth maps."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dinoswap.data.images import Images
from dinoswap.dense.base import Scenes


@dataclass(frozen=True)
class DepthRange:
    """The depths in metres that count, both ends included. Raises ValueError for a range that is none."""

    least: float
    greatest: float

    def __post_init__(self) -> None:
        if not 0 < self.least < self.greatest:
            raise ValueError(f"valid=[{self.least}, {self.greatest}]: the least depth, above 0, and a greater one")

    def known(self, depth: NDArray[np.floating]) -> NDArray[np.float32]:
        """Returns a depth map with NaN for what is no number or lies outside: [h, w] to float32 [h, w]."""
        inside = (depth >= self.least) & (depth <= self.greatest)
        return np.where(inside, depth, np.nan).astype(np.float32)


@dataclass(frozen=True)
class DepthParts:
    """Training and test scenes of one view each, whose truth is the depth of each pixel along the optical axis in
    metres: float32 [h, w], NaN where it is not known or not in `valid`, at a resolution of its own."""

    train: Scenes
    test: Scenes
    valid: DepthRange


class DepthSource(ABC):
    """Provides images with depth maps: the base class of the options of `depth`."""

    @abstractmethod
    def parts(self, train: Images, test: Images | None, size: int, patch: int) -> DepthParts | None:
        """Returns the scenes, None where they would be made of the evaluation's images and these do not allow it.
        `size` is the side in pixels that whole images are evaluated at; the sides of views are multiples of
        `patch`."""
