"""What the clustering options share, against the legacy losses, its order of two optimisers, and the formulas."""

from copy import deepcopy
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch
from clustering_contexts import FIXTURE, MASK, clustering, clustering_context, legacy_bank, legacy_context, new_bank
from torch import Tensor, nn

from contexts import Softmax, random
from dinoswap.objectives.base import Reduction
from dinoswap.reduction.per_sample import PerSample
from dinoswap.reduction.per_token import PerToken
from dinoswap.values import Features
from options import build_option
from ranks import on_ranks

OPTIONS = ["masked", "visible", "separate"]
VARIABLE = FIXTURE["proto/mask_variable"].unsqueeze(0)
TERMS = ("clustering", "arrangement", "koleo_proto")
TRAINED_BY = {  # the routes that the legacy step leaves once it has thrown away what the student's loss did to the bank
    "clustering": {"student"},
    "arrangement": {"bank_weight", "bank_bias"},
    "koleo_proto": {"bank_weight"},
}


@pytest.mark.parametrize(
    ("option", "reduction", "mask", "case"),
    [
        ("masked", PerToken(), MASK, "67f6a87/masked_bernoulli"),
        ("visible", PerToken(), MASK, "67f6a87/visible_bernoulli"),
        ("separate", PerToken(), MASK, "67f6a87/separate_all"),
        ("masked", PerToken(), VARIABLE, "b23df50/variable_block"),
        ("masked", PerSample(), VARIABLE, "b23df50/variable_block_weight_per_sample"),
        ("masked", PerSample(), MASK, "b23df50/masked_bernoulli_weight_per_sample"),
    ],
)
def test_terms_and_gradients_are_the_legacy_ones(option: str, reduction: Reduction, mask: Tensor, case: str) -> None:
    bank = legacy_bank()
    given, student, teacher = legacy_context(mask, bank)
    terms = clustering(option, build_option("targets/sinkhorn_floored"), reduction)(given)
    assert tuple(terms) == TERMS
    places = {"student": student, "teacher": teacher, "bank_weight": bank.weight, "bank_bias": bank.bias}
    for term, value in terms.items():
        torch.testing.assert_close(value, FIXTURE[f"proto/{case}/{term}"], rtol=1e-6, atol=1e-7)
        gradients = torch.autograd.grad(value, list(places.values()), retain_graph=True, allow_unused=True)
        for place, gradient in zip(places, gradients, strict=True):
            assert (gradient is not None) is (place in TRAINED_BY[term]), (term, place)
            if gradient is not None:
                expected = FIXTURE[f"proto/{case}/grad/{term}/{place}"]
                worst = (gradient.reshape(expected.shape) - expected).abs().max() / expected.abs().max()
                assert worst < 1e-6, (term, place)


@pytest.mark.parametrize("option", OPTIONS)
def test_targets_for_diagnostics_are_those_of_all_teacher_tokens(option: str) -> None:
    given, _, _ = legacy_context()
    targets = clustering(option, build_option("targets/sinkhorn_floored"), PerToken()).teacher_targets(given)
    torch.testing.assert_close(targets, FIXTURE["proto/targets_temp0.06"], rtol=1e-5, atol=1e-7)


def unit_logits(x: Tensor, weight: Tensor, bias: Tensor, temperature: float) -> Tensor:
    return ((x / x.norm(dim=-1, keepdim=True)) @ weight.T + bias) / temperature


def crossed(targets: Tensor, logits: Tensor) -> Tensor:
    return -(targets * (logits - logits.logsumexp(-1, keepdim=True))).sum(-1)


class Sharper(nn.Module):
    """Targets that the teacher's own logits miss, as they would not miss their softmax."""

    def forward(self, logits: Tensor, temperature: float) -> Tensor:
        return (2 * logits / temperature).softmax(-1)


def spread(weight: Tensor) -> Tensor:
    rows, terms = weight / weight.norm(dim=-1, keepdim=True), []
    for i, row in enumerate(rows):
        distances = [(row - other + 1e-8).norm() for j, other in enumerate(rows) if j != i]
        terms.append(-(torch.stack(distances).min() + 1e-8).log())
    return torch.stack(terms).mean()


