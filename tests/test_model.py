"""The module that returns the loss: its sum, its teacher, and the batches at the edge of what is defined."""

from copy import deepcopy
from dataclasses import replace
from functools import cache

import pytest
import torch
from torch import Tensor

from dinoswap.model import SelfDistillation
from dinoswap.values import Batch, masked_positions
from small_models import CENTERING, small_batch, small_trainer

HYPER = {"teacher_temp": 0.05, "dino_local_weight": 1.0}
SHARED = "objectives.ibot.head=dino_head"


@cache
def built(*overrides: str) -> SelfDistillation:
    return small_trainer(*overrides).model


def small_model(*overrides: str) -> SelfDistillation:
    return deepcopy(built(*overrides))


def gradients(model: SelfDistillation, batch: Batch) -> tuple[Tensor, dict[str, Tensor | None]]:
    """The loss, and every parameter's gradient by name."""
    model.zero_grad(set_to_none=True)
    loss, _ = model(batch, HYPER)
    loss.backward()
    return loss.detach(), {name: parameter.grad for name, parameter in model.named_parameters()}


def with_mask(batch: Batch, mask: Tensor) -> Batch:
    return replace(batch, mask=mask, **masked_positions(mask))


def without_masks(batch: Batch) -> Batch:
    return with_mask(batch, batch.mask & False)


def without_locals(batch: Batch) -> Batch:
    return replace(batch, local_crops=batch.local_crops[:0])


def duplicates(batch: Batch) -> Batch:
    """The same image again and again, with the same mask."""
    crops = {
        name: getattr(batch, name)[:, :1].expand_as(getattr(batch, name)) for name in ("global_crops", "local_crops")
    }
    mask = batch.mask[:, :1].expand_as(batch.mask).contiguous()
    return with_mask(replace(batch, **crops), mask)


EDGES = {
    "plain": small_batch(0),
    "one image": small_batch(0, images=1),
    "no masks": without_masks(small_batch(0)),
    "no locals": without_locals(small_batch(0)),
    "duplicates": duplicates(small_batch(0)),
    "one image, no masks, no locals": without_locals(without_masks(small_batch(0, images=1))),
    "everything masked": with_mask(small_batch(0), torch.ones(2, 4, 16).bool()),
}


@pytest.mark.parametrize("edge", EDGES)
@pytest.mark.parametrize(
    "options", [[], [SHARED], CENTERING, [SHARED, *CENTERING]], ids=["", "shared", "centre", "both"]
)
def test_loss_and_gradients_are_finite(edge: str, options: list[str]) -> None:
    """Every trained parameter gets a gradient whatever the batch lacks, so that ranks agree on what to reduce."""
    model = small_model(*options)
    loss, found = gradients(model, EDGES[edge])
    assert loss.isfinite()
    for name, gradient in found.items():
        assert (gradient is None) == name.startswith("teacher."), name
        assert gradient is None or gradient.isfinite().all(), name


def test_only_what_took_part_gets_a_gradient_of_size() -> None:
    _, found = gradients(small_model(), EDGES["no masks"])
    sizes = {name: float(value.abs().max()) for name, value in found.items() if value is not None}
    assert all(size == 0 for name, size in sizes.items() if "ibot_head" in name or "mask_token" in name)
    assert sizes["student.dino_head.mlp.0.weight"] > 0
    _, found = gradients(small_model(), EDGES["plain"])
    assert all(value is None or value.abs().max() > 0 for value in found.values())


def test_loss_is_the_weighted_sum_of_the_unweighted_terms() -> None:
    model = small_model(
        "objectives.dino.loss_weight=0.5", "objectives.ibot.loss_weight=2", "objectives.koleo.loss_weight=3"
    )
    loss, terms = model(EDGES["plain"], HYPER)
    assert sorted(terms) == ["dino/global", "dino/local", "ibot/masked", "koleo/cls"]
    weights = {"dino": 0.5, "ibot": 2.0, "koleo": 3.0}
    expected = sum(weights[name.split("/")[0]] * float(value) for name, value in terms.items())
    assert loss.item() == pytest.approx(expected, rel=1e-6)
    assert not any(value.requires_grad for value in terms.values())
    _, plain = small_model()(EDGES["plain"], HYPER)
    assert all(torch.equal(value, plain[name]) for name, value in terms.items())


