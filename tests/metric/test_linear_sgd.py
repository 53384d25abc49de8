"""The grid of SGD against one torch.nn.Linear after the other, each trained with a rate of its own."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dinoswap.metric import sgd_grid
from dinoswap.metric.base import WHOLE, Part
from dinoswap.metric.linear_sgd import LinearSgd
from options import build_option

RATES = (0.02, 0.5)
"""Of a batch of 256 images."""
EPOCHS, SIZE = 3, 16


def part(count: int, seed: int, classes: int = 4) -> Part:
    """Class tokens that tell half of the classes apart, and means of patches that tell all."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % classes
    seen = {"cls": labels % 2, "patch_mean": labels}
    noise = {kind: torch.randn(count, classes, generator=generator) for kind in seen}
    return Part({kind: 3 * torch.eye(classes)[seen[kind]] + noise[kind] for kind in seen}, labels)


TRAIN, TEST = part(100, 1), part(80, 2)


def one_by_one(inputs: Tensor, labels: Tensor, rate: float) -> nn.Linear:
    """A classifier of all that `inputs` has, trained alone as dinov2's eval/linear.py does, on the same batches."""
    layer = nn.Linear(inputs.shape[1], 4)
    start = sgd_grid.initial(inputs.shape[1], 4, 1)[0]
    layer.load_state_dict({"weight": start[:-1].T, "bias": start[-1]})
    optimizer = torch.optim.SGD(layer.parameters(), lr=rate * SIZE / 256, momentum=0.9, weight_decay=0)
    order = sgd_grid.batches(len(labels), SIZE, EPOCHS)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, len(order), eta_min=0)
    for rows in order:
        optimizer.zero_grad()
        nn.functional.cross_entropy(layer(inputs[rows]), labels[rows]).backward()
        optimizer.step()
        scheduler.step()
    return layer


def test_each_classifier_is_the_one_trained_alone() -> None:
    features = list(TRAIN.features.values())
    grids = sgd_grid.trained(features, TRAIN.labels, RATES, EPOCHS, SIZE)
    assert list(grids) == [1, 2]
    for kinds, classifiers in grids.items():
        for rate, found in zip(RATES, classifiers, strict=True):
            alone = one_by_one(torch.cat(features[:kinds], dim=1), TRAIN.labels, rate)
            torch.testing.assert_close(found[:-1], alone.weight.detach().T, rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(found[-1], alone.bias.detach(), rtol=1e-4, atol=1e-5)


def test_the_best_classifier_is_reported() -> None:
    family = LinearSgd(in_loop=False, epochs=EPOCHS, batch_size=SIZE, learning_rates=RATES)
    values = family.measure(TRAIN, TEST)
    of_all: dict[tuple[float, float], float] = {}
    for kinds in (1, 2):
        inputs, asked = (torch.cat([*side.features.values()][:kinds], dim=1) for side in (TRAIN, TEST))
        for rate in RATES:
            guesses = one_by_one(inputs, TRAIN.labels, rate)(asked).argmax(1)
            of_all[rate, kinds - 1] = 100 * float((guesses == TEST.labels).float().mean())
    best = values["linear_sgd_lr"], values["linear_sgd_patch_mean"]
    assert values["linear_sgd_top1"] == pytest.approx(max(of_all.values())) == pytest.approx(of_all[best])
    assert best[1] == 1  # what the class token cannot tell
    assert max(of_all[rate, 0] for rate in RATES) < values["linear_sgd_top1"]
    assert set(values) == set(family.scores)


def test_an_epoch_has_each_image_once() -> None:
    order = sgd_grid.batches(48, 16, 2)
    assert order.shape == (6, 16)
    first, second = order[:3].flatten().tolist(), order[3:].flatten().tolist()
    assert sorted(first) == sorted(second) == list(range(48))
    assert first != second
    assert sgd_grid.batches(50, 16, 2).shape == (6, 16)


def test_features_of_whole_images_and_fewer_images_than_a_batch() -> None:
    train, test = (Part({WHOLE: side.features["patch_mean"]}, side.labels) for side in (TRAIN, TEST))
    family = LinearSgd(in_loop=False, epochs=30, batch_size=1000, learning_rates=(1.0,))
    values = family.measure(train, test)
    assert values["linear_sgd_patch_mean"] == 0
    assert values["linear_sgd_top1"] > 90


def test_a_rate_that_diverges_disturbs_no_other() -> None:
    alone = sgd_grid.accuracies(TRAIN, TEST, (0.5,), EPOCHS, SIZE)
    both = sgd_grid.accuracies(TRAIN, TEST, (0.5, 1e30), EPOCHS, SIZE)
    assert {key: both[key] for key in alone} == alone


@pytest.mark.parametrize(
    ("name", "value"), [("epochs", 0), ("batch_size", 0), ("learning_rates", ()), ("learning_rates", (0.1, 0.0))]
)
def test_mistakes_are_named(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"{name}="):
        build_option("metric/linear_sgd", **{name: value})