def legacy_step(
    networks: nn.ModuleDict,
    optimizers: list[torch.optim.Optimizer],
    given: tuple[Tensor, Tensor, Tensor],
    weight: float,
) -> None:
    """The bank's optimiser steps first. The student's loss is of the bank before that step, and what it leaves in the
    bank's gradient is zeroed before the next."""
    of_student, of_bank = optimizers
    pixels, teacher, mask = given
    w, b = networks["prototype_bank"].weight.clone(), networks["prototype_bank"].bias.clone()
    logits = unit_logits(teacher, w, b, 0.06)
    targets = (2 * logits.detach()).softmax(-1)
    student_loss = crossed(targets, unit_logits(networks["backbone"](pixels), w, b, 0.1))[mask].mean() * weight
    of_bank.zero_grad()
    (crossed(targets, logits).mean() + spread(w)).backward(retain_graph=True)
    of_bank.step()
    of_student.zero_grad()
    student_loss.backward()
    of_student.step()


@pytest.mark.parametrize("weight", [1.0, 0.3])
def test_one_backward_and_one_optimiser_do_what_two_in_turn_do(weight: float) -> None:
    pixels, teacher, mask = random(2, 3, 8, 6, seed=1), random(2, 3, 8, 5, seed=2), random(2, 3, 8, seed=3) > 0
    objective = clustering("masked", Sharper(), PerToken(), loss_weight=weight)
    torch.manual_seed(0)
    ours = nn.ModuleDict({"backbone": nn.Linear(6, 5), "prototype_bank": new_bank(5, 7)}).double()
    theirs, start = deepcopy(ours), deepcopy(ours)
    of_student, of_bank = {"lr": 0.01}, {"lr": 0.02, "betas": (0.9, 0.95), "weight_decay": 0.0}
    joint = torch.optim.AdamW(
        [
            {"params": ours["backbone"].parameters(), **of_student},
            {"params": ours["prototype_bank"].parameters(), **of_bank},
        ]
    )
    two = [
        torch.optim.AdamW(theirs["backbone"].parameters(), **of_student),
        torch.optim.AdamW(theirs["prototype_bank"].parameters(), **of_bank),
    ]
    for _ in range(3):
        terms = objective(clustering_context(ours["backbone"](pixels), teacher, mask, ours["prototype_bank"]))
        joint.zero_grad()
        sum(objective.weight(term, {}) * value for term, value in terms.items()).backward()
        joint.step()
        legacy_step(theirs, two, (pixels, teacher, mask), weight)
    for name, parameter in ours.named_parameters():
        torch.testing.assert_close(parameter, theirs.get_parameter(name), rtol=0, atol=1e-10, msg=name)
        assert (parameter - start.get_parameter(name)).abs().max() > 1e-3


@pytest.mark.parametrize("option", OPTIONS)
def test_a_batch_with_nothing_masked_has_three_terms_on_the_graph(option: str) -> None:
    given, student, _ = legacy_context(torch.zeros_like(MASK), bank := legacy_bank())
    terms = clustering(option, build_option("targets/sinkhorn_floored"), PerToken())(given)
    assert (float(terms["clustering"].detach()) == 0) is (option == "masked")
    for term in ("arrangement", "koleo_proto"):
        torch.testing.assert_close(terms[term], FIXTURE[f"proto/67f6a87/masked_bernoulli/{term}"], rtol=1e-6, atol=1e-7)
    sum(terms.values()).backward()
    for trained in (student, bank.weight, bank.bias):
        assert trained.grad is not None
        assert trained.grad.isfinite().all()


@pytest.mark.parametrize("option", OPTIONS)
def test_shapes_alone_are_enough(option: str) -> None:
    """As where FLOPs are counted."""
    given, _, _ = legacy_context()
    student, teacher = (
        Features(*(getattr(features, f.name).to("meta") for f in fields(features)))
        for features in (given.student_features, given.teacher_features)
    )
    batch, networks = given.batch.to(torch.device("meta")), given.student.to("meta")
    shadow = replace(given, batch=batch, student=networks, student_features=student, teacher_features=teacher)
    terms = clustering(option, build_option("targets/sinkhorn_floored"), PerToken())(shadow)
    assert all(value.is_meta for value in terms.values())


