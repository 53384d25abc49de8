"""The metric family `features`: statistics of the class tokens of the test images, which show a collapse."""

from collections.abc import Mapping
from typing import ClassVar

from dinoswap.metric.base import ImageMetric, Part, Score


class FeatureStatistics(ImageMetric):
    """Gives the statistics of `diagnostics.feature_diagnostics`. It needs neither labels nor training images."""

    reads = ("cls",)
    supervised = False
    scores: ClassVar[Mapping[str, Score]] = {
        "feature_std": Score("higher"),
        "rankme": Score("higher"),
        "rankme_max": Score(),
        "mean_cosine": Score("lower"),
    }

    def measure(self, train: Part | None, test: Part) -> Mapping[str, float]:
        from dinoswap.metric.diagnostics import feature_diagnostics

        return feature_diagnostics(test.features["cls"]) if len(test.labels) > 1 else {}

    def verdict(self, values: Mapping[str, float]) -> str | None:
        from dinoswap.metric.diagnostics import verdict

        return verdict(values)
