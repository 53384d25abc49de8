"""The base classes of metric families, and the description of each number that a family gives.

A family is an option of the group `metric`: a module here and a YAML in configs/metric. Everything else asks the
family: the evaluator which images and features to read, the table which columns to show, studies and searches which
names exist and which direction is better. So that a name can be checked in a moment, no module of a family imports
torch at its top; it imports the functions that compute its numbers when it measures.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from dinoswap.dense.base import Scene, SceneParts

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from dinoswap.data.images import Images

WHOLE = "whole"
"""The kind of the only features that a baseline has: of a whole image, neither a class token nor patches."""


@dataclass(frozen=True)
class Score:
    """Describes one number. `better` is None for a number that should be neither high nor low.

    `column` is the heading of the number in the table of results, "" where it has none. A baseline has features of
    whole images only: `of_whole` names the number that stands for it in this column.
    """

    better: Literal["higher", "lower"] | None = None
    unit: str = ""
    column: str = ""
    of_whole: str = ""


class Metric(ABC):
    """A family of metrics. A subclass is an `ImageMetric`, of features of whole images, or a `DenseMetric`, of patch
    tokens.

    `scores` describes each number by the name that follows `eval/` in run.json. A name with a slash, as
    "seg_iou/grass", is one of many that are described together by what is before the slash. A `supervised` family is
    measured where training and test images have labels of at least two classes, and then also on the network's initial
    weights and on the baselines.
    """

    scores: ClassVar[Mapping[str, Score]]
    supervised: ClassVar[bool]

    def __init__(self, *, in_loop: bool) -> None:
        """`in_loop`: whether the family belongs to the quick evaluations while training too."""
        self.in_loop = in_loop

    def obstacle(self, evaluation: Mapping[str, Any]) -> str:
        """Returns what the section `evaluation` would have to say for the family to be measured, "" where it is."""
        return ""

    def verdict(self, values: Mapping[str, float]) -> str | None:
        """Returns a sentence on what these numbers show to be wrong, None where nothing is."""
        return None

    def require_described(self, values: Iterable[str]) -> None:
        """Raises ValueError for the name of a number that `scores` does not describe."""
        if unknown := sorted(name for name in values if name.partition("/")[0] not in self.scores):
            raise ValueError(f"{type(self).__name__}: gives {unknown[0]}, which its `scores` do not describe")


@dataclass(frozen=True)
class Part:
    """Holds the features of the training or of the test images by kind, float32 [n, D] or [n, N, D] on the CPU, and
    their labels, int64 [n], -1 in a data set without labels. `device` is where numbers can be computed from them."""

    features: "Mapping[str, Tensor]"
    labels: "Tensor"
    device: "torch.device | str" = "cpu"


@dataclass(frozen=True)
class Extent:
    """Holds how much a family measures on one row of the table: the numbers of training images, of test images and of
    classes, and how many kinds of features there are, all of one width."""

    train: int
    test: int
    classes: int
    kinds: int
    width: int


class ImageMetric(Metric):
    """A family that reads features of the evaluation's images. `reads` are the kinds of features that it needs
    (`evaluation.features.KINDS`)."""

    reads: ClassVar[tuple[str, ...]]

    def shares_work(self, device: "torch.device | str") -> bool:
        """Tells whether all ranks call `measure` together, each with the same features, and return the same numbers.
        Otherwise the first one calls it while the others wait. `device` is that of the features' parts."""
        return False

    def flops(self, extent: Extent) -> float | None:
        """Returns the largest number of floating-point operations that `measure` takes on GPUs, of all ranks together;
        None where it is not known. tools/plan.py makes seconds of it."""
        return None

    @abstractmethod
    def measure(self, train: Part | None, test: Part) -> Mapping[str, float]:
        """Returns numbers by name, at most those of `scores`. `train` is None unless the family is supervised."""


class DenseMetric(Metric):
    """A family that reads the patch tokens of scenes of its own, a batch of scenes at a time: what is known of their
    pixels is compared with what a classifier, which is fitted on the tokens of training scenes, or a rule says of them.

    Tokens are float32 [n, V, rows, columns, D] on the CPU, of the V views of n scenes; `truth` holds an array for each.
    On several ranks each reads a part of the scenes; `fit` is called on the first alone, and what it returns is sent to
    the others by pickle. So no tokens are kept but those that `keep` returns.
    """

    @abstractmethod
    def scenes(self, train: "Images", test: "Images | None", size: int, patch: int) -> SceneParts | None:
        """Returns the scenes, or None where the images do not allow any, as when they have no labels. `size` is the
        side in pixels that whole images are evaluated at, `patch` that of a patch, of which sides are multiples. It is
        called for each size that is evaluated: the views of the same scenes, which `size` scales."""

    def keep(self, tokens: "Tensor", truth: Sequence[NDArray[Any]], first: int) -> "Mapping[str, Tensor]":
        """Returns what is kept of a batch of training scenes to be fitted on, equal names for each batch, which are
        concatenated along the first dimension. `first` is the index of the first scene."""
        return {}

    def fit(self, kept: "Mapping[str, Tensor]") -> Any:
        """Returns what `judge` needs, from what was kept of all training scenes; None where nothing is fitted."""
        return None

    @abstractmethod
    def judge(self, fitted: Any, tokens: "Tensor", truth: Sequence[NDArray[Any]]) -> "Tensor":
        """Returns counts of a batch of test scenes, float64 of any shape, which are added up over batches."""

    @abstractmethod
    def values(self, counts: "Tensor") -> Mapping[str, float]:
        """Returns numbers by name from the sum of all counts."""

    def pictures(self, fitted: Any, tokens: "Tensor", scenes: Sequence[Scene]) -> "Mapping[str, NDArray[np.uint8]]":
        """Returns pictures, uint8 [H, W, 3], by name, of a few test scenes and their tokens."""
        return {}
