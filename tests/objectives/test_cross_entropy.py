"""Cross-entropy in blocks of rows against its formula, its gradients, and the memory that it takes."""

import pytest
import torch
from torch import Tensor

from allocations import Allocations
from contexts import random
from dinoswap.objectives.cross_entropy import cross_entropy, cross_entropy_of_views

SHAPES = [  # of targets and logits
    ((7, 10), (7, 10)),
    ((10,), (10,)),
    ((4, 10), (3, 4, 10)),
    ((3, 1, 10), (3, 4, 10)),
    ((2, 3, 2, 10), (2, 3, 2, 10)),
    ((0, 10), (0, 10)),
    ((0, 10), (3, 0, 10)),
]
BLOCKS = [1, 25, 40, 10**6]  # elements: one row at a time, blocks of 2 and of 4 rows, everything at once
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


def plain(targets: Tensor, logits: Tensor, temperature: float) -> Tensor:
    wide = logits.double() if logits.dtype == torch.float64 else logits.float()
    return -(targets * (wide / temperature).log_softmax(-1)).sum(-1)


def values(targets: tuple[int, ...], logits: tuple[int, ...], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Targets as a normaliser gives them for logits of `dtype`, and logits that require a gradient."""
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    return random(*targets, seed=1, dtype=wide).softmax(-1), random(*logits, seed=2, dtype=dtype).requires_grad_()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize(("of_targets", "of_logits"), SHAPES)
def test_losses_and_gradients_are_those_of_the_formula(
    of_targets: tuple[int, ...],
    of_logits: tuple[int, ...],
    block: int,
    dtype: torch.dtype,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """To the last bit."""
    monkeypatch.setattr("dinoswap.nn.row_blocks.CPU_BLOCK", block)
    targets, logits = values(of_targets, of_logits, dtype)
    losses, expected = cross_entropy(targets, logits, 0.1), plain(targets, logits, 0.1)
    assert losses.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert torch.equal(losses, expected)
    weights = losses.detach().cos()  # another gradient for each row
    (gradient,) = torch.autograd.grad(losses, logits, weights)
    (of_formula,) = torch.autograd.grad(expected, logits, weights)
    assert gradient.dtype == dtype
    assert torch.equal(gradient, of_formula)


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize(("of_targets", "of_logits"), SHAPES[:-2])
def test_gradients_are_those_of_finite_differences(
    of_targets: tuple[int, ...], of_logits: tuple[int, ...], block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of targets that sum to anything: rows of the floored Sinkhorn may fall short of 1."""
    monkeypatch.setattr("dinoswap.nn.row_blocks.CPU_BLOCK", block)
    targets, logits = random(*of_targets, seed=1).abs(), random(*of_logits, seed=2).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: cross_entropy(targets, x, 0.7), logits)


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("block", BLOCKS)
def test_views_with_targets_of_their_own(block: int, overwrite: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Losses and gradients are those of each part by itself; a part may have no view."""
    monkeypatch.setattr("dinoswap.nn.row_blocks.CPU_BLOCK", block)
    logits = random(6, 4, 10, seed=2, dtype=torch.float32).requires_grad_()
    targets = [random(*shape, seed=3).float().softmax(-1) for shape in ((2, 4, 10), (4, 10), (4, 10))]
    parts = zip([2, 4, 0], targets, strict=True)
    losses = cross_entropy_of_views(list(parts), logits + 0.0, 0.1, overwrite)
    expected = torch.cat([plain(targets[0], logits[:2], 0.1), plain(targets[1], logits[2:], 0.1)])
    assert torch.equal(losses, expected)
    weights = losses.detach().cos()
    (gradient,) = torch.autograd.grad(losses, logits, weights)
    (of_formula,) = torch.autograd.grad(expected, logits, weights)
    assert torch.equal(gradient, of_formula)


def test_targets_are_constants() -> None:
    targets, logits = values((3, 10), (3, 10), torch.float32)
    targets.requires_grad_()
    cross_entropy(targets, logits, 0.1).sum().backward()
    assert targets.grad is None
    assert not cross_entropy(targets, logits.detach(), 0.1).requires_grad


# --- memory -----------------------------------------------------------------------------------------------------------

ROWS, PROTOTYPES = 50, 4096


@pytest.fixture
def blocks_of_4_rows(monkeypatch: pytest.MonkeyPatch) -> int:
    """The elements of one."""
    monkeypatch.setattr("dinoswap.nn.row_blocks.CPU_BLOCK", 4 * PROTOTYPES)
    return 4 * PROTOTYPES


def computed(logits: Tensor) -> Tensor:
    """As by a network whose last step keeps no result for its backward."""
    return logits + 0.0


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("overwrite", [False, True])
def test_temporaries_are_no_larger_than_a_block(dtype: torch.dtype, overwrite: bool, blocks_of_4_rows: int) -> None:
    """Beside the gradient, where that does not take the place of the logits."""
    targets, leaf = values((ROWS, PROTOTYPES), (ROWS, PROTOTYPES), dtype)
    logits = computed(leaf)
    with Allocations() as forward:
        losses = cross_entropy(targets, logits, 0.1, overwrite_logits=overwrite)
    assert max(forward.elements) <= blocks_of_4_rows
    with Allocations() as backward:
        torch.autograd.grad(losses, logits, torch.ones_like(losses))
    assert backward.of_at_least(blocks_of_4_rows + 1) == (0 if overwrite else 1)


def test_targets_that_several_crops_share_are_not_repeated(blocks_of_4_rows: int) -> None:
    targets, logits = values((ROWS // 5, PROTOTYPES), (5, ROWS // 5, PROTOTYPES), torch.float32)
    with Allocations() as forward:
        cross_entropy(targets, logits, 0.1)
    assert max(forward.elements) <= blocks_of_4_rows


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_gradient_takes_the_place_of_the_logits_where_it_may(dtype: torch.dtype, blocks_of_4_rows: int) -> None:
    targets, leaf = values((5, PROTOTYPES), (2, 5, PROTOTYPES), dtype)
    logits = computed(leaf.flatten(0, 1)).unflatten(0, (2, 5))  # a view, as DINO's
    before = leaf.detach().clone()
    cross_entropy(targets, logits, 0.1, overwrite_logits=True).sum().backward()
    (expected,) = torch.autograd.grad(cross_entropy(targets, leaf, 0.1).sum(), leaf)
    assert leaf.grad is not None
    assert torch.equal(leaf.grad, expected)
    assert torch.equal(logits, expected)
    assert torch.equal(leaf, before)


def test_leaves_are_not_overwritten() -> None:
    targets, leaf = values((6, 10), (6, 10), torch.float32)
    before = leaf.detach().clone()
    for logits in (leaf, leaf.unflatten(0, (2, 3)).flatten(0, 1)):
        cross_entropy(targets, logits, 0.1, overwrite_logits=True).sum().backward()
        assert torch.equal(leaf, before)


def test_whoever_needs_overwritten_logits_hears_of_it() -> None:
    targets, leaf = values((6, 10), (6, 10), torch.float32)
    logits = computed(leaf)
    squared = logits.square().sum()  # whose backward reads them
    loss = cross_entropy(targets, logits, 0.1, overwrite_logits=True).sum()
    loss.backward(retain_graph=True)
    for second in (loss, squared):
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            second.backward()