@pytest.mark.parametrize("kept", ["dino", "ibot", "koleo"])
def test_an_objective_does_not_know_of_the_others(kept: str) -> None:
    """Alone it has the value, and the networks the initial weights, that they have beside the others."""
    removed = [f"~objectives.{name}" for name in ("dino", "ibot", "koleo") if name != kept]
    model = small_model(*removed)
    _, alone = model(EDGES["plain"], HYPER)
    _, together = small_model()(EDGES["plain"], HYPER)
    assert alone.keys() == {name for name in together if name.startswith(f"{kept}/")}
    assert all(torch.equal(value, together[name]) for name, value in alone.items())
    heads = {"dino": ["dino_head"], "ibot": ["ibot_head"], "koleo": []}[kept]
    assert list(model.student) == ["backbone", *heads]
    loss, found = gradients(model, EDGES["plain"])
    assert loss.isfinite()
    assert all(value is None or value.isfinite().all() for value in found.values())


@pytest.mark.parametrize("options", [[], CENTERING], ids=["sinkhorn", "centering"])
def test_a_shared_head_is_two_heads_of_equal_weights(options: list[str]) -> None:
    shared, separate = small_model(SHARED, *options), small_model(*options)
    for network in (separate.student, separate.teacher):
        network["ibot_head"].load_state_dict(network["dino_head"].state_dict())
    loss, of_shared = gradients(shared, EDGES["plain"])
    same, of_separate = gradients(separate, EDGES["plain"])
    torch.testing.assert_close(loss, same, rtol=1e-6, atol=0)
    assert "ibot_head" not in shared.student
    for name, gradient in of_shared.items():
        if gradient is None:
            continue
        both = [
            of_separate[name],
            of_separate.get(name.replace("dino_head", "ibot_head")) if "dino_head" in name else None,
        ]
        expected = sum(value for value in both if value is not None)
        torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-6 * float(gradient.abs().max()), msg=name)


def test_the_teacher_is_a_copy_that_stays_in_evaluation() -> None:
    model = small_model()
    for name, parameter in model.teacher.named_parameters():
        original = model.student.get_parameter(name)
        assert torch.equal(parameter, original)
        assert parameter.data_ptr() != original.data_ptr()
        assert not parameter.requires_grad
    assert model.student.training
    assert not any(module.training for module in model.teacher.modules())
    model.eval()
    model.train()
    assert not any(module.training for module in model.teacher.modules())


def test_targets_for_diagnostics_are_those_of_training_and_leave_no_trace() -> None:
    model = small_model(*CENTERING)
    model(EDGES["plain"], HYPER)  # the centres have moved once
    before = {name: value.clone() for name, value in model.state_dict().items()}
    targets = model.teacher_targets(EDGES["plain"], HYPER)
    assert {name: tuple(value.shape) for name, value in targets.items()} == {
        "dino": (2 * 4, 64),
        "ibot": (len(EDGES["plain"].masked_indices), 64),
    }
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert model.training
    seen: dict[str, Tensor] = {}
    for name in targets:
        module = model.objectives.get_submodule(f"{name}.targets")
        module.register_forward_hook(lambda _, inputs, output, name=name: seen.update({name: output}))
    model(EDGES["plain"], HYPER)
    assert all(torch.equal(value, seen[name]) for name, value in targets.items())


def test_koleo_alone_has_no_targets() -> None:
    assert small_model("~objectives.dino", "~objectives.ibot").teacher_targets(EDGES["plain"], HYPER) == {}
