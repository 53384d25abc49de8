"""KoLeo against the official values and gradient, a loop, and where the official code has no usable answer."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from allocations import Allocations
from contexts import context, random
from dinoswap.objectives.koleo import koleo
from fixtures import Fixture
from options import build_objective

FIXTURE = Fixture("losses_dinov2.npz")


def test_value_and_gradient_are_the_official_ones() -> None:
    x = FIXTURE["koleo/x"].requires_grad_()
    loss = koleo(x)
    loss.backward()
    torch.testing.assert_close(loss, FIXTURE["koleo/loss"], rtol=1e-6, atol=0)
    torch.testing.assert_close(x.grad, FIXTURE["koleo/grad"], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("case", ["exact_duplicate", "B2"])
def test_value_of_special_batches_is_the_official_one(case: str) -> None:
    torch.testing.assert_close(koleo(FIXTURE[f"koleo/x_{case}"]), FIXTURE[f"koleo/loss_{case}"], rtol=1e-6, atol=0)


def by_loop(x: Tensor, neighbours: int = 1, group: int = 1000) -> float:
    rows = [[v / math.sqrt(sum(w * w for w in row)) for v in row] for row in x.tolist()]
    total = 0.0
    for i, row in enumerate(rows):
        distances = [math.dist(row, other) for j, other in enumerate(rows) if j != i and j // group == i // group]
        total -= sum(math.log(distance) for distance in sorted(distances)[:neighbours])
    return total / (len(rows) * neighbours)


@pytest.mark.parametrize("images", [2, 3, 9])
def test_value_is_that_of_the_loop(images: int) -> None:
    x = random(images, 5, seed=images)
    assert float(koleo(x)) == pytest.approx(by_loop(x), rel=1e-6)  # 1e-8 stands in both logarithm and distance
    assert float(koleo(x[torch.randperm(images)] * 3)) == pytest.approx(float(koleo(x)), rel=1e-6)


@pytest.mark.parametrize(("neighbours", "group"), [(2, None), (1, 4), (3, 4), (1, 2), (11, 12)])
def test_neighbours_and_groups_are_those_of_the_loop(neighbours: int, group: int | None) -> None:
    x = random(12, 5, seed=3)
    ours = float(koleo(x, neighbours=neighbours, group=group))
    assert ours == pytest.approx(by_loop(x, neighbours, group or 12), rel=1e-6)


@pytest.mark.parametrize(("neighbours", "group"), [(1, None), (2, None), (3, 4)])
def test_blocks_of_rows_find_the_same_neighbours(
    neighbours: int, group: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Value and gradient are those of all rows at once, and no matrix of all pairs is made."""
    x = random(256, 3, seed=5)
    whole = x.clone().requires_grad_()
    koleo(whole, neighbours=neighbours, group=group).backward()
    monkeypatch.setattr("dinoswap.nn.row_blocks.CPU_BLOCK", 10 * 256)
    in_blocks = x.clone().requires_grad_()
    with Allocations() as allocations:
        loss = koleo(in_blocks, neighbours=neighbours, group=group)
        loss.backward()
    assert float(loss.detach()) == pytest.approx(by_loop(x, neighbours, group or 256), rel=1e-6)
    assert whole.grad is not None and in_blocks.grad is not None
    torch.testing.assert_close(in_blocks.grad, whole.grad, rtol=1e-12, atol=0)
    assert not allocations.of_at_least(11 * 256)


@pytest.mark.parametrize(
    ("arguments", "images", "message"),
    [
        ({"group": 4}, (6, 12), r"group=4: must divide the 6 images .* one; change data.batch_size"),
        ({"group": 8, "gather": True}, (6, 12), "group=8: must divide the 12 images"),
        ({"neighbours": 6}, (6, 12), "neighbours=6: an image has 5 others"),
        ({"neighbours": 2, "group": 2}, (6, 12), "neighbours=2: an image has 1 others"),
        ({"neighbours": 12, "gather": True}, (6, 12), "neighbours=12: an image has 11 others"),
    ],
)
def test_batches_that_cannot_be_grouped_are_refused(
    arguments: dict[str, Any], images: tuple[int, int], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        build_objective("koleo", **arguments).check_images(*images)


def test_batches_that_can_be_grouped_are_not_refused() -> None:
    build_objective("koleo").check_images(1, 1)  # an image alone has no neighbour and costs nothing
    build_objective("koleo", group=3, neighbours=2).check_images(6, 12)
    build_objective("koleo", group=12, neighbours=11, gather=True).check_images(6, 12)


@pytest.mark.parametrize("arguments", [{"neighbours": 0}, {"group": 1}])
def test_values_out_of_range_are_named(arguments: dict[str, Any]) -> None:
    ((name, value),) = arguments.items()
    with pytest.raises(ValueError, match=f"{name}={value}: must be at least"):
        build_objective("koleo", **arguments)


def test_gradient_is_that_of_finite_differences() -> None:
    assert torch.autograd.gradcheck(koleo, random(6, 5, seed=1).requires_grad_())


def test_crops_are_summed_and_never_compared_with_each_other() -> None:
    x = random(4, 5, seed=1)
    terms = build_objective("koleo")(context(torch.stack([x, x])))
    assert float(terms["cls"]) == pytest.approx(2 * float(koleo(x)))


@pytest.mark.parametrize("x", [torch.ones(6, 5), torch.zeros(6, 5), torch.ones(6, 5) * 1e20], ids=["ones", "0", "huge"])
def test_all_duplicates_cost_much_and_push_nowhere(x: Tensor) -> None:
    x.requires_grad_()
    loss = koleo(x)
    loss.backward()
    assert x.grad is not None
    assert loss > 10
    assert loss.isfinite()
    assert torch.equal(x.grad, torch.zeros_like(x))


def test_duplicates_do_not_disturb_the_gradient_of_the_others() -> None:
    """The official gradient of a duplicate has the size of 1 / 1e-8."""
    pair, others = random(1, 5, seed=1, dtype=torch.float32), random(4, 5, seed=2, dtype=torch.float32)
    x = torch.cat([pair, pair, others]).requires_grad_()
    koleo(x).backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()
    assert x.grad.abs().max() < 10
    assert x.grad[2:].abs().max() > 1e-3


def test_a_batch_of_one_is_a_zero_on_the_graph() -> None:
    x = random(1, 5).requires_grad_()
    loss = koleo(x)
    loss.backward()
    assert float(loss.detach()) == 0
    assert x.grad is not None
    assert torch.equal(x.grad, torch.zeros(1, 5, dtype=torch.float64))


def test_is_taken_in_float32_under_autocast() -> None:
    """bfloat16 products cannot rank neighbours whose cosines differ in the third digit."""
    x = torch.nn.functional.normalize(1 + 0.01 * random(32, 64, seed=1, dtype=torch.float32), dim=-1)
    with torch.autocast("cpu", torch.bfloat16):
        inside = koleo(x)
    assert torch.equal(inside, koleo(x))
    half = x.bfloat16()
    assert torch.equal(koleo(half), koleo(half.float()))


def test_the_average_over_crops_is_half_the_sum() -> None:
    features = context(cls=random(2, 5, 8), local=random(0, 5, 8))
    total, mean = (build_objective("koleo", over_crops=how)(features)["cls"] for how in ("sum", "mean"))
    torch.testing.assert_close(mean * 2, total)
    torch.testing.assert_close(mean, (koleo(random(2, 5, 8)[0]) + koleo(random(2, 5, 8)[1])) / 2)
