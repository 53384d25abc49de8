"""iBOT against the official losses and gradients, and against a loop over masked tokens."""

import math
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from allocations import Allocations
from contexts import Softmax, context, random
from dinoswap.reduction.per_sample import PerSample
from fixtures import Fixture
from options import build_objective, build_option

ibot = partial(build_objective, "ibot")
sinkhorn = partial(build_option, "targets/sinkhorn")

FIXTURE = Fixture("losses_dinov2.npz")
MASK = FIXTURE["ibot/masks"].unflatten(0, (2, -1))  # [P B, N] -> [P, B, N]
COUNT = int(FIXTURE["ibot/n_masked"])


class Given(nn.Module):
    """The teacher's rows are distributions already."""

    def forward(self, logits: Tensor, temperature: float) -> Tensor:
        return logits


def test_loss_and_gradient_are_the_official_ones() -> None:
    student = FIXTURE["ibot/student_after_head"].requires_grad_()
    teacher = FIXTURE["ibot/teacher_after_head"]
    objective = ibot(targets=sinkhorn(), reduction=PerSample())
    loss = objective(context(patch=student, mask=MASK, teacher_patch=teacher, temperature=0.055))["masked"]
    torch.testing.assert_close(loss, FIXTURE["ibot/forward_masked"], rtol=1e-6, atol=0)
    torch.testing.assert_close(loss, FIXTURE["ibot/forward_masked_weight_None"], rtol=1e-6, atol=0)
    loss.backward()
    torch.testing.assert_close(student.grad, FIXTURE["ibot/forward_masked_grad"], rtol=2e-5, atol=1e-7)


def test_loss_of_each_token_is_the_official_one() -> None:
    objective = ibot(targets=Given(), reduction=lambda losses, mask, indices: losses)
    student, targets = FIXTURE["ibot/student_after_head"], FIXTURE["ibot/sinkhorn_T0.055"]
    losses = objective(context(patch=student, mask=MASK, teacher_patch=targets))["masked"]
    torch.testing.assert_close(-losses, FIXTURE["ibot/per_token_negCE(t.logsoftmax)"], rtol=1e-6, atol=0)


@pytest.mark.parametrize("variant", ["forward_masked_padded", "dense"])
def test_only_masked_rows_count(variant: str) -> None:
    """Officially rows are padded to a bound, or given for all tokens; either way it is the masked ones that count."""
    rows = FIXTURE["ibot/masks"] if variant == "dense" else slice(COUNT)
    student, teacher = (FIXTURE[f"ibot/{variant}_{network}"][rows] for network in ("student", "teacher"))
    loss = ibot(targets=Given(), reduction=PerSample())(context(patch=student, mask=MASK, teacher_patch=teacher))[
        "masked"
    ]
    official = "dense_forward" if variant == "dense" else variant
    torch.testing.assert_close(loss, FIXTURE[f"ibot/{official}"], rtol=1e-6, atol=0)


def test_each_network_has_a_head_of_its_own() -> None:
    student, teacher = FIXTURE["ibot/student_after_head"], FIXTURE["ibot/teacher_after_head"]
    tripling = nn.Linear(student.shape[1], student.shape[1], bias=False)
    nn.init.eye_(tripling.weight).data.mul_(3)
    tokens, heads = context(patch=student, mask=MASK, teacher_patch=teacher), nn.ModuleDict({"ibot_head": tripling})
    objective = ibot(targets=Softmax(), reduction=PerSample())
    for changed, a, b in ((replace(tokens, teacher=heads), 1, 3), (replace(tokens, student=heads), 3, 1)):
        expected = objective(context(patch=a * student, mask=MASK, teacher_patch=b * teacher))["masked"]
        torch.testing.assert_close(objective(changed)["masked"], expected)


def test_loss_is_that_of_the_loop() -> None:
    """Mean over the tokens of each crop, then over all crops, those without a mask included."""
    mask = torch.tensor([[[1, 1, 0], [0, 0, 0]], [[0, 0, 1], [1, 1, 1]]], dtype=torch.bool)
    student, teacher = random(6, 5, seed=1), random(6, 5, seed=2)
    expected, row = 0.0, 0
    for crop in mask.flatten(0, 1):
        count = int(crop.sum())
        for _ in range(count):
            target, log_student = (teacher[row] / 0.05).softmax(0), (student[row] / 0.1).log_softmax(0)
            expected -= sum(float(t) * float(s) for t, s in zip(target, log_student, strict=True)) / count / 4
            row += 1
    objective = ibot(targets=Softmax(), reduction=PerSample())
    loss = objective(context(patch=student, mask=mask, teacher_patch=teacher))["masked"]
    assert float(loss) == pytest.approx(expected, rel=1e-12)


