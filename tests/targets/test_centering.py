"""Centering against the official sequences, and what must not move the centre."""

from functools import partial

import pytest
import torch

from allocations import Allocations
from contexts import random
from fixtures import Fixture
from options import build_option

new_centering = partial(build_option, "targets/centering")

FIXTURE = Fixture("losses_dinov2.npz")
TEMPERATURE = FIXTURE.meta["teacher_temp"]


@pytest.mark.parametrize("objective", ["dino", "ibot"])
def test_consecutive_batches_are_the_official_ones(objective: str) -> None:
    """Of 34, 37 and 40 masked tokens for iBOT. Each batch meets the centre of those before it."""
    at = f"{objective}/centering"
    batches = [FIXTURE[f"{at}/it{step}/teacher"] for step in range(3)]
    centering = new_centering(prototypes=batches[0].shape[1], momentum=FIXTURE.meta["center_momentum"])
    for step, logits in enumerate(batches):
        torch.testing.assert_close(centering.center.flatten(), FIXTURE[f"{at}/it{step}/center_used"].flatten())
        targets = centering(logits, TEMPERATURE)
        torch.testing.assert_close(targets, FIXTURE[f"{at}/it{step}/probs"], rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(centering.center.flatten(), FIXTURE[f"{at}/center_after_flush"].flatten())


def test_formula() -> None:
    logits, centering = random(6, 4, seed=1, dtype=torch.float32), new_centering(prototypes=4, momentum=0.75)
    centering.center.fill_(0.5)
    targets = centering(logits, 0.1)
    for row, target in zip(logits, targets, strict=True):
        exponentials = ((row - 0.5) / 0.1).double().exp()
        torch.testing.assert_close(target.double(), exponentials / exponentials.sum(), rtol=1e-5, atol=1e-9)
    mean = sum(logits) / 6
    torch.testing.assert_close(centering.center[0], 0.75 * torch.full((4,), 0.5) + 0.25 * mean)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_blocks_of_rows_change_nothing_and_one_matrix_is_made(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    logits, centering = random(50, 4096, seed=1, dtype=dtype), new_centering(prototypes=4096).eval()
    expected = centering(logits, 0.1)
    monkeypatch.setattr("dinoswap.nn.row_blocks.CPU_BLOCK", 4 * 4096)
    with Allocations() as allocations:
        targets = centering(logits, 0.1)
    assert torch.equal(targets, expected)
    assert allocations.of_at_least(4 * 4096 + 1) == 1


def test_the_centre_stands_still_in_evaluation() -> None:
    centering = new_centering(prototypes=4).eval()
    centering(random(6, 4, dtype=torch.float32), 0.1)
    assert torch.equal(centering.center, torch.zeros(1, 4))


def test_a_batch_without_rows_leaves_the_centre() -> None:
    centering = new_centering(prototypes=4)
    centering(random(6, 4, dtype=torch.float32), 0.1)
    before = centering.center.clone()
    assert centering(torch.empty(0, 4), 0.1).shape == (0, 4)
    assert torch.equal(centering.center, before)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_bad_batch_does_not_outlive_its_step(bad: float) -> None:
    centering = new_centering(prototypes=4)
    centering(random(6, 4, dtype=torch.float32), 0.1)
    before = centering.center.clone()
    logits = random(6, 4, dtype=torch.float32)
    logits[2, 1] = bad
    centering(logits, 0.1)
    assert torch.equal(centering.center, before)


def test_the_mean_of_half_precision_rows_is_taken_in_float32() -> None:
    """1000 rows of 3 add up to a multiple of 16 in bfloat16 and beyond its range in float16 soon after."""
    centering = new_centering(prototypes=1, momentum=0.0)
    centering(torch.full((1000, 1), 3.0, dtype=torch.bfloat16), 1.0)
    assert centering.center.item() == 3.0
    centering(torch.full((1000, 1), 300.0, dtype=torch.float16), 1.0)
    assert centering.center.item() == 300.0


def test_the_centre_is_saved_with_the_weights() -> None:
    assert list(new_centering(prototypes=4).state_dict()) == ["center"]


def test_momentum_out_of_range_is_named() -> None:
    with pytest.raises(ValueError, match=r"momentum=1.0"):
        new_centering(prototypes=4, momentum=1.0)
