"""Baselines for a network: features that need no training, evaluated by the same classifiers on the same split.

The third baseline, the same network at its random initialisation, is built by the caller and evaluated like the trained
one.
"""

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from dinoswap.evaluation.knn import PRIMARY_K, knn_accuracy
from dinoswap.evaluation.linear_probe import linear_probe

PIXELS, HISTOGRAM = "raw pixels", "colour histogram"


def pixel_features(images: Tensor, side: int = 32) -> Tensor:
    """Returns pixels in 0..1, averaged down to at most side x side: uint8 [n, 3, H, W] to float32 [n, 3 * h * w].

    Without the bound a linear probe of 224-pixel images would fit 150,528 weights per class.
    """
    height, width = images.shape[-2:]
    small = F.adaptive_avg_pool2d(images.float() / 255, (min(height, side), min(width, side)))
    return small.flatten(1)  # [n, 3, h, w] -> [n, 3 * h * w]


def standardise(train: Tensor, test: Tensor) -> tuple[Tensor, Tensor]:
    """Returns both feature matrices [m, D] and [n, D], standardised per dimension by mean and deviation of the training
    images. Dimensions that are constant in training become 0."""
    mean, std = train.mean(0), train.std(0, correction=0)
    std = torch.where(std > 1e-6, std, torch.inf)
    return (train - mean) / std, (test - mean) / std


def colour_histogram(images: Tensor, bins: int = 8) -> Tensor:
    """Returns square roots of the joint RGB histogram: uint8 [n, 3, H, W] to float32 [n, bins ** 3], rows of norm 1.

    The cosine of two rows is then their Bhattacharyya coefficient, so that k-NN on it is k-NN by Hellinger distance.
    Raises ValueError for `bins` outside 1..256.
    """
    if not 1 <= bins <= 256:
        raise ValueError(f"bins={bins}: 1 to 256 levels per channel")
    level = images.int().mul_(bins).floor_divide_(256)  # [n, 3, H, W], 0 .. bins - 1
    cell = ((level[:, 0] * bins + level[:, 1]) * bins + level[:, 2]).flatten(1).long()  # [n, H * W]
    count = torch.zeros(len(images), bins**3, device=images.device)
    count.scatter_add_(1, cell, torch.ones_like(cell, dtype=count.dtype))
    return (count / cell.shape[1]).sqrt()


def baseline_features(images: Tensor) -> dict[str, Tensor]:
    """Returns both baselines by the name of their row in the table, for uint8 [n, 3, H, W]: a `features.Reader`."""
    return {PIXELS: pixel_features(images), HISTOGRAM: colour_histogram(images)}


def evaluate_features(
    train_features: Tensor, train_labels: Tensor, test_features: Tensor, test_labels: Tensor, linear: bool = True
) -> dict[str, float]:
    """Returns accuracies in per cent: `knn_top1` (k = 20), `knn_top1_k<k>`, `knn_top5...`, `linear_top1`; `linear_c`.

    Features [m, D] and [n, D], labels int [m] and [n]. k is fixed rather than the best on the test images; it is
    capped to m (see `knn_accuracy`). `linear=False` leaves the probe out.
    """
    split = (train_features, train_labels, test_features, test_labels)
    knn = knn_accuracy(*split)
    primary = min(PRIMARY_K, len(train_labels))
    scores = {f"knn_{top}": knn[f"{top}_k{primary}"] for top in ("top1", "top5") if f"{top}_k{primary}" in knn}
    scores |= {f"knn_{name}": value for name, value in knn.items()}
    if linear:
        scores |= {f"linear_{name}": value for name, value in linear_probe(*split).items()}
    return scores


def evaluate_network(
    train_features: Mapping[str, Tensor],
    train_labels: Tensor,
    test_features: Mapping[str, Tensor],
    test_labels: Tensor,
    linear: bool = True,
) -> dict[str, float]:
    """Returns the scores of `evaluate_features` for each kind of features of a `FrozenBackbone`: `cls/knn_top1`,
    `patch_mean/knn_top1`, ..."""
    return {
        f"{kind}/{name}": score
        for kind, train in train_features.items()
        for name, score in evaluate_features(train, train_labels, test_features[kind], test_labels, linear).items()
    }


def evaluate_baselines(
    train_features: Mapping[str, Tensor],
    train_labels: Tensor,
    test_features: Mapping[str, Tensor],
    test_labels: Tensor,
    linear: bool = True,
) -> dict[str, dict[str, float]]:
    """Returns the scores of `evaluate_features` for each of the `baseline_features`; pixels are standardised first."""
    split = {name: (train, test_features[name]) for name, train in train_features.items()}
    split[PIXELS] = standardise(*split[PIXELS])
    return {
        name: evaluate_features(train, train_labels, test, test_labels, linear) for name, (train, test) in split.items()
    }
