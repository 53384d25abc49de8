"""DINO against the official losses and gradients, and against a loop over the pairs of crops."""

import math
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from contexts import Softmax, context, random
from dinoswap.optim.schedules import Phases
from fixtures import Fixture
from options import build_objective, build_option

dino = partial(build_objective, "dino")
sinkhorn = partial(build_option, "targets/sinkhorn")

FIXTURE = Fixture("losses_dinov2.npz")
IMAGES = FIXTURE.meta["B"]


def test_losses_and_gradients_are_the_official_ones() -> None:
    """Teacher rows are stored with the crops swapped: row i is the target of student row i."""
    teacher = FIXTURE["dino/teacher_cls_after_head"].unflatten(0, (2, IMAGES)).flip(0)
    cls = FIXTURE["dino/student_global"].unflatten(0, (2, IMAGES)).requires_grad_()
    local = FIXTURE["dino/student_local"].unflatten(0, (-1, IMAGES)).requires_grad_()
    terms = dino(targets=sinkhorn())(context(cls, local, teacher_cls=teacher, temperature=0.055))
    torch.testing.assert_close(terms["local"], FIXTURE["dino/loss_local_scaled"], rtol=1e-6, atol=0)
    torch.testing.assert_close(terms["global"], FIXTURE["dino/loss_global_scaled"], rtol=1e-6, atol=0)

    pairs = 2 + 2 * len(local)
    torch.testing.assert_close(terms["local"] * pairs, FIXTURE["dino/loss_local_raw"], rtol=1e-6, atol=0)
    torch.testing.assert_close(terms["global"] * pairs / 2, FIXTURE["dino/loss_global_raw"], rtol=1e-6, atol=0)
    (sum(terms.values()) * pairs).backward()
    for logits, key in ((local, "grad_local_of_local_raw"), (cls, "grad_global_of_2x_global_raw")):
        assert logits.grad is not None
        torch.testing.assert_close(logits.grad.flatten(0, 1), FIXTURE[f"dino/{key}"], rtol=2e-5, atol=1e-6)


def test_each_network_has_a_head_of_its_own() -> None:
    cls, local, teacher = random(2, 3, 5, seed=1), random(4, 3, 5, seed=2), random(2, 3, 5, seed=3)
    tripling = nn.Linear(5, 5, bias=False, dtype=cls.dtype)
    nn.init.eye_(tripling.weight).data.mul_(3)
    tokens, heads = context(cls, local, teacher_cls=teacher), nn.ModuleDict({"dino_head": tripling})
    objective = dino(targets=Softmax())
    for changed, a, b in ((replace(tokens, teacher=heads), 1, 3), (replace(tokens, student=heads), 3, 1)):
        expected = objective(context(a * cls, a * local, teacher_cls=b * teacher))
        torch.testing.assert_close(objective(changed), expected)


def by_loop(
    cls: Tensor, local: Tensor, teacher: Tensor, temperature: float, all_pairs: bool = False
) -> tuple[float, float]:
    """Mean over all pairs of different crops, or all pairs, in two parts; without local crops their share counts one
    pair."""

    def pair(target: Tensor, student: Tensor) -> float:
        total = 0.0
        for t, s in zip(target, student, strict=True):
            p, q = (t / temperature).softmax(0), (s / 0.1).softmax(0)
            total -= sum(float(a) * math.log(float(b)) for a, b in zip(p, q, strict=True))
        return total / len(target)

    global_pairs = [(t, s) for t in (0, 1) for s in (0, 1) if all_pairs or t != s]
    pairs = len(global_pairs) + max(2 * len(local), 1)
    of_globals = sum(pair(teacher[t], cls[s]) for t, s in global_pairs) / pairs
    of_locals = sum(pair(target, crop) for target in teacher for crop in local) / pairs
    return of_globals, of_locals


@pytest.mark.parametrize("locals_", [0, 1, 3])
@pytest.mark.parametrize("images", [1, 4])
@pytest.mark.parametrize("pairs", ["cross", "all"])
def test_terms_are_those_of_the_loop(images: int, locals_: int, pairs: str) -> None:
    cls, teacher = random(2, images, 7, seed=1), random(2, images, 7, seed=2)
    local = random(locals_, images, 7, seed=3)
    terms = dino(targets=Softmax(), global_pairs=pairs)(context(cls, local, teacher_cls=teacher))
    of_globals, of_locals = by_loop(cls, local, teacher, 0.05, pairs == "all")
    assert float(terms["global"]) == pytest.approx(of_globals, rel=1e-12)
    assert ("local" in terms) == (locals_ > 0)
    assert float(terms.get("local", torch.zeros(()))) == pytest.approx(of_locals, rel=1e-12)


def test_a_crop_is_not_its_own_target() -> None:
    """Moving the teacher's view of crop 1 changes the gradient of crop 0 only."""
    cls, teacher = random(2, 3, 7, seed=1).requires_grad_(), random(2, 3, 7, seed=2)
    gradients = []
    for moved in (teacher, torch.stack([teacher[0], teacher[1].flip(-1)])):
        (gradient,) = torch.autograd.grad(
            dino(targets=Softmax())(context(cls, cls[:0], teacher_cls=moved))["global"], cls
        )
        gradients.append(gradient)
    assert torch.equal(gradients[0][1], gradients[1][1])
    assert not torch.allclose(gradients[0][0], gradients[1][0])


def test_the_teacher_gets_no_gradient() -> None:
    cls, teacher = random(2, 3, 7, seed=1).requires_grad_(), random(2, 3, 7, seed=2).requires_grad_()
    dino(targets=Softmax())(context(cls, cls[:0], teacher_cls=teacher))["global"].backward()
    assert teacher.grad is None


def test_the_local_term_is_weighted_by_the_schedule_and_the_global_one_is_not() -> None:
    phases = Phases(start=1.0, peak=1.0, end=0.5, warmup=2, cosine=0)
    objective = dino(targets=Softmax(), loss_weight=3.0, local_weight=phases)
    schedule = objective.schedules(4)["dino_local_weight"]
    assert [schedule[step] for step in range(4)] == [1.0, 1.0, 0.5, 0.5]
    hyper = {"dino_local_weight": schedule[3]}
    assert (objective.weight("local", hyper), objective.weight("global", hyper)) == (1.5, 3.0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"student_temp": 0.0}, "student_temp=0.0"), ({"loss_weight": -1.0}, "loss_weight=-1.0"),
     ({"loss_weight": math.nan}, "loss_weight=nan"),
     ({"local_weight": Phases(start=1.0, peak=1.0, end=-0.5, warmup=0, cosine=0)}, "local_weight.end=-0.5")],
)  # fmt: skip
def test_bad_values_are_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dino(targets=Softmax(), **arguments)
