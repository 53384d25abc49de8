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

from dinoswap.distributed import all_reduce_sum, rank, together, world_size

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


def most_similar(similarity: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Returns the k largest of each row of [n, m], all where these are fewer, and their columns, largest first and of
    equal ones the first: [n, k] each. Which of equal ones torch.topk takes depends on device and shape."""
    count = similarity.shape[1]
    k = min(k, count)
    values, columns = similarity.topk(min(k + 1, count), dim=1)
    tied = (values[:, 1:] == values[:, :-1]).any(1).nonzero()[:, 0]
    values, columns = values[:, :k], columns[:, :k]
    if len(tied):
        rows, least = similarity[tied], values[tied, k - 1 :]
        place = torch.arange(count, dtype=rows.dtype, device=rows.device)  # exact up to 2 ** 24 columns
        priority = torch.where(rows > least, 1, torch.where(rows == least, -place, -torch.inf))
        first = priority.topk(k, dim=1).indices.sort(dim=1).values
        values[tied], order = rows.gather(1, first).sort(dim=1, descending=True, stable=True)
        columns[tied] = first.gather(1, order)
    return values, columns


def nearest(
    memory: Tensor, chunks: Sequence[Tensor], k: int, block: int, device: torch.device | str
) -> list[tuple[Tensor, Tensor]]:
    """Returns cosines and rows of the k most similar of m memory images for each image of the chunks, as `most_similar`
    does, on `device`: memory [m, D] and unit vectors [n, D] to [n, k] each. `block` images of the memory are compared
    at a time, and of what has been found the k best are kept."""
    best = [
        (queries.new_empty(len(queries), 0), queries.new_empty(len(queries), 0, dtype=torch.int64))
        for queries in chunks
    ]
    for start in range(0, len(memory), block):
        directions = F.normalize(memory[start : start + block].to(device).float(), dim=1)
        for place, queries in enumerate(chunks):
            values, rows = most_similar(queries @ directions.T, k)  # [n, D] x [D, block] -> [n, block]
            values, rows = (
                torch.cat([best[place][0], values], dim=1),
                torch.cat([best[place][1], rows + start], dim=1),
            )
            order = values.argsort(dim=1, descending=True, stable=True)[:, :k]
            best[place] = values.gather(1, order), rows.gather(1, order)
    return best


def class_votes(similarity: Tensor, voted: Tensor, classes: int, ks: Sequence[int], temperature: float) -> list[Tensor]:
    """Returns for each k, in rising order, the votes [n, classes] of the k most similar images, whose similarities and
    classes are [n, max(ks)]. They are added one after the other: a GPU would add those for a class in any order."""
    weights, votes = (similarity / temperature).exp(), similarity.new_zeros(len(similarity), classes)
    after: list[Tensor] = []
    for place in range(max(ks)):
        votes.scatter_add_(1, voted[:, place, None], weights[:, place, None])
        after += [votes.clone()] if place + 1 in ks else []
    return after


@torch.no_grad()
def knn_accuracy(
    train_features: Tensor,
    train_labels: Tensor,
    test_features: Tensor,
    test_labels: Tensor,
    ks: Sequence[int] = OFFICIAL_K,
    temperature: float = 0.07,
    chunk: int = 1024,
    block: int = 2**16,
    device: torch.device | str = "cpu",
) -> dict[str, float]:
    """Returns the per cent of correct test images by `top1_k<k>`, and `top5_k<k>` when there are over 5 classes.

    Features [m, D] and [n, D] of any float type and device, labels int [m] and [n]. A k above m is capped to m, and
    the key then names the k that was used: with 50 memory images the official list gives k10, k20 and k50.
    `chunk` test images are compared with `block` training images at a time on `device`, which holds no more of these
    than that. Ranks call it together, with the same arguments, and each answers for a part of the chunks; what a chunk
    is does not depend on their number, and so no accuracy does.
    Raises ValueError for features or labels that `check_labelled` refuses, and where k or the temperature is not
    positive.
    """
    check_labelled(train_features, train_labels, "train")
    check_labelled(test_features, test_labels, "test")
    if temperature <= 0 or not ks or min(ks) < 1:
        raise ValueError(f"ks={list(ks)}, temperature={temperature}: both must be positive")
    ks_used = sorted({min(k, len(train_labels)) for k in ks})
    labels, truth = train_labels.long().to(device), test_labels.long().to(device)
    classes = int(max(labels.max(), truth.max())) + 1
    tops = (1, 5) if classes > 5 else (1,)

    def hits_here() -> Tensor:
        """Returns how many of this rank's test images are classified correctly, int64 [ks, tops]."""
        queries, answers = (torch.split(part, chunk)[rank() :: world_size()] for part in (test_features, truth))
        chunks = [F.normalize(part.to(device).float(), dim=1) for part in queries]
        hits = torch.zeros(len(ks_used), len(tops), dtype=torch.int64)
        neighbours = nearest(train_features, chunks, ks_used[-1], block, device)
        for (similarity, rows), answer in zip(neighbours, answers, strict=True):
            for number, votes in enumerate(class_votes(similarity, labels[rows], classes, ks_used, temperature)):
                weight, guess = votes.topk(tops[-1], dim=1)
                right = (guess == answer[:, None]) & (weight > 0)  # [n, 1 or 5]; a class without a vote is no guess
                hits[number] += torch.stack([right[:, :top].sum() for top in tops]).cpu()
        return hits

    hits = all_reduce_sum(together(hits_here)).tolist()
    return {
        f"top{top}_k{k}": 100 * hits[number][place] / len(truth)
        for place, top in enumerate(tops)
        for number, k in enumerate(ks_used)
    }