@pytest.mark.parametrize("option", OPTIONS)
def test_half_precision_tokens_are_normalised_in_float32(option: str) -> None:
    objective, bank = clustering(option, build_option("targets/sinkhorn"), PerToken()), new_bank(12, 20)
    student, teacher = (random(1, 6, 16, 12, seed=s, dtype=torch.bfloat16) for s in (1, 2))
    half = objective(clustering_context(student, teacher, MASK, bank))
    full = objective(clustering_context(student.float(), teacher.float(), MASK, bank))
    assert all(torch.equal(half[term], full[term]) for term in TERMS)


def test_each_term_has_its_own_weight() -> None:
    objective = clustering(
        "masked", Softmax(), PerToken(), loss_weight=2.0, arrangement_weight=3.0, koleo_proto_weight=0.5
    )
    assert [objective.weight(term, {}) for term in TERMS] == [2.0, 3.0, 0.5]


def test_the_bank_is_a_network_of_the_objective() -> None:
    networks = clustering(
        "masked", Softmax(), PerToken(), prototypes=7, bank_lr_multiplier=0.25, bank_betas=(0.8, 0.9)
    ).networks()
    bank = networks["prototype_bank"](5)
    assert list(networks) == ["prototype_bank"]
    assert bank.weight.shape == (7, 5)
    assert (bank.group_options["lr_multiplier"], bank.group_options["betas"]) == (0.25, (0.8, 0.9))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"prototypes": 0}, "prototypes=0"),
        ({"student_temp": 0.0}, "student_temp=0.0"),
        ({"loss_weight": -1.0}, "loss_weight=-1.0"),
        ({"arrangement_weight": -1.0}, "arrangement_weight=-1.0"),
        ({"koleo_proto_weight": float("nan")}, "koleo_proto_weight=nan"),
        ({"bank_lr_multiplier": -0.5}, "bank_lr_multiplier=-0.5"),
        ({"bank_betas": (0.9, 1.0)}, r"bank_betas=\[0.9, 1.0\]"),
    ],
)
def test_bad_values_are_named(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        clustering("masked", Softmax(), PerToken(), **arguments)


# --- ranks ------------------------------------------------------------------------------------------------------------


def terms_and_targets(images: slice) -> dict[str, Tensor]:
    """Of the legacy batch's images, of which the first three have no mask; and the gradients of their sum."""
    mask = MASK.clone()
    mask[:, :3] = False
    bank = legacy_bank()
    student, teacher = (FIXTURE[f"proto/{name}"].unsqueeze(0)[:, images] for name in ("student", "teacher"))
    given = clustering_context(student.requires_grad_(), teacher, mask[:, images], bank)
    objective = clustering("masked", build_option("targets/sinkhorn_floored"), PerSample())
    terms = objective(given)
    sum(terms.values()).backward()
    gradients = {"bank_weight": bank.weight.grad, "bank_bias": bank.bias.grad, "student": student.grad}
    values = {name: value.detach() for name, value in terms.items()}
    return {**values, **gradients, "targets": objective.teacher_targets(given).detach()}


def of_rank(rank: int) -> dict[str, Tensor]:
    return terms_and_targets(slice(3 * rank, 3 * rank + 3))


def test_ranks_of_which_one_has_nothing_masked(tmp_path: Path) -> None:
    """Both finish; targets are those of the joined rows, losses and gradients average to those of the whole batch."""
    first, second = on_ranks(of_rank, tmp_path)
    whole = terms_and_targets(slice(None))
    assert float(first["clustering"]) == 0
    assert float(second["clustering"]) > 0
    joined = {"targets": torch.cat([first["targets"], second["targets"]])}
    joined["student"] = torch.cat([first["student"], second["student"]], dim=1) / 2
    for name in (*TERMS, "bank_weight", "bank_bias"):
        joined[name] = (first[name] + second[name]) / 2
    for name, value in joined.items():
        torch.testing.assert_close(value, whole[name], rtol=1e-5, atol=1e-6, msg=name)