def test_without_masked_tokens_the_loss_is_a_zero_on_the_graph() -> None:
    head = nn.Linear(5, 7)
    student, mask = torch.empty(0, 5, requires_grad=True), torch.zeros(2, 3, 4, dtype=torch.bool)
    objective = ibot(targets=sinkhorn(), reduction=PerSample())
    loss = objective(context(patch=head(student), mask=mask, teacher_patch=torch.empty(0, 7)))["masked"]
    loss.backward()
    assert float(loss.detach()) == 0
    assert head.weight.grad is not None
    assert torch.equal(head.weight.grad, torch.zeros(7, 5))


def test_padding_changes_neither_loss_nor_gradients() -> None:
    """And logits have one size, whatever the masks: that of 0.5 of 2 x 2 x 4 patches, or of the next multiple."""
    heads = nn.ModuleDict({"ibot_head": nn.Linear(5, 7).double()})
    teacher = nn.ModuleDict({"ibot_head": nn.Linear(5, 7).double()})
    shapes = []
    for network in (heads, teacher):
        network["ibot_head"].register_forward_hook(lambda *of_call: shapes.append(len(of_call[2])))
    for seed, masked in enumerate([0, 1, 7, 8, 9, 16]):
        mask = torch.zeros(16, dtype=torch.bool)
        mask[torch.randperm(16, generator=torch.Generator().manual_seed(seed))[:masked]] = True
        tokens, of_teacher = random(masked, 5, seed=seed).requires_grad_(), random(masked, 5, seed=seed + 10)
        given = context(patch=tokens, mask=mask.view(2, 2, 4), teacher_patch=of_teacher)
        given = replace(given, student=heads, teacher=teacher)
        found = []
        for share in (None, 0.5):
            shapes.clear()
            objective = ibot(targets=sinkhorn(), reduction=PerSample(), pad_masked=share)
            loss = objective(given)["masked"]
            found.append([loss, *torch.autograd.grad(loss, [tokens, *heads.parameters()])])
            assert shapes == [masked if share is None else max(-(-masked // 8), 1) * 8] * 2
            assert len(objective.teacher_targets(given)) == masked
        for plain, padded in zip(*found, strict=True):
            torch.testing.assert_close(padded, plain, rtol=1e-6, atol=1e-12)


def test_targets_that_know_no_padding_are_refused() -> None:
    with pytest.raises(ValueError, match=r"pad_masked=0.2: Given takes no `rows`.*; set null"):
        ibot(targets=Given(), reduction=PerSample(), pad_masked=0.2)


def test_a_step_makes_three_matrices_of_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    """The teacher's logits, the targets and the student's logits, whose place the gradient takes."""
    monkeypatch.setattr("dinoswap.nn.row_blocks.CPU_BLOCK", 2**14)
    rows, prototypes = 32, 2**13
    mask = torch.ones(2, 1, rows // 2, dtype=torch.bool)
    heads = [nn.ModuleDict({"ibot_head": nn.Linear(4, prototypes, bias=False)}) for _ in range(2)]
    features = random(rows, 4, dtype=torch.float32)
    given = replace(
        context(patch=features, mask=mask, teacher_patch=features),
        student=heads[0],
        teacher=heads[1].requires_grad_(False),
    )
    with Allocations() as allocations:
        ibot(targets=sinkhorn(), reduction=PerSample())(given)["masked"].backward()
    assert allocations.of_at_least(rows * prototypes) == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"student_temp": -0.1}, "student_temp=-0.1"),
        ({"loss_weight": -math.inf}, "loss_weight=-inf"),
        ({"pad_masked": 0.0}, "pad_masked=0.0: a share"),
    ],
)
def test_bad_values_are_named(arguments: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ibot(targets=Softmax(), reduction=PerSample(), **arguments)
