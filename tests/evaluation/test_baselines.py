"""Baselines against loops over pixels, and the table that they stand in beside a network."""

import io

import pytest
import torch
from rich.console import Console
from torch import Tensor

from dinoswap.evaluation import baselines as b
from dinoswap.evaluation.summary import Column, columns_of, filled, percentages, summary_table
from dinoswap.metric.base import Score
from dinoswap.metric.knn import NearestNeighbours
from dinoswap.metric.linear import LinearProbe


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
    assert set(b.BASELINES) == {"raw pixels", "colour histogram"}
    for read in b.BASELINES.values():
        assert torch.equal(torch.cat([read(part) for part in images.split(3)]), read(images))


def test_table_shows_every_cell() -> None:
    results = {
        "trained": {"knn_top1": 61.04, "knn_patch_top1": 58.0, "linear_top1": 70.0, "linear_patch_top1": 69.0},
        "random init": {"knn_top1": 30.0, "knn_patch_top1": 31.0},
        "raw pixels": {"knn_top1": 38.75, "linear_top1": 40.0},
    }
    columns = columns_of([NearestNeighbours(in_loop=True), LinearProbe(in_loop=False, solver="auto")])
    console = Console(file=io.StringIO(), width=120)
    console.print(summary_table(results, columns))
    lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    cells = {line.split("│")[1].strip(): [c.strip() for c in line.split("│")[2:-1]] for line in lines if "│" in line}
    assert cells["trained"] == ["61.0", "58.0", "70.0", "69.0"]
    assert cells["random init"] == ["30.0", "31.0", "-", "-"]
    assert cells["raw pixels"] == ["38.8", "38.8", "40.0", "40.0"]


def test_the_best_of_a_column_is_bold_in_its_own_unit() -> None:
    columns = {
        "k-NN": Column(("knn",), Score("higher", "%")),
        "error": Column(("error",), Score("lower", "m")),
        "size": Column(("size",), Score()),
        "absent": Column(("absent",), Score("higher", "%")),
    }
    results = {
        "trained": {"knn": 61.04, "error": 0.5126, "size": 3.0},
        "raw pixels": {"knn": 0.0, "error": 1.25, "size": 4.0},
    }
    table = summary_table(results, columns)
    cells = {str(column.header): list(column.cells) for column in table.columns[1:]}
    assert cells == {
        "k-NN": ["[bold]61.0[/bold]", "0.0"],
        "error, m": ["[bold]0.513[/bold]", "1.25"],
        "size": ["3", "4"],
    }
    assert set(percentages(filled(results, columns))) == {"k-NN"}
