"""reduction=per_token: the mean over all masked tokens, which is per_sample where all crops have as many."""

import pytest
import torch
from torch import Tensor

from contexts import random
from dinoswap.reduction.per_sample import PerSample
from dinoswap.reduction.per_token import PerToken


def indices(mask: Tensor) -> Tensor:
    return mask.flatten().nonzero()[:, 0]


def test_value_is_that_of_the_loop() -> None:
    mask = random(2, 3, 8) > 0.3
    losses = random(int(mask.sum()), seed=5)
    expected = sum(losses.tolist()) / len(losses)
    assert float(PerToken()(losses, mask, indices(mask))) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(("last", "equal"), [(5, True), (6, False)])
def test_equals_per_sample_where_all_crops_have_equal_counts(last: int, equal: bool) -> None:
    mask = torch.zeros(2, 3, 8, dtype=torch.bool)
    mask[..., 2:5] = True
    mask[1, 2, 2:last] = True
    losses = random(int(mask.sum()), seed=1)
    values = [float(reduction(losses, mask, indices(mask))) for reduction in (PerToken(), PerSample())]
    assert (values[0] == pytest.approx(values[1], rel=1e-12)) is equal


def test_nothing_masked_is_a_zero_on_the_graph() -> None:
    source = torch.empty(0, requires_grad=True)
    reduced = PerToken()(source * 2, torch.zeros(2, 3, 8, dtype=torch.bool), torch.empty(0, dtype=torch.int64))
    reduced.backward()
    assert reduced.item() == 0
    assert source.grad is not None
