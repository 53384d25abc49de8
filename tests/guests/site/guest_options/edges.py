"""How strongly neighbouring patches differ: the mean distance of patch tokens from the token before them."""

from collections.abc import Mapping
from typing import ClassVar

from dinoswap.metric.base import ImageMetric, Part, Score


class Edges(ImageMetric):
    scores: ClassVar[Mapping[str, Score]] = {"edges": Score("lower", column="edges")}
    reads = ("patch",)
    supervised = False

    def measure(self, train: Part | None, test: Part) -> Mapping[str, float]:
        return {"edges": float(test.features["patch"].diff(dim=1).norm(dim=-1).mean())}
