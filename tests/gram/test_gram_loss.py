"""The Gram loss against a loop over pairs of tokens, and what an option compares."""

import math
from typing import Any, get_args

import pytest
import torch
from torch import Tensor

from contexts import random
from dinoswap.gram.base import GramAnchoring, Negatives, gram_loss
from dinoswap.objectives.base import Context
from dinoswap.optim.schedules import Phases
from dinoswap.values import Batch, Features, masked_positions
from options import build_option

P, B, N, D = 2, 3, 5, 4


def by_loop(student: Tensor, teacher: Tensor, normalise: bool, negatives: str) -> float:
    """The mean over matrices and entries of the squared difference of two scalar products."""

    def product(a: list[float], b: list[float]) -> float:
        dot = sum(x * y for x, y in zip(a, b, strict=True))
        return dot / math.hypot(*a) / math.hypot(*b) if normalise else dot

    total, entries = 0.0, 0
    for of_student, of_teacher in zip(student.tolist(), teacher.tolist(), strict=True):
        for i in range(len(of_student)):
            for j in range(len(of_student)):
                s, t = product(of_student[i], of_student[j]), product(of_teacher[i], of_teacher[j])
                t = max(t, 0.0) if negatives != "keep" else t
                s = max(s, 0.0) if negatives == "clear" else s
                total, entries = total + (s - t) ** 2, entries + 1
    return total / entries


@pytest.mark.parametrize("normalise", [True, False])
@pytest.mark.parametrize("negatives", get_args(Negatives))
def test_value_is_that_of_the_loop(normalise: bool, negatives: Negatives) -> None:
    student, teacher = random(3, 5, 4, seed=1), random(3, 5, 4, seed=2)
    ours = float(gram_loss(student, teacher, normalise=normalise, negatives=negatives))
    assert ours == pytest.approx(by_loop(student, teacher, normalise, negatives), rel=1e-12)


@pytest.mark.parametrize("negatives", get_args(Negatives))
def test_gradient_is_that_of_finite_differences(negatives: Negatives) -> None:
    teacher = random(2, 4, 3, seed=2)
    assert torch.autograd.gradcheck(
        lambda x: gram_loss(x, teacher, normalise=True, negatives=negatives), random(2, 4, 3, seed=1).requires_grad_()
    )


def test_the_teacher_gets_no_gradient() -> None:
    student, teacher = random(1, 4, 3, seed=1).requires_grad_(), random(1, 4, 3, seed=2).requires_grad_()
    gram_loss(student, teacher, normalise=True, negatives="keep").backward()
    assert teacher.grad is None


def test_a_rotation_of_all_tokens_costs_nothing() -> None:
    """Only similarities are compared: the space may turn."""
    tokens = random(2, 6, 3, seed=1)
    turn = torch.linalg.qr(random(3, 3, seed=2)).Q
    assert float(gram_loss(tokens @ turn, tokens, normalise=False, negatives="keep")) < 1e-25


def test_is_taken_in_float32_under_autocast() -> None:
    student, teacher = (random(2, 9, 8, seed=seed, dtype=torch.float32) for seed in (1, 2))
    with torch.autocast("cpu", torch.bfloat16):
        inside = gram_loss(student, teacher, normalise=True, negatives="keep")
    assert torch.equal(inside, gram_loss(student, teacher, normalise=True, negatives="keep"))


# --- the objective ----------------------------------------------------------------------------------------------------


def patches(student: Tensor, teacher: Tensor, mask: Tensor, weight: float = 1.0) -> Context:
    """Of tokens [P, B, N, D] of both networks."""
    batch = Batch(
        global_crops=torch.empty(2, B, 3, 0, 0),
        local_crops=torch.empty(0, B, 3, 0, 0),
        extra_crops=torch.empty(0, B, 3, 0, 0),
        mask=mask,
        **masked_positions(mask),
        indices=torch.arange(B),
    )
    none = torch.empty(0, 0, 0)
    features = [Features(none, none, none, tokens) for tokens in (student, teacher)]
    return Context(batch, {"gram_weight": weight}, *features, torch.nn.ModuleDict(), torch.nn.ModuleDict())


