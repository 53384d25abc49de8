"""Weighted k-NN against a loop over images and neighbours, written from the formula."""

import math
from collections import defaultdict

import pytest
import torch
from torch import Tensor

from dinoswap.metric.neighbours import knn_accuracy, most_similar, nearest


def blobs(count: int, classes: int, noise: float, seed: int) -> tuple[Tensor, Tensor]:
    centres = torch.randn(classes, 12, generator=torch.Generator().manual_seed(0))
    g = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, classes, (count,), generator=g)
    return centres[labels] + noise * torch.randn(count, 12, generator=g), labels


def by_loop(
    memory: Tensor, classes: Tensor, queries: Tensor, truth: Tensor, k: int, temperature: float, top: int
) -> float:
    right = 0
    for query, answer in zip(queries.double(), truth.tolist(), strict=True):
        neighbours = []
        for row, label in zip(memory.double(), classes.tolist(), strict=True):
            cosine = float(query @ row / (query.norm() * row.norm()))
            neighbours.append((cosine, label))
        votes: dict[int, float] = defaultdict(float)
        for cosine, label in sorted(neighbours, reverse=True)[:k]:
            votes[label] += math.exp(cosine / temperature)
        right += answer in sorted(votes, key=votes.__getitem__, reverse=True)[:top]
    return 100 * right / len(truth)


@pytest.mark.parametrize("temperature", [0.07, 1.0])
def test_matches_the_loop(temperature: float) -> None:
    memory, test = blobs(150, 7, 1.5, 1), blobs(40, 7, 1.5, 2)
    result = knn_accuracy(*memory, *test, ks=(1, 10, 20), temperature=temperature, chunk=16)
    assert set(result) == {f"top{t}_k{k}" for t in (1, 5) for k in (1, 10, 20)}
    for k in (1, 10, 20):
        for top in (1, 5):
            assert result[f"top{top}_k{k}"] == pytest.approx(by_loop(*memory, *test, k, temperature, top))
    assert 100 / 7 < result["top1_k10"] < result["top5_k10"]


@pytest.mark.parametrize("k", [1, 4, 12, 30])
def test_of_equally_similar_images_the_first_are_taken(k: int) -> None:
    """Whole rows of equal values, and ties that begin or end at the k-th."""
    similarity = torch.randint(0, 6, (50, 30), generator=torch.Generator().manual_seed(0)).float()
    similarity[0] = 1
    values, columns = most_similar(similarity, k)
    expected = [sorted(range(30), key=lambda column: (-row[column], column))[:k] for row in similarity.tolist()]
    assert columns.tolist() == expected
    assert torch.equal(values, similarity.gather(1, columns))


@pytest.mark.parametrize("block", [1, 7, 64, 1000])
def test_blocks_change_no_neighbour(block: int) -> None:
    """Half of the images are there three times, with cosines that are equal to the bit."""
    memory = torch.eye(16)[torch.randint(0, 16, (96,), generator=torch.Generator().manual_seed(1))]
    memory[::2] = torch.nn.functional.normalize(torch.randn(48, 16, generator=torch.Generator().manual_seed(2)))
    queries = memory[:24] + 0.1 * memory[24:48]
    whole = most_similar(queries @ memory.T, 10)
    parts = nearest(memory, queries.split(5), 10, block, "cpu")
    assert torch.equal(torch.cat([rows for _, rows in parts]), whole[1])
    torch.testing.assert_close(torch.cat([values for values, _ in parts]), whole[0])


def test_blocks_change_no_accuracy() -> None:
    split = *blobs(300, 7, 1.5, 1), *blobs(90, 7, 1.5, 2)
    assert knn_accuracy(*split, chunk=16, block=50) == knn_accuracy(*split)


def test_weights_matter() -> None:
    """One very near neighbour outvotes two far ones: k-NN by count would answer class 1."""
    memory = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
    result = knn_accuracy(memory, torch.tensor([0, 1, 1]), torch.tensor([[1.0, 0.1]]), torch.tensor([0]), ks=(3,))
    assert result == {"top1_k3": 100.0}


@pytest.mark.parametrize(("cosine", "winner"), [(0.95, 0), (0.953, 1)])
def test_the_temperature_is_the_official_one(cosine: float, winner: int) -> None:
    """At T = 0.07 two neighbours outvote one that is nearer by less than 0.07 ln 2 = 0.0485."""
    far = [cosine, math.sqrt(1 - cosine**2)]
    memory = torch.tensor([[1.0, 0.0], far, far])
    result = knn_accuracy(memory, torch.tensor([0, 1, 1]), memory[:1], torch.tensor([winner]), ks=(3,))
    assert result == {"top1_k3": 100.0}


def test_k_is_capped_to_the_memory_and_says_so() -> None:
    result = knn_accuracy(*blobs(50, 3, 0.5, 1), *blobs(9, 3, 0.5, 2))
    assert list(result) == ["top1_k10", "top1_k20", "top1_k50"]


def test_a_class_without_votes_is_no_guess() -> None:
    memory = torch.eye(7)
    result = knn_accuracy(memory, torch.arange(7), memory[:1], torch.tensor([3]), ks=(1,))
    assert result == {"top1_k1": 0.0, "top5_k1": 0.0}


def test_unseen_class_counts_as_wrong() -> None:
    features, labels = blobs(30, 2, 0.1, 1)
    assert knn_accuracy(features, labels, features[:4], torch.tensor([9, 9, 9, 9]))["top1_k10"] == 0


def test_scale_of_the_features_is_irrelevant() -> None:
    memory, test = blobs(80, 4, 1.0, 1), blobs(30, 4, 1.0, 2)
    stretched = (memory[0] * torch.linspace(0.1, 9, 80)[:, None], memory[1])
    assert knn_accuracy(*memory, *test) == knn_accuracy(*stretched, *test)


def test_mistakes_are_named() -> None:
    features, labels = blobs(20, 2, 0.1, 1)
    with pytest.raises(ValueError, match="one label per image"):
        knn_accuracy(features, labels[:5], features, labels)
    with pytest.raises(ValueError, match="needs labelled images"):
        knn_accuracy(features, labels - 2, features, labels)
    with pytest.raises(ValueError, match="not finite"):
        knn_accuracy(features, labels, features * float("nan"), labels)
    with pytest.raises(ValueError, match="must be positive"):
        knn_accuracy(features, labels, features, labels, ks=(0,))
