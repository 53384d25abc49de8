"""reduction=weighted_token_mean against the legacy iBOT loss, a loop over crops, and per_sample."""

import pytest
import torch
from torch import Tensor

from contexts import context, random
from dinoswap.objectives.base import Reduction
from dinoswap.reduction.per_sample import PerSample
from dinoswap.reduction.weighted_token_mean import WeightedTokenMean
from fixtures import LEGACY, Fixture
from options import build_objective, build_option

FIXTURE = Fixture("losses_legacy.npz", LEGACY)


def indices(mask: Tensor) -> Tensor:
    return mask.flatten().nonzero()[:, 0]


@pytest.mark.parametrize("mask_kind", ["variable", "bernoulli"])
@pytest.mark.parametrize(("commit", "reduction"), [("67f6a87", WeightedTokenMean()), ("b23df50", PerSample())])
def test_ibot_is_the_legacy_one(mask_kind: str, commit: str, reduction: Reduction) -> None:
    """The official normalisation came with the last of its commits."""
    mask = FIXTURE[f"ibot/mask_{mask_kind}"]
    student, teacher = FIXTURE["ibot/student"].requires_grad_(), FIXTURE["ibot/teacher"]
    given = context(patch=student[mask], teacher_patch=teacher[mask], mask=mask.unsqueeze(0), temperature=0.06)
    loss = build_objective("ibot", targets=build_option("targets/sinkhorn"), reduction=reduction)(given)["masked"]
    torch.testing.assert_close(loss, FIXTURE[f"ibot/{commit}/{mask_kind}_none/loss"], rtol=1e-6, atol=0)
    loss.backward()
    expected = FIXTURE[f"ibot/{commit}/{mask_kind}_none/grad_student"]
    torch.testing.assert_close(student.grad, expected, rtol=0, atol=1e-6 * float(expected.abs().max()))


@pytest.mark.parametrize("carriers", [1, 2])  # one masked crop per image, or both globals
def test_value_is_that_of_the_loop_and_of_per_sample(carriers: int) -> None:
    mask = random(carriers, 3, 8, seed=carriers) > 0.3
    mask[0, 1] = False
    losses = random(int(mask.sum()), seed=5)
    expected, start = 0.0, 0
    for crop in mask.flatten(0, 1):
        for loss in losses[start : start + int(crop.sum())].tolist():
            expected += loss / int(crop.sum()) / len(losses)
        start += int(crop.sum())
    value = float(WeightedTokenMean()(losses, mask, indices(mask)))
    assert value == pytest.approx(expected, rel=1e-12)
    per_sample = float(PerSample()(losses, mask, indices(mask)))
    assert value == pytest.approx(per_sample * carriers * 3 / len(losses), rel=1e-12)


def test_nothing_masked_is_a_zero_on_the_graph() -> None:
    source = torch.empty(0, requires_grad=True)
    reduced = WeightedTokenMean()(source * 2, torch.zeros(2, 3, 8, dtype=torch.bool), torch.empty(0, dtype=torch.int64))
    reduced.backward()
    assert reduced.item() == 0
    assert source.grad is not None
