"""The metric family `features`: statistics of the class tokens of the test images, which show a collapse."""

from collections.abc import Mapping
from typing import ClassVar

from dinoswap.metric.base import Extent, ImageMetric, Part, Score


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

    def flops(self, extent: Extent) -> float:
        """Singular values of [n, D] take 4 n D^2 - 4 D^3 / 3 (Golub and Van Loan, Matrix Computations), of either side
        the larger as n; the first rank computes them."""
        long, short = sorted((extent.test, extent.width), reverse=True)
        return 4.0 * long * short**2 - 4 / 3 * short**3

    def measure(self, train: Part | None, test: Part) -> Mapping[str, float]:
        from dinoswap.metric.diagnostics import feature_diagnostics

        return feature_diagnostics(test.features["cls"]) if len(test.labels) > 1 else {}

    def verdict(self, values: Mapping[str, float]) -> str | None:
        from dinoswap.metric.diagnostics import verdict

        return verdict(values)
