"""The teacher's moving average against a loop over its formula."""

import copy

import pytest
import torch
from torch import Tensor, nn

from dinoswap.optim.ema import EMA

NOT_SKIPPED, SKIPPED = torch.zeros(()), torch.ones(())


def networks() -> tuple[nn.ModuleDict, nn.ModuleDict]:
    """A teacher apart from its student, which has a network that the teacher lacks; both have buffers."""
    torch.manual_seed(0)
    student = nn.ModuleDict({"backbone": nn.Linear(4, 3), "projector": nn.Linear(3, 2), "norm": nn.BatchNorm1d(3)})
    teacher = nn.ModuleDict({name: copy.deepcopy(student[name]) for name in ("norm", "backbone")})
    with torch.no_grad():
        for value in teacher.state_dict().values():
            value.add_(1)
    return teacher, student


def tensors(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


@pytest.mark.parametrize("momentum", [0.0, 0.9, 0.996, 1.0])
def test_update_is_the_formula(momentum: float) -> None:
    teacher, student = networks()
    before, of_student = tensors(teacher), tensors(student)
    EMA(teacher, student).update(momentum, NOT_SKIPPED)
    parameters = {name for name, _ in teacher.named_parameters()}
    for name, value in teacher.state_dict().items():
        if name in parameters:
            expected = momentum * before[name] + (1 - momentum) * of_student[name]
            torch.testing.assert_close(value, expected, rtol=1e-6, atol=1e-7)
        else:
            assert torch.equal(value, before[name]), name  # buffers are not averaged
    assert all(torch.equal(value, of_student[name]) for name, value in student.state_dict().items())


def test_momentum_1_and_0_are_exact() -> None:
    teacher, student = networks()
    before = tensors(teacher)
    average = EMA(teacher, student)
    average.update(1.0, NOT_SKIPPED)
    assert all(torch.equal(value, before[name]) for name, value in teacher.named_parameters())
    average.update(0.0, NOT_SKIPPED)
    of_student = dict(student.named_parameters())
    assert all(torch.equal(value, of_student[name]) for name, value in teacher.named_parameters())


def test_a_skipped_step_moves_nothing() -> None:
    teacher, student = networks()
    before = tensors(teacher)
    EMA(teacher, student).update(0.5, SKIPPED)
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())


def test_many_updates_are_the_geometric_series() -> None:
    teacher, student = networks()
    start, target = tensors(teacher)["backbone.weight"], tensors(student)["backbone.weight"]
    average = EMA(teacher, student)
    for _ in range(20):
        average.update(0.9, NOT_SKIPPED)
    expected = target + 0.9**20 * (start - target)
    torch.testing.assert_close(teacher.state_dict()["backbone.weight"], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("momentum", [0.3, 0.992, 0.9999])
def test_one_call_is_the_loop_over_parameters_to_the_bit(momentum: float) -> None:
    teacher, student = networks()
    of_student = dict(student.named_parameters())
    expected = {name: p.detach().lerp(of_student[name], 1 - momentum) for name, p in teacher.named_parameters()}
    EMA(teacher, student).update(momentum, NOT_SKIPPED)
    assert all(torch.equal(p, expected[name]) for name, p in teacher.named_parameters())
