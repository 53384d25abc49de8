"""The metric family `knn`: the accuracy of weighted k-nearest neighbours on the class token and on the patches' mean.

k is 20 rather than the best on the test images, and all training images where these are fewer.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

from dinoswap.metric.base import WHOLE, Extent, ImageMetric, Part, Score

if TYPE_CHECKING:
    import torch

NAMES = {"cls": "knn_", "patch_mean": "knn_patch_", WHOLE: "knn_"}
"""Kind of features -> the beginning of their metrics' names."""


class NearestNeighbours(ImageMetric):
    """Gives top-1 accuracies in per cent, and top-5 accuracies where there are more than five classes."""

    reads = ("cls", "patch_mean")
    supervised = True
    scores: ClassVar[Mapping[str, Score]] = {
        "knn_top1": Score("higher", "%", "k-NN CLS", of_whole="knn_top1"),
        "knn_patch_top1": Score("higher", "%", "k-NN patch mean", of_whole="knn_top1"),
        "knn_top5": Score("higher", "%"),
        "knn_patch_top5": Score("higher", "%"),
    }

    def shares_work(self, device: "torch.device | str") -> bool:
        return True

    def flops(self, extent: Extent) -> float:
        return 2.0 * extent.kinds * extent.train * extent.test * extent.width

    def measure(self, train: Part | None, test: Part) -> Mapping[str, float]:
        from dinoswap.metric.neighbours import PRIMARY_K, knn_accuracy

        if train is None:
            return {}
        k = min(PRIMARY_K, len(train.labels))
        values: dict[str, float] = {}
        for kind, features in test.features.items():
            split = train.features[kind], train.labels, features, test.labels
            accuracy = knn_accuracy(*split, ks=(k,), device=test.device)
            values |= {NAMES[kind] + name.removesuffix(f"_k{k}"): value for name, value in accuracy.items()}
        return values
