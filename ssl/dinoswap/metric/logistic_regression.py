"""Linear probe: multinomial logistic regression on frozen, standardised features (L2 penalty, L-BFGS).

The strength of the penalty is picked on a fifth of the training images, class by class, then the classifier is fitted
again on all of them; the test images are seen once. C is scikit-learn's inverse strength: the minimised function is
||W||^2 / 2 + C * sum of cross-entropies.
"""

import warnings
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from dinoswap import rng
from dinoswap.metric.neighbours import check_labelled

GRID = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
HOLD_OUT = 5
"""Every fifth image of a class is held out to pick C."""


def held_out(labels: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Returns a mask, labels [n] -> bool [n]: True for a fifth of the images of each class with at least five."""
    order = rng.numpy_generator(0, "evaluation/held_out", len(labels)).permutation(len(labels))
    chosen = np.zeros(len(labels), dtype=np.bool_)
    for label in np.unique(labels):
        chosen[order[labels[order] == label][HOLD_OUT - 1 :: HOLD_OUT]] = True
    return chosen


def fit(features: NDArray[np.float32], labels: NDArray[np.int64], c: float, max_iterations: int = 200) -> Pipeline:
    """Returns a fitted classifier that standardises its features first. A constant feature becomes zero."""
    model = make_pipeline(StandardScaler(), LogisticRegression(C=c, tol=1e-3, max_iter=max_iterations))
    with warnings.catch_warnings():
        # Weak penalties on separable features have no finite optimum nearby; stopping early is a penalty too.
        warnings.simplefilter("ignore", ConvergenceWarning)
        return model.fit(features, labels)


def pick_c(
    features: NDArray[np.float32],
    labels: NDArray[np.int64],
    grid: Sequence[float],
    held: NDArray[np.bool_] | None = None,
) -> float:
    """Returns the inverse penalty with the best accuracy on the held-out images, tried from the strongest penalty on.
    `held` is True for these, bool [n]; by default they are `held_out(labels)`.

    Of equals the strongest is taken; where nothing can be held out, the middle of the grid. The search ends after two
    values in a row below the best: accuracy has one peak in C, and the weakest penalties take the longest to fit.
    """
    grid, held = sorted(grid), held_out(labels) if held is None else held
    if not held.any() or len(np.unique(labels[~held])) < 2:
        return grid[len(grid) // 2]
    scores: list[float] = []
    for c in grid:
        scores.append(float(fit(features[~held], labels[~held], c).score(features[held], labels[held])))
        if len(scores) - 1 - int(np.argmax(scores)) == 2:
            break
    return grid[int(np.argmax(scores))]


def check_probe(
    train_features: Tensor, train_labels: Tensor, test_features: Tensor, test_labels: Tensor, grid: Sequence[float]
) -> None:
    """Raises ValueError for what no probe can be fitted on: what `check_labelled` refuses, fewer than two classes, and
    a grid that is empty or not positive."""
    check_labelled(train_features, train_labels, "train")
    check_labelled(test_features, test_labels, "test")
    if not grid or min(grid) <= 0:
        raise ValueError(f"grid={list(grid)}: inverse penalties must be positive")
    if len(torch.unique(train_labels)) < 2:
        raise ValueError("train: images of one class only; a linear probe needs at least two classes")


def linear_probe(
    train_features: Tensor,
    train_labels: Tensor,
    test_features: Tensor,
    test_labels: Tensor,
    grid: Sequence[float] = GRID,
) -> dict[str, float]:
    """Returns `top1`, the per cent of test images that are classified correctly, and `c`, the chosen inverse penalty.

    Features [m, D] and [n, D], labels int [m] and [n]. Raises ValueError for what `check_probe` refuses.
    """
    check_probe(train_features, train_labels, test_features, test_labels, grid)
    train_x, test_x = (features.detach().float().cpu().numpy() for features in (train_features, test_features))
    train_y, test_y = (labels.to(device="cpu", dtype=torch.int64).numpy() for labels in (train_labels, test_labels))
    c = pick_c(train_x, train_y, grid)
    correct = int((fit(train_x, train_y, c).predict(test_x) == test_y).sum())
    return {"top1": 100 * correct / len(test_y), "c": c}
