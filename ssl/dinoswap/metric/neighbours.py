"""Weighted k-nearest-neighbour classification on cosine similarity.

Each of the k most similar memory images votes exp(similarity / T) for its class (Wu et al. 2018, "Unsupervised Feature
Learning via Non-Parametric Instance Discrimination"), T = 0.07 and k of 10, 20, 100, 200.
Follows facebookresearch/dinov2 @ b8931f7; its softmax over the neighbours divides all votes of an image by the same
number, which changes no ranking and is left out.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

OFFICIAL_K = (10, 20, 100, 200)
PRIMARY_K = 20


def check_labelled(features: Tensor, labels: Tensor, part: str) -> None:
    """Raises ValueError for what no classifier can use: unequal lengths, unlabelled images, non-finite features."""
    if len(features) != len(labels) or len(features) == 0:
        raise ValueError(f"{part}: {len(features)} features and {len(labels)} labels; one label per image is needed")
    if labels.min() < 0:
        raise ValueError(f"{part}: label {int(labels.min())}; evaluation needs labelled images, classes from 0")
    if not features.isfinite().all():
        raise ValueError(f"{part}: features are not finite; the weights have diverged, or fp16 overflowed (try bf16)")


def class_votes(
    similarity: Tensor, labels: Tensor, classes: int, ks: Sequence[int], temperature: float
) -> list[Tensor]:
    """Returns for each k the votes [n, classes] of the k most similar of m memory images. `similarity` is [n, m],
    `labels` [m]."""
    nearest, neighbours = similarity.topk(max(ks), dim=1)  # [n, k], most similar first
    weights, voted = (nearest / temperature).exp(), labels[neighbours]
    empty = similarity.new_zeros(len(similarity), classes)
    return [empty.scatter_add(1, voted[:, :k], weights[:, :k]) for k in ks]


@torch.no_grad()
def knn_accuracy(
    train_features: Tensor,
    train_labels: Tensor,
    test_features: Tensor,
    test_labels: Tensor,
    ks: Sequence[int] = OFFICIAL_K,
    temperature: float = 0.07,
    chunk: int = 1024,
) -> dict[str, float]:
    """Returns the per cent of correct test images by `top1_k<k>`, and `top5_k<k>` when there are over 5 classes.

    Features [m, D] and [n, D] of any float type and device, labels int [m] and [n]. A k above m is capped to m, and
    the key then names the k that was used: with 50 memory images the official list gives k10, k20 and k50.
    `chunk` test images are compared at a time, so memory is O(chunk * m).
    Raises ValueError for features or labels that `check_labelled` refuses, and where k or the temperature is not
    positive.
    """
    check_labelled(train_features, train_labels, "train")
    check_labelled(test_features, test_labels, "test")
    if temperature <= 0 or not ks or min(ks) < 1:
        raise ValueError(f"ks={list(ks)}, temperature={temperature}: both must be positive")
    ks_used = sorted({min(k, len(train_labels)) for k in ks})
    memory = F.normalize(train_features.float(), dim=1)
    labels, truth = train_labels.long().to(memory.device), test_labels.long().to(memory.device)
    classes = int(max(labels.max(), truth.max())) + 1
    tops = (1, 5) if classes > 5 else (1,)
    hits = {f"top{top}_k{k}": 0 for top in tops for k in ks_used}
    for rows, answer in zip(torch.split(test_features, chunk), torch.split(truth, chunk), strict=True):
        similarity = F.normalize(rows.float().to(memory.device), dim=1) @ memory.T  # [n, D] x [D, m] -> [n, m]
        for k, votes in zip(ks_used, class_votes(similarity, labels, classes, ks_used, temperature), strict=True):
            weight, guess = votes.topk(tops[-1], dim=1)
            right = (guess == answer[:, None]) & (weight > 0)  # [n, 1 or 5]; a class without a vote is no guess
            for top in tops:
                hits[f"top{top}_k{k}"] += int(right[:, :top].sum())
    return {name: 100 * count / len(truth) for name, count in hits.items()}
