"""Sinkhorn-Knopp against the official targets, the official iteration, and the same one on logarithms in float64."""

import math
from functools import partial

import pytest
import torch
from torch import Tensor

from allocations import Allocations
from contexts import random
from fixtures import Fixture
from options import build_option

sinkhorn = partial(build_option, "targets/sinkhorn")

FIXTURE = Fixture("losses_dinov2.npz")


@pytest.mark.parametrize(
    ("source", "result", "temperature", "iterations", "scale"),
    [
        ("dino/teacher_cls_after_head", "dino/sinkhorn_T0.055", 0.055, 3, 1),
        ("dino/teacher_cls_after_head", "dino/sinkhorn_T0.055_iter1", 0.055, 1, 1),
        ("dino/teacher_cls_after_head", "dino/sinkhorn_T0.07_scale3", 0.07, 3, 3),
        ("ibot/teacher_after_head", "ibot/sinkhorn_T0.055", 0.055, 3, 1),
        ("ibot/sinkhorn_unsliced_input", "ibot/sinkhorn_unsliced_output", 0.055, 3, 1),
    ],
)
def test_targets_are_the_official_ones(
    source: str, result: str, temperature: float, iterations: int, scale: float
) -> None:
    targets = sinkhorn(iterations=iterations)(FIXTURE[source] * scale, temperature)
    torch.testing.assert_close(targets, FIXTURE[result], rtol=1e-5, atol=1e-7)


def official(logits: Tensor, temperature: float, iterations: int = 3) -> Tensor:
    """As it is written in the paper: rows and columns of the whole matrix in turn."""
    q = torch.exp(logits.double() / temperature).T  # [K, rows]
    prototypes, rows = q.shape
    q /= q.sum()
    for _ in range(iterations):
        q /= q.sum(dim=1, keepdim=True) * prototypes
        q /= q.sum(dim=0, keepdim=True) * rows
    return (q * rows).T


def by_logarithms(logits: Tensor, temperature: float, iterations: int = 3) -> Tensor:
    """The same without a range: u and v as logarithms."""
    x = logits.double() / temperature
    log_u = torch.zeros(len(x), dtype=torch.float64)
    for _ in range(iterations):
        log_v = -torch.logsumexp(x + log_u[:, None], 0)
        log_u = -torch.logsumexp(x + log_v, 1)
    return (x + log_u[:, None] + log_v).exp()


@pytest.mark.parametrize(("rows", "prototypes"), [(1, 5), (64, 3), (5, 65536)])
@pytest.mark.parametrize("temperature", [0.04, 1.0])
def test_targets_are_those_of_the_iteration(rows: int, prototypes: int, temperature: float) -> None:
    cosines = random(rows, 8, seed=1) @ random(8, prototypes, seed=2)
    cosines = (cosines / cosines.abs().max()).float()  # as of a head with prototypes of length 1
    targets = sinkhorn()(cosines, temperature)
    torch.testing.assert_close(targets.double(), official(cosines, temperature), rtol=1e-4, atol=1e-9)
    torch.testing.assert_close(targets.double(), by_logarithms(cosines, temperature), rtol=1e-4, atol=1e-9)


@pytest.mark.parametrize("shift", [-3.0, 7.0, 1000.0])
def test_a_constant_shift_of_all_logits_changes_nothing(shift: float) -> None:
    logits = (random(20, 9, seed=1, dtype=torch.float32) * 64).round() / 64  # which float32 shifts without rounding
    torch.testing.assert_close(sinkhorn()(logits + shift, 0.25), sinkhorn()(logits, 0.25), rtol=1e-5, atol=0)


def test_rows_are_distributions_and_prototypes_are_used_equally() -> None:
    targets = sinkhorn(iterations=50)(random(30, 10, seed=1, dtype=torch.float32), 0.5)
    torch.testing.assert_close(targets.sum(1), torch.ones(30), rtol=1e-5, atol=0)
    torch.testing.assert_close(targets.sum(0), torch.full((10,), 3.0), rtol=1e-4, atol=0)
    once = sinkhorn(iterations=1)(random(30, 10, seed=1, dtype=torch.float32), 0.5)
    assert (once.sum(0) - 3).abs().max() > 0.1  # which one iteration does not reach


@pytest.mark.parametrize(("rows", "prototypes"), [(16, 64), (64, 16)])
def test_logits_of_a_range_beyond_exp_in_float32(rows: int, prototypes: int) -> None:
    """Here the official iteration gives NaN in float32."""
    logits = random(rows, prototypes, seed=0, dtype=torch.float32) + 2
    assert math.isinf(float((logits / 0.04).exp().max()))
    targets = sinkhorn()(logits, 0.04)
    torch.testing.assert_close(targets.double(), by_logarithms(logits, 0.04), rtol=0, atol=2e-6)


@pytest.mark.parametrize("scale", [10.0, 1e3, 1e30])
def test_logits_of_any_size_give_distributions(scale: float) -> None:
    targets = sinkhorn()(random(30, 10, seed=1, dtype=torch.float32) * scale, 0.04)
    torch.testing.assert_close(targets.sum(1), torch.ones(30), rtol=1e-5, atol=0)


def test_prototypes_that_no_other_row_comes_near() -> None:
    """The first row is too far below the second to count at first, and then has 99 prototypes for itself."""
    logits = torch.zeros(2, 100)
    logits[1] = -50
    logits[1, 0] = 50
    targets = sinkhorn()(logits, 0.1)
    torch.testing.assert_close(targets.double(), by_logarithms(logits, 0.1), rtol=0, atol=1e-6)


def test_a_prototype_that_only_a_faint_row_comes_near() -> None:
    """Its sum of exponentials begins at exp(-100), below what float32 holds."""
    logits = torch.tensor([[0.0, -200.0, -200.0], [-60.0, -70.0, -100.0]])
    torch.testing.assert_close(sinkhorn()(logits, 1.0).double(), by_logarithms(logits, 1.0), rtol=1e-5, atol=1e-9)


def test_one_row_uses_every_prototype_equally() -> None:
    torch.testing.assert_close(sinkhorn()(random(1, 8, dtype=torch.float32), 0.1), torch.full((1, 8), 0.125))


def test_no_rows_give_no_targets() -> None:
    assert sinkhorn()(torch.empty(0, 8), 0.1).shape == (0, 8)


def test_half_precision_is_widened_before_it_is_divided() -> None:
    logits = random(6, 9, seed=1, dtype=torch.bfloat16)
    targets = sinkhorn()(logits, 0.07)
    assert targets.dtype == torch.float32
    assert torch.equal(targets, sinkhorn()(logits.float(), 0.07))


def test_the_logits_are_left_alone() -> None:
    logits = random(6, 9, seed=1, dtype=torch.float32)
    before = logits.clone()
    sinkhorn()(logits, 1.0)
    assert torch.equal(logits, before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_blocks_of_rows_change_nothing_and_one_matrix_is_made(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    logits = random(50, 4096, seed=1, dtype=dtype)
    expected = sinkhorn()(logits, 0.07)
    monkeypatch.setattr("dinoswap.nn.row_blocks.CPU_BLOCK", 4 * 4096)
    with Allocations() as allocations:
        targets = sinkhorn()(logits, 0.07)
    assert torch.equal(targets, expected)
    assert allocations.of_at_least(4 * 4096 + 1) == 1


def test_no_iterations_are_refused() -> None:
    with pytest.raises(ValueError, match="iterations=0"):
        sinkhorn(iterations=0)