def some_mask() -> Tensor:
    return torch.rand(P, B, N, generator=torch.Generator().manual_seed(4)) < 0.4


def gram(**changes: Any) -> GramAnchoring:
    schedule = Phases(start=1.0, peak=1.0, end=1.0, warmup=0, cosine=0)
    objective: GramAnchoring = build_option("gram/ema", **{"weight_schedule": schedule, **changes})
    return objective


def test_a_matrix_of_each_crop_or_one_of_all() -> None:
    student, teacher = random(P, B, N, D, seed=1), random(P, B, N, D, seed=2)
    context = patches(student, teacher, some_mask())
    each = by_loop(student.flatten(0, 1), teacher.flatten(0, 1), True, "keep")
    joint = by_loop(student.reshape(1, -1, D), teacher.reshape(1, -1, D), True, "keep")
    assert float(gram()(context)["matrix"]) == pytest.approx(each, rel=1e-12)
    assert float(gram(per_image=False)(context)["matrix"]) == pytest.approx(joint, rel=1e-12)


@pytest.mark.parametrize("tokens", ["masked", "unmasked"])
def test_of_a_part_of_the_tokens(tokens: str) -> None:
    student, teacher, mask = random(P, B, N, D, seed=1), random(P, B, N, D, seed=2), some_mask()
    chosen = mask if tokens == "masked" else ~mask
    expected = by_loop(student[chosen][None], teacher[chosen][None], True, "keep")
    context = patches(student, teacher, mask)
    assert float(gram(per_image=False, tokens=tokens)(context)["matrix"]) == pytest.approx(expected, rel=1e-12)
    assert float(gram(stats=True)(context)[tokens]) == pytest.approx(expected, rel=1e-12)


def test_statistics_are_no_part_of_the_loss_and_carry_no_gradient() -> None:
    student = random(P, B, N, D, seed=1).requires_grad_()
    objective = gram(stats=True, loss_weight=3.0)
    terms = objective(patches(student, random(P, B, N, D, seed=2), some_mask()))
    weights = {term: objective.weight(term, {"gram_weight": 0.5}) for term in terms}
    assert weights == {"matrix": 1.5, "masked": None, "unmasked": None}
    assert [terms[part].requires_grad for part in ("matrix", "masked", "unmasked")] == [True, False, False]


def test_without_a_masked_token_the_part_is_a_zero_on_the_graph() -> None:
    student = random(P, B, N, D, seed=1).requires_grad_()
    nothing = torch.zeros(P, B, N, dtype=torch.bool)
    loss = gram(per_image=False, tokens="masked")(patches(student, random(P, B, N, D), nothing))["matrix"]
    loss.backward()
    assert float(loss.detach()) == 0
    assert student.grad is not None
    assert torch.equal(student.grad, torch.zeros_like(student))


def test_a_step_whose_weight_is_0_asks_no_teacher(monkeypatch: pytest.MonkeyPatch) -> None:
    student, objective = random(P, B, N, D, seed=1).requires_grad_(), gram()
    context = patches(student, random(P, B, N, D), some_mask(), weight=0.0)
    monkeypatch.setattr(objective, "teacher_tokens", lambda _: pytest.fail("was asked"))
    loss = objective(context)["matrix"]
    loss.backward()
    assert float(loss.detach()) == 0
    assert gram(stats=True)(context)["matrix"] > 0  # statistics are of every step


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tokens": "masked"}, "tokens=masked: .* set per_image=false"),
        ({"weight_schedule": Phases(start=-1.0, peak=1.0, end=1.0, warmup=1, cosine=0)}, "weight_schedule.start=-1.0"),
        ({"loss_weight": -1.0}, "loss_weight=-1.0"),
    ],
)
def test_bad_values_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        gram(**changes)


def test_a_matrix_that_is_too_large_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dinoswap.gram.base.LARGEST", P * B * N - 1)
    context = patches(random(P, B, N, D), random(P, B, N, D), some_mask())
    with pytest.raises(ValueError, match=r"per_image=false: a matrix of 30 x 30 tokens is too large; set .*true"):
        gram(per_image=False)(context)
    gram()(context)
