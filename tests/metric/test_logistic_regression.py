"""The probe against the same objective minimised by hand in float64, and how its penalty is chosen."""

import time

import numpy as np
import pytest
import torch
from torch import Tensor

from dinoswap.metric import logistic_regression as probe


def data(count: int, dimensions: int, classes: int, noise: float, seed: int) -> tuple[Tensor, Tensor]:
    centres = torch.randn(classes, dimensions, generator=torch.Generator().manual_seed(0))
    g = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, classes, (count,), generator=g)
    return centres[labels] + noise * torch.randn(count, dimensions, generator=g), labels


def test_fit_minimises_the_objective_of_the_docstring() -> None:
    x, y = data(120, 6, 3, 2.0, 1)
    model = probe.fit(x.numpy(), y.numpy(), 0.1, max_iterations=2000)
    z = ((x - x.mean(0)) / x.std(0, correction=0)).double()
    weight, bias = torch.zeros(3, 6, dtype=torch.float64), torch.zeros(3, dtype=torch.float64)
    parameters = [weight.requires_grad_(), bias.requires_grad_()]
    solver = torch.optim.LBFGS(parameters, max_iter=500, tolerance_grad=1e-10, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        solver.zero_grad()
        loss = weight.square().sum() / 2
        loss = loss + 0.1 * torch.nn.functional.cross_entropy(z @ weight.T + bias, y, reduction="sum")
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    solver.step(closure)  # type: ignore[no-untyped-call]
    expected = (z @ weight.T + bias).softmax(1).detach().numpy()
    assert np.abs(model.predict_proba(x.numpy()) - expected).max() < 5e-3


def test_accuracy_counts_right_answers() -> None:
    train, (x, y) = data(200, 8, 4, 0.3, 1), data(40, 8, 4, 0.3, 2)
    wrong = y.clone()
    wrong[:10] = (wrong[:10] + 1) % 4
    assert probe.linear_probe(*train, x, y)["top1"] == 100
    assert probe.linear_probe(*train, x, wrong)["top1"] == 75


def test_noise_gets_a_strong_penalty_and_signal_a_weaker_one() -> None:
    """Two thirds as many dimensions as images: an unpenalised fit would learn the noise by heart."""
    x, y = data(240, 160, 2, 20.0, 1)
    clean = torch.cat([x[:, :1] * 0 + y[:, None] * 0.05, x[:, :4]], dim=1)
    assert probe.pick_c(x.numpy(), y.numpy(), probe.GRID) <= 1e-2
    assert probe.pick_c(clean.numpy(), y.numpy(), probe.GRID) > 1e-4


def test_held_out_is_a_fifth_of_every_class_and_of_no_small_one() -> None:
    labels = np.array([0] * 50 + [1] * 10 + [2] * 4)
    out = probe.held_out(labels)
    assert [int(out[labels == c].sum()) for c in range(3)] == [10, 2, 0]
    assert np.array_equal(out, probe.held_out(labels))
    assert not np.array_equal(np.flatnonzero(out[:50]), np.arange(4, 50, 5))


def test_too_few_images_to_hold_any_out() -> None:
    x, y = torch.tensor([[0.0, 1.0], [1.0, 0.0], [0.1, 1.0], [1.0, 0.1]]), torch.tensor([0, 1, 0, 1])
    assert probe.linear_probe(x, y, x, y, grid=(1.0, 0.1, 10.0)) == {"top1": 100.0, "c": 1.0}


def test_constant_features_are_harmless() -> None:
    x, y = data(60, 4, 2, 0.1, 1)
    padded = torch.cat([x, torch.full((60, 2), 7.0)], dim=1)
    assert probe.linear_probe(padded, y, padded, y) == probe.linear_probe(x, y, x, y)


def test_mistakes_are_named() -> None:
    x, y = data(20, 4, 2, 0.1, 1)
    with pytest.raises(ValueError, match="one class only"):
        probe.linear_probe(x, y * 0, x, y)
    with pytest.raises(ValueError, match=r"grid=\[0.0\]"):
        probe.linear_probe(x, y, x, y, grid=[0.0])


def test_five_thousand_images_take_less_than_ten_seconds() -> None:
    train, test = data(5000, 192, 10, 6.0, 1), data(500, 192, 10, 6.0, 2)
    start = time.process_time()
    probe.linear_probe(*train, *test)
    assert time.process_time() - start < 10
