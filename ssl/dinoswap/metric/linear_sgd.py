"""The metric family `linear_sgd`: the accuracy of the best of many linear classifiers, which SGD trains together.

As in eval/linear.py of facebookresearch/dinov2 @ 05c66df there is a classifier for each learning rate of a grid, on the
class token and on it beside the mean of the patches, trained for the same steps. What differs: there the images are
augmented and computed again in each step, and half of the classifiers read the class tokens of the last four blocks;
here all read the frozen features of the evaluation, which are of the last block and of the images as they are.

The best is that on the test images, as the field reports it: a choice that flatters it, which `linear` does not make.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

from dinoswap.metric.base import Extent, ImageMetric, Part, Score

if TYPE_CHECKING:
    import torch


class LinearSgd(ImageMetric):
    """Gives the top-1 accuracy in per cent of the best classifier, its learning rate, as it is in the grid, and whether
    it reads the mean of the patches: 1 or 0."""

    reads = ("cls", "patch_mean")
    supervised = True
    scores: ClassVar[Mapping[str, Score]] = {
        "linear_sgd_top1": Score("higher", "%", "linear SGD", of_whole="linear_sgd_top1"),
        "linear_sgd_lr": Score(),
        "linear_sgd_patch_mean": Score(),
    }

    def __init__(self, *, in_loop: bool, epochs: int, batch_size: int, learning_rates: tuple[float, ...]) -> None:
        """`learning_rates` are those of a batch of 256 images, in proportion to which they are scaled. Raises
        ValueError for a value that is not positive, and for an empty grid."""
        super().__init__(in_loop=in_loop)
        for name, value in (("epochs", epochs), ("batch_size", batch_size)):
            if value < 1:
                raise ValueError(f"{name}={value}: must be at least 1")
        if not learning_rates or min(learning_rates) <= 0:
            raise ValueError(f"learning_rates={list(learning_rates)}: at least one is needed, and all above 0")
        self.epochs, self.batch_size, self.learning_rates = epochs, batch_size, learning_rates

    def shares_work(self, device: "torch.device | str") -> bool:
        return True

    def flops(self, extent: Extent) -> float:
        """Logits and their gradient take a product each, of classifiers on the first kind of features and on all."""
        inputs = extent.width * (1 + extent.kinds if extent.kinds > 1 else 1)
        return 2 * 2.0 * self.epochs * extent.train * inputs * extent.classes * len(self.learning_rates)

    def measure(self, train: Part | None, test: Part) -> Mapping[str, float]:
        from dinoswap.metric.sgd_grid import accuracies

        if train is None:
            return {}
        by_classifier = accuracies(train, test, self.learning_rates, self.epochs, self.batch_size)
        (rate, parts), top1 = max(by_classifier.items(), key=lambda entry: entry[1])  # of equals the first
        return {"linear_sgd_top1": top1, "linear_sgd_lr": rate, "linear_sgd_patch_mean": float(parts > 1)}
