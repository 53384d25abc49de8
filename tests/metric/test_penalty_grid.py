"""The probe in torch against scikit-learn's minimum of the same function, on digits and on random features."""

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from dinoswap.metric import logistic_regression, penalty_grid
from dinoswap.metric.linear import LinearProbe
from dinoswap.metric.logistic_regression import GRID
from dinoswap.metric.penalty_grid import Regressions

AGREED = 1e-3
"""Difference of losses, which are means over images."""


def digits(classes: int) -> tuple[Tensor, Tensor]:
    """Pixels, some of them always black, whose classes can all but be told apart."""
    pixels, labels = load_digits(n_class=classes, return_X_y=True)
    return torch.from_numpy(pixels[:400]).float(), torch.from_numpy(labels[:400])


def blobs(count: int, dimensions: int, classes: int, noise: float, seed: int = 1) -> tuple[Tensor, Tensor]:
    centres = torch.randn(classes, dimensions, generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, classes, (count,), generator=generator)
    features = centres[labels] + noise * torch.randn(count, dimensions, generator=generator)
    return 100 + 3 * features, labels


SETS = {
    "digits": digits(10),
    "two digits": digits(2),
    "noise": blobs(300, 40, 5, 6.0),
    "more dimensions than images": blobs(60, 90, 3, 3.0),
}


def loss(weight: Tensor, x: Tensor, y: Tensor, c: float, vectors: int) -> float:
    """The function of the docstring for weights [D + 1, K], of which scikit-learn has `vectors`."""
    penalty = weight[:-1].square().sum() * (2 if vectors == 1 else 1) / (2 * c * len(y))
    return float(torch.nn.functional.cross_entropy(x @ weight[:-1] + weight[-1], y) + penalty)


def minimum(x: Tensor, y: Tensor, c: float) -> tuple[Tensor, int]:
    """scikit-learn's weights [D + 1, K], and how many vectors it has."""
    model = LogisticRegression(C=c, tol=1e-6, max_iter=5000).fit(x.numpy(), y.numpy())
    weight = torch.from_numpy(np.concatenate([model.coef_.T, model.intercept_[None]]))
    return (weight if weight.shape[1] > 1 else torch.cat([-weight, weight], dim=1) / 2), weight.shape[1]


@pytest.mark.parametrize("name", SETS)
def test_every_penalty_reaches_the_minimum(name: str) -> None:
    x, y = SETS[name]
    found = Regressions.fitted(x, y, int(y.max()) + 1, GRID)
    scaled = torch.from_numpy(StandardScaler().fit_transform(x.double().numpy()))
    for c, weight in zip(GRID, found.weight.double(), strict=True):
        best, vectors = minimum(scaled, y, c)
        assert loss(weight, scaled, y, c, vectors) == pytest.approx(loss(best, scaled, y, c, vectors), abs=AGREED / 5)


def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = SETS["noise"]
    whole = Regressions.fitted(x, y, 5, GRID)
    monkeypatch.setattr(penalty_grid, "LOGITS", 7 * 5 * len(GRID))
    torch.testing.assert_close(Regressions.fitted(x, y, 5, GRID).weight, whole.weight, atol=2e-3, rtol=0)
    assert Regressions.right(whole, x, y) == [int(part) for part in accuracies(whole, x, y)]


def accuracies(found: Regressions, x: Tensor, y: Tensor) -> Tensor:
    scaled = (x - x.mean(0)) / x.std(0, correction=0)
    return torch.stack([(scaled @ weight[:-1] + weight[-1]).argmax(1) == y for weight in found.weight]).sum(1)


def test_the_probe_is_that_of_scikit_learn() -> None:
    """Where a penalty is best by which that ends near its minimum."""
    train, test = blobs(400, 30, 4, 6.0), blobs(300, 30, 4, 6.0, seed=2)
    found, expected = penalty_grid.linear_probe(*train, *test), logistic_regression.linear_probe(*train, *test)
    assert found["c"] == expected["c"]
    assert found["top1"] == pytest.approx(expected["top1"], abs=1)
    assert 40 < found["top1"] < 90


def test_classes_that_only_the_test_images_have_count_as_wrong() -> None:
    """And labels need not follow each other."""
    (x, y), (test, truth) = blobs(200, 8, 3, 0.1), blobs(40, 8, 3, 0.1, seed=2)
    answers = truth * 5
    answers[:10] = 7
    assert penalty_grid.linear_probe(x, y * 5, test, answers)["top1"] == 75


def test_too_few_images_to_hold_any_out() -> None:
    x, y = torch.tensor([[0.0, 1.0], [1.0, 0.0], [0.1, 1.0], [1.0, 0.1]]), torch.tensor([0, 1, 0, 1])
    assert penalty_grid.linear_probe(x, y, x, y, grid=(1.0, 0.1, 10.0)) == {"top1": 100.0, "c": 1.0}


def test_mistakes_are_named() -> None:
    x, y = blobs(20, 4, 2, 0.1)
    with pytest.raises(ValueError, match="one class only"):
        penalty_grid.linear_probe(x, y * 0, x, y)
    with pytest.raises(ValueError, match=r"grid=\[0.0\]"):
        penalty_grid.linear_probe(x, y, x, y, grid=[0.0])


@pytest.mark.parametrize(
    ("solver", "device", "shared"),
    [("auto", "cpu", False), ("auto", "cuda:1", True), ("sklearn", "cuda", False), ("torch", "cpu", True)],
)
def test_ranks_share_what_torch_computes(solver: str, device: str, shared: bool) -> None:
    assert LinearProbe(in_loop=False, solver=solver).shares_work(torch.device(device)) == shared  # type: ignore[arg-type]
