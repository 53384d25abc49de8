"""The metric family `linear`: the accuracy of a logistic regression on the class token and on the patches' mean."""

from collections.abc import Mapping
from typing import Any, ClassVar

from dinoswap.metric.base import WHOLE, ImageMetric, Part, Score

NAMES = {"cls": "linear_", "patch_mean": "linear_patch_", WHOLE: "linear_"}
"""Kind of features -> the beginning of their metrics' names."""


class LinearProbe(ImageMetric):
    """Gives top-1 accuracies in per cent, and C, the inverse strength of the penalty that was picked for each."""

    reads = ("cls", "patch_mean")
    supervised = True
    scores: ClassVar[Mapping[str, Score]] = {
        "linear_top1": Score("higher", "%", "linear CLS", of_whole="linear_top1"),
        "linear_patch_top1": Score("higher", "%", "linear patch mean", of_whole="linear_top1"),
        "linear_c": Score(),
        "linear_patch_c": Score(),
    }

    def obstacle(self, evaluation: Mapping[str, Any]) -> str:
        return "" if evaluation["linear_probe"] else "evaluation.linear_probe=true"

    def measure(self, train: Part | None, test: Part) -> Mapping[str, float]:
        from dinoswap.metric.logistic_regression import linear_probe

        if train is None:
            return {}
        values: dict[str, float] = {}
        for kind, features in test.features.items():
            probe = linear_probe(train.features[kind], train.labels, features, test.labels)
            values |= {NAMES[kind] + name: value for name, value in probe.items()}
        return values
