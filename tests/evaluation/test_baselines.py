"""Baselines against loops over pixels, and the one judge that network and baselines share."""

import io

import pytest
import torch
from rich.console import Console
from torch import Tensor

from dinoswap.evaluation import baselines as b
from dinoswap.evaluation.knn import knn_accuracy
from dinoswap.evaluation.linear_probe import linear_probe
from dinoswap.evaluation.summary import summary_table


def pictures(count: int, seed: int, size: int = 6) -> tuple[Tensor, Tensor]:
    """Class 0 is reddish, class 1 bluish."""
    g = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 2
    images = torch.randint(0, 160, (count, 3, size, size), generator=g)
    images[labels == 0, 0] += 90
    images[labels == 1, 2] += 90
    return images.to(torch.uint8), labels


def test_colour_histogram_matches_the_loop() -> None:
    images, _ = pictures(3, 0)
    expected = torch.zeros(3, 4, 4, 4)
    for i, image in enumerate(images):
        for red, green, blue in image.flatten(1).T.tolist():
            expected[i, red // 64, green // 64, blue // 64] += 1 / 36
    torch.testing.assert_close(b.colour_histogram(images, bins=4), expected.flatten(1).sqrt())


def test_cosine_of_histograms_gives_the_hellinger_distance() -> None:
    rows = b.colour_histogram(pictures(2, 0)[0])
    hellinger = (rows[0] - rows[1]).norm() / 2**0.5
    torch.testing.assert_close(torch.cosine_similarity(rows[0], rows[1], dim=0), 1 - hellinger**2)


def test_extreme_levels_fall_into_the_outer_bins() -> None:
    images = torch.stack([torch.zeros(3, 2, 2), torch.full((3, 2, 2), 255)]).to(torch.uint8)
    assert b.colour_histogram(images).argmax(1).tolist() == [0, 511]
    with pytest.raises(ValueError, match="bins=0"):
        b.colour_histogram(images, bins=0)


def test_small_images_keep_their_pixels_and_large_ones_are_averaged() -> None:
    images, _ = pictures(2, 0)
    assert torch.equal(b.pixel_features(images), images.flatten(1) / 255)
    halved = images.double().reshape(2, 3, 3, 2, 3, 2).mean((3, 5)).flatten(1) / 255
    torch.testing.assert_close(b.pixel_features(images, side=3).double(), halved, rtol=0, atol=1e-6)


def test_standardise_uses_the_training_images_alone() -> None:
    g = torch.Generator().manual_seed(0)
    train, test = 5 + 3 * torch.randn(50, 4, generator=g), torch.randn(10, 4, generator=g)
    train[:, 3] = 0.7  # constant
    a, c = b.standardise(train, test)
    torch.testing.assert_close(a.mean(0), torch.zeros(4), rtol=0, atol=1e-5)
    torch.testing.assert_close(a.std(0, correction=0), torch.tensor([1.0, 1, 1, 0]))
    torch.testing.assert_close(c[:, :3], (test - train.mean(0))[:, :3] / train.std(0, correction=0)[:3])


def test_a_baseline_does_not_depend_on_the_batch() -> None:
    images, _ = pictures(7, 0)
    whole, parts = b.baseline_features(images), [b.baseline_features(part) for part in images.split(3)]
    assert set(whole) == {"raw pixels", "colour histogram"}
    assert all(torch.equal(torch.cat([part[name] for part in parts]), whole[name]) for name in whole)


def test_evaluate_features_names_both_classifiers() -> None:
    train, test = (b.pixel_features(p[0]) for p in (pictures(60, 1), pictures(20, 2)))
    labels = pictures(60, 1)[1], pictures(20, 2)[1]
    split = (train, labels[0], test, labels[1])
    scores = b.evaluate_features(*split)
    knn, linear = knn_accuracy(*split), linear_probe(*split)
    assert scores["knn_top1"] == scores["knn_top1_k20"] == knn["top1_k20"]
    assert (scores["linear_top1"], scores["linear_c"]) == (linear["top1"], linear["c"])
    assert not [name for name in b.evaluate_features(*split, linear=False) if name.startswith("linear")]


def test_fewer_images_than_the_usual_k() -> None:
    train, labels = torch.eye(12), torch.arange(12) % 6
    scores = b.evaluate_features(train, labels, train, labels, linear=False)
    assert {"knn_top1", "knn_top5", "knn_top1_k12", "knn_top5_k10"} <= set(scores)


def test_network_and_baselines_fill_the_table() -> None:
    train, test = pictures(60, 1), pictures(20, 2)
    found = b.evaluate_baselines(b.baseline_features(train[0]), train[1], b.baseline_features(test[0]), test[1])
    assert set(found) == {"raw pixels", "colour histogram"}
    assert all(row["knn_top1"] > 90 for row in found.values())
    features = [{"cls": b.pixel_features(p[0])[:, :9], "patch_mean": b.pixel_features(p[0])} for p in (train, test)]
    network = b.evaluate_network(features[0], train[1], features[1], test[1])
    assert (
        network["patch_mean/linear_top1"]
        == b.evaluate_features(features[0]["patch_mean"], train[1], features[1]["patch_mean"], test[1])["linear_top1"]
    )
    assert set(network) == {f"{kind}/{name}" for kind in features[0] for name in found["raw pixels"]}


def test_table_shows_every_cell() -> None:
    results = {
        "trained": {"cls/knn_top1": 61.04, "patch_mean/knn_top1": 58.0, "cls/linear_top1": 70.0},
        "raw pixels": {"knn_top1": 38.75, "linear_top1": 40.0},
    }
    console = Console(file=io.StringIO(), width=120)
    console.print(summary_table(results))
    lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    cells = {line.split("│")[1].strip(): [c.strip() for c in line.split("│")[2:-1]] for line in lines if "│" in line}
    assert cells["trained"] == ["61.0", "58.0", "70.0", "-"]
    assert cells["raw pixels"] == ["38.8", "38.8", "40.0", "40.0"]
