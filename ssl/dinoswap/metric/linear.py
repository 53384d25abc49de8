"""The metric family `linear`: the accuracy of a logistic regression on the class token and on the patches' mean."""

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from dinoswap.metric.base import WHOLE, Extent, ImageMetric, Part, Score

if TYPE_CHECKING:
    import torch

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

    def __init__(self, *, in_loop: bool, solver: Literal["auto", "sklearn", "torch"]) -> None:
        """`solver` is scikit-learn's, on the cores of the first rank, or torch's, on the device of every rank; "auto"
        is torch's where that is not the CPU."""
        super().__init__(in_loop=in_loop)
        self.solver = solver

    def obstacle(self, evaluation: Mapping[str, Any]) -> str:
        return "" if evaluation["linear_probe"] else "evaluation.linear_probe=true"

    def shares_work(self, device: "torch.device | str") -> bool:
        on_cores = str(device) == "cpu"
        return self.solver == "torch" or (self.solver == "auto" and not on_cores)

    def flops(self, extent: Extent) -> float:
        """Logits and their gradient take a product each, for every penalty of the grid and then for the one picked, as
        often as L-BFGS may evaluate them."""
        from dinoswap.metric.logistic_regression import GRID
        from dinoswap.metric.penalty_grid import EVALUATIONS

        products = 2 * 2.0 * extent.train * extent.width * extent.classes
        return extent.kinds * EVALUATIONS * (len(GRID) + 1) * products

    def measure(self, train: Part | None, test: Part) -> Mapping[str, float]:
        from dinoswap.metric import logistic_regression, penalty_grid

        if train is None:
            return {}
        in_torch = self.shares_work(test.device)
        probe = partial(penalty_grid.linear_probe, device=test.device) if in_torch else logistic_regression.linear_probe
        values: dict[str, float] = {}
        for kind, features in test.features.items():
            scores = probe(train.features[kind], train.labels, features, test.labels)
            values |= {NAMES[kind] + name: value for name, value in scores.items()}
        return values
