"""The Sinkhorn with an absolute floor against the legacy targets, its formula in float64, and the sound one."""

from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from allocations import Allocations
from contexts import random
from fixtures import LEGACY, Fixture
from options import build_option
from ranks import on_ranks

sinkhorn = partial(build_option, "targets/sinkhorn")
sinkhorn_floored = partial(build_option, "targets/sinkhorn_floored")

FIXTURE = Fixture("losses_legacy.npz", LEGACY)
LOGITS = FIXTURE["proto/teacher_logits_flat"]


@pytest.mark.parametrize(
    ("source", "result", "temperature", "arguments"),
    [
        ("teacher_logits_flat", "targets_temp0.06", 0.06, {}),
        ("teacher_logits_flat", "targets_temp0.06_10it", 0.06, {"iterations": 10}),
        ("teacher_logits_flat", "targets_temp0.06_eps0", 0.06, {"eps": 0.0}),
        ("big_logits", "big_targets_temp0.04", 0.04, {}),
        ("underflow_logits", "underflow_targets_temp0.04", 0.04, {}),
    ],
)
def test_targets_are_the_legacy_ones(source: str, result: str, temperature: float, arguments: dict) -> None:
    targets = sinkhorn_floored(**arguments)(FIXTURE[f"proto/{source}"], temperature)
    torch.testing.assert_close(targets, FIXTURE[f"proto/{result}"], rtol=1e-6, atol=1e-12)


def by_loop(logits: Tensor, temperature: float, iterations: int, eps: float) -> Tensor:
    rows, prototypes = logits.shape
    q = ((logits.double() - logits.max()) / temperature).exp()
    for _ in range(iterations):
        for k in range(prototypes):
            q[:, k] /= q[:, k].sum() + eps
        for b in range(rows):
            q[b] /= q[b].sum() + eps
    return q


@pytest.mark.parametrize("eps", [1e-8, 1e-3])
@pytest.mark.parametrize("iterations", [1, 3])
def test_targets_are_those_of_the_loop(iterations: int, eps: float) -> None:
    logits = random(9, 7, seed=1, dtype=torch.float32) * 0.5
    targets = sinkhorn_floored(iterations=iterations, eps=eps)(logits, 0.06)
    torch.testing.assert_close(targets.double(), by_loop(logits, 0.06, iterations, eps), rtol=1e-4, atol=1e-7)


def test_without_a_floor_targets_are_the_sound_ones() -> None:
    for logits in (LOGITS, random(30, 10, seed=1, dtype=torch.float32)):
        torch.testing.assert_close(
            sinkhorn_floored(eps=0.0)(logits, 0.06), sinkhorn()(logits, 0.06), rtol=1e-5, atol=1e-6
        )


def test_the_floor_decides_targets_of_faint_rows() -> None:
    """Of the legacy logits a tenth or more have another first prototype; a row far below the largest has none."""
    floored, sound = sinkhorn_floored()(LOGITS, 0.06), sinkhorn()(LOGITS, 0.06)
    assert (floored.argmax(1) != sound.argmax(1)).float().mean() > 0.1
    faint = sinkhorn_floored()(torch.tensor([[9.0, 9.0, 9.0], [0.5, 0.3, -0.2]]), 0.04)
    assert faint[0].sum() == 1
    assert faint[1].sum() == 0


def test_no_rows_give_no_targets() -> None:
    assert sinkhorn_floored()(torch.empty(0, 8), 0.1).shape == (0, 8)


def test_float32_under_autocast_and_of_half_precision() -> None:
    logits = random(6, 9, seed=1, dtype=torch.bfloat16)
    expected = sinkhorn_floored()(logits.float(), 0.07)
    with torch.autocast("cpu", torch.bfloat16):
        targets = sinkhorn_floored()(logits, 0.07)
    assert targets.dtype == torch.float32
    assert torch.equal(targets, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_one_matrix_is_made(dtype: torch.dtype) -> None:
    logits = random(50, 30, seed=1, dtype=dtype)
    with Allocations() as allocations:
        sinkhorn_floored()(logits, 0.07)
    assert allocations.of_at_least(logits.numel()) == 1


def test_the_logits_are_left_alone() -> None:
    logits = random(6, 9, seed=1, dtype=torch.float32)
    before = logits.clone()
    sinkhorn_floored()(logits, 1.0)
    assert torch.equal(logits, before)


@pytest.mark.parametrize(
    ("arguments", "message"), [({"iterations": 0}, "iterations=0"), ({"eps": -1e-8}, "eps=-1e-08")]
)
def test_bad_values_are_named(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sinkhorn_floored(**arguments)


# --- ranks ------------------------------------------------------------------------------------------------------------

NORMALISERS: list[nn.Module] = [sinkhorn_floored(), sinkhorn()]
CUTS = (0, 40, 96)  # rows of rank 0: none, some, all


def targets_of_rank(rank: int) -> list[Tensor]:
    parts = [LOGITS.tensor_split([cut])[rank] for cut in CUTS]
    return [normaliser(part, 0.06) for normaliser in NORMALISERS for part in parts]


def test_ranks_normalise_over_the_rows_of_all(tmp_path: Path) -> None:
    """Those without rows too take part in every sum."""
    of_rank = on_ranks(targets_of_rank, tmp_path)
    expected = [normaliser(LOGITS, 0.06) for normaliser in NORMALISERS for _ in CUTS]
    for parts, whole in zip(zip(*of_rank, strict=True), expected, strict=True):
        torch.testing.assert_close(torch.cat(parts), whole, rtol=1e-5, atol=1e-7)
