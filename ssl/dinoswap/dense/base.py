"""Scenes, which are images of whose pixels something is known, and the base class of sources of annotated ones."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from dinoswap.data.images import Images

IGNORE = -1
"""The class of pixels that are neither learnt from nor judged."""


@dataclass(frozen=True)
class Scene:
    """One or several images of equal size, uint8 [V, 3, H, W], and what is known of their pixels or patches, in the
    form that the family understands which made it."""

    views: NDArray[np.uint8]
    truth: NDArray[Any]


class Scenes(Protocol):
    """A finite list of scenes that is read at random positions, by several processes."""

    shape: tuple[int, int, int]
    """V, H, W of every scene."""

    def __len__(self) -> int: ...

    def load(self, index: int) -> Scene:
        """Returns a scene, the same each time. Raises CorruptImage when an image of it cannot be decoded."""
        ...


@dataclass(frozen=True)
class SceneParts:
    """The scenes that a family fits its classifier on, None where it fits none, and those it is judged on."""

    train: Scenes | None
    test: Scenes


@dataclass(frozen=True)
class AnnotatedParts:
    """Training and test scenes of one view each, whose truth is the class of each pixel: int16 [h, w], IGNORE or an
    index of `classes`, at a resolution of its own."""

    train: Scenes
    test: Scenes
    classes: Sequence[str]


class AnnotatedSource(ABC):
    """Provides annotated images: the base class of the options of `dense`."""

    @abstractmethod
    def parts(self, train: Images, test: Images | None, size: int, patch: int) -> AnnotatedParts | None:
        """Returns the scenes, None where they would be made of the evaluation's images and these do not allow it.
        `size` is the side in pixels that whole images are evaluated at; the sides of views are multiples of `patch`.
        Raises ValueError for a size that is none."""
