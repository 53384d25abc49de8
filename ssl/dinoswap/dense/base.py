"""The base class of sources of images whose every pixel has a class, on which segmentation is judged."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

from dinoswap.data.images import Images
from dinoswap.metric.base import Scenes

IGNORE = -1
"""The class of pixels that are neither learnt from nor judged."""


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
