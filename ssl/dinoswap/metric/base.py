"""The base class of metric families, and the description of each number that a family gives.

A family is an option of the group `metric`: a module here and a YAML in configs/metric. Everything else asks the
family: the evaluator which features to read, the table which columns to show, studies and searches which names exist
and which direction is better. So that a name can be checked in a moment, no module of a family imports torch at its
top; it imports the functions that compute its numbers when it measures.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

if TYPE_CHECKING:
    from torch import Tensor

WHOLE = "whole"
"""The kind of the only features that a baseline has: of a whole image, neither a class token nor patches."""


@dataclass(frozen=True)
class Score:
    """Describes one number. `better` is None for a number that should be neither high nor low.

    `column` is the heading of the number in the table of accuracies, "" where it has none. A baseline has features of
    whole images only: `of_whole` names the number that stands for it in this column.
    """

    better: Literal["higher", "lower"] | None = None
    unit: str = ""
    column: str = ""
    of_whole: str = ""


@dataclass(frozen=True)
class Part:
    """Holds the features of the training or of the test images by kind, float32 [n, D] or [n, N, D] on the CPU, and
    their labels, int64 [n], -1 in a data set without labels."""

    features: "Mapping[str, Tensor]"
    labels: "Tensor"


class Metric(ABC):
    """A family of metrics.

    `scores` describes each number by the name that follows `eval/` in run.json. `reads` are the kinds of features that
    it needs (`evaluation.features.KINDS`). A `supervised` family is measured where training and test images have labels
    of at least two classes, and then also on the network's initial weights and on the baselines.
    """

    scores: ClassVar[Mapping[str, Score]]
    reads: ClassVar[tuple[str, ...]]
    supervised: ClassVar[bool]

    def __init__(self, *, in_loop: bool) -> None:
        """`in_loop`: whether the family belongs to the quick evaluations while training too."""
        self.in_loop = in_loop

    def obstacle(self, evaluation: Mapping[str, Any]) -> str:
        """Returns what the section `evaluation` would have to say for the family to be measured, "" where it is."""
        return ""

    @abstractmethod
    def measure(self, train: Part | None, test: Part) -> Mapping[str, float]:
        """Returns numbers by name, at most those of `scores`. `train` is None unless the family is supervised."""

    def verdict(self, values: Mapping[str, float]) -> str | None:
        """Returns a sentence on what these numbers show to be wrong, None where nothing is."""
        return None
