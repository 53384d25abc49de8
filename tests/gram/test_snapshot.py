"""Gram anchoring to an earlier teacher: when the copy is renewed, what it sees, and that it is a part of the run."""

import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional

from axis_arms import Arm, teacher_of
from dinoswap.config.schema import ConfigError
from dinoswap.da3.enabled import MaskedImageDistillation
from dinoswap.gram.snapshot import SnapshotGram
from dinoswap.optim.schedules import Phases
from dinoswap.trainer import Trainer
from options import build_option
from small_models import small_run

EVERY_2 = ["gram=snapshot", "objectives.gram.refresh_every=2", "trainer.max_steps=8"]


def gram_of(trainer: Trainer) -> SnapshotGram:
    objective = trainer.model.objectives["gram"]
    assert isinstance(objective, SnapshotGram)
    return objective


def snapshot(**changes: Any) -> SnapshotGram:
    schedule = Phases(start=1.0, peak=1.0, end=1.0, warmup=0, cosine=0)
    objective: SnapshotGram = build_option("gram/snapshot", **{"weight_schedule": schedule, **changes})
    return objective


def weights(network: torch.nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in network.state_dict().items()}


def equal(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(value, second[name]) for name, value in first.items())


def test_the_copy_is_the_teacher_from_before_the_last_multiple() -> None:
    trainer, batches = small_run(EVERY_2)
    held: dict[str, Tensor] = {}
    for step in range(6):
        teacher = weights(trainer.model.teacher["backbone"])
        logs = trainer.step(step, batches(step))
        held = teacher if step in (0, 2, 4) else held  # that of step 0 is the initial copy
        assert equal(weights(gram_of(trainer).backbone), held), step
        assert (float(logs["gram/matrix"]) > 0) == (step >= 2)
    assert not equal(held, weights(trainer.model.teacher["backbone"]))


@pytest.mark.parametrize(
    ("changes", "refreshed"),
    [
        ({"refresh_every": 3}, [3, 6, 9]),
        ({"refresh_every": 3, "refresh_first": 4}, [6, 9]),
        ({"refresh_every": 3, "refresh_times": 2}, [3, 6]),
        ({"refresh_every": 0.5}, [6]),
        ({"refresh_every": 0.01, "refresh_first": 10}, [10, 11]),  # a share of less than a step is one step
        ({"refresh_every": 1, "refresh_first": 7, "refresh_times": 1}, [7]),
    ],
)
def test_it_is_renewed_at_multiples_from_the_first_on(changes: dict[str, Any], refreshed: list[int]) -> None:
    schedules = snapshot(**changes).schedules(12)
    assert [step for step in range(13) if schedules["gram_refresh"][step]] == refreshed
    expected = [float(step >= refreshed[0]) for step in range(13)]  # before it there is nothing to anchor to
    assert [schedules["gram_weight"][step] for step in range(13)] == expected


def test_with_weights_to_begin_with_the_weight_is_that_of_the_schedule_from_the_start() -> None:
    phases = Phases(start=0.0, peak=1.0, end=2.0, warmup=2, cosine=0)
    schedules = snapshot(path="somewhere", refresh_times=0, weight_schedule=phases).schedules(4)
    assert [schedules["gram_weight"][step] for step in range(4)] == [0.0, 0.5, 2.0, 2.0]
    assert not any(schedules["gram_refresh"][step] for step in range(4))


def test_the_copy_begins_with_the_weights_of_the_file(tmp_path: Path) -> None:
    first, _ = small_run([*EVERY_2, "seed=1"])
    stored = weights(first.model.teacher["backbone"])
    save_file(stored, tmp_path / "teacher.safetensors")
    path = f"objectives.gram.path={tmp_path / 'teacher.safetensors'}"
    trainer, batches = small_run([*EVERY_2, path, "objectives.gram.refresh_times=0"])
    assert equal(weights(gram_of(trainer).backbone), stored)
    for step in range(3):
        assert trainer.step(step, batches(step))["gram/matrix"] > 0
    assert equal(weights(gram_of(trainer).backbone), stored)


def test_it_sees_whole_clean_crops_at_its_own_size_and_is_resized() -> None:
    """By hand: crops twice as large through the copy, then bicubically onto the student's grid."""
    trainer, batches = small_run(["gram=snapshot", "objectives.gram.crop_scale=1.5"])
    gram, (batch,) = gram_of(trainer), batches(0)
    side = round(1.5 * batch.global_crops.shape[-1])
    assert set(batch.clean_crops) == {side}
    context = trainer.model.context(batch, {"teacher_temp": 0.05, "gram_weight": 1.0, "dino_local_weight": 1.0})
    ours = gram.teacher_tokens(context)
    patch = gram.backbone.patch_size
    for p, crops in enumerate(batch.clean_crops[side]):
        for b, crop in enumerate(crops):
            with torch.no_grad():
                tokens = gram.backbone(crop[None]).patch[0]  # [n, D]
            planes = tokens.T.unflatten(1, (side // patch, side // patch))
            grid = batch.global_crops.shape[-1] // patch
            expected = torch.nn.functional.interpolate(planes[None], (grid, grid), mode="bicubic")[0]
            torch.testing.assert_close(ours[p, b], expected.flatten(1).T, rtol=1e-5, atol=1e-5)


def test_it_is_frozen_and_in_the_checkpoint_and_in_no_optimiser() -> None:
    trainer, batches = small_run(EVERY_2)
    trainer.step(0, batches(0))
    gram = gram_of(trainer)
    assert not any(parameter.requires_grad or parameter.grad is not None for parameter in gram.parameters())
    assert not gram.backbone.training
    assert any(name.startswith("objectives.gram.backbone.") for name in trainer.state_dict()["model"])
    trained = {id(p) for group in trainer.optimizer.param_groups for p in group["params"]}
    assert not trained & {id(p) for p in gram.parameters()}


def test_beside_another_frozen_teacher_each_gets_its_size() -> None:
    trainer, batches = small_run([*EVERY_2, "da3=enabled", "teacher@da3.teacher=dinov2", "da3.teacher.variant=tiny"])
    side = batches(0)[0].global_crops.shape[-1]
    assert set(batches(0)[0].clean_crops) == {side, 2 * side}
    logs = {}
    for step in range(3):
        logs = trainer.step(step, batches(step))
    assert logs["gram/matrix"] > 0
    assert logs["da3/cosine"] > 0


def test_two_teachers_see_crops_of_their_sizes_at_every_size_of_a_step() -> None:
    """With steps of two sizes; what is logged against loops over crops and over masked patches."""
    sizes = ["resolution=mixed", "resolution.global_sizes=[32,48]", "resolution.local_sizes=[8,16]"]
    overrides = ["gram=snapshot", "objectives.gram.refresh_every=2", "trainer.max_steps=6", "da3=enabled"]
    arm = Arm("preset=dinov3", *overrides, *teacher_of("enabled"), *sizes)
    trainer, gram = arm.trainer, gram_of(arm.trainer)
    distillation = cast(MaskedImageDistillation, trainer.model.objectives["da3"])
    seen = set()
    for step in range(6):
        batch, hyper = arm.batch(step), trainer.schedules.at(step)
        size = [32, 48][arm.dataset.choose(step)]
        assert {crops.shape[-1] for crops in batch.clean_crops.values()} == {size, 2 * size}
        trainer.model.begin_step(hyper)  # as the step itself does again
        with torch.no_grad():
            context = trainer.model.context(batch, hyper)
            student, side = context.student_features.patch, size // gram.backbone.patch_size
            assert student is not None
            losses, cosines = [], []
            for p, b in itertools.product(range(2), range(batch.images)):
                planes = gram.backbone(batch.clean_crops[2 * size][p, b][None]).patch
                planes = planes.transpose(1, 2).unflatten(2, (2 * side, 2 * side))
                held = functional.interpolate(planes, (side, side), mode="bicubic")[0].flatten(1).T
                pair = [functional.normalize(tokens, dim=-1) for tokens in (student[p, b], held)]
                losses.append((pair[0] @ pair[0].T - pair[1] @ pair[1].T).square().mean())
                (targets,) = distillation.teacher(batch.clean_crops[size][p, b][None], (side, side))
                projected = trainer.model.student["da3_projector"](student[p, b])
                cosines += functional.cosine_similarity(projected, targets, dim=-1)[batch.mask[p, b]]
        logs = trainer.step(step, [batch])
        assert all(value.isfinite() for value in logs.values())
        anchored = float(torch.stack(losses).mean()) if step >= 2 else 0.0
        assert float(logs["gram/matrix"]) == pytest.approx(anchored, rel=1e-4, abs=1e-9)
        assert (float(logs["gram/matrix"]) > 0) == (step >= 2)
        assert float(logs["da3/cosine_mean"]) == pytest.approx(float(torch.stack(cosines).mean()), abs=1e-5)
        seen.add(size)
    assert seen == {32, 48}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"crop_scale": 0.0}, "crop_scale=0.0"),
        ({"refresh_times": -1}, "refresh_times=-1"),
        ({"refresh_times": 0}, "refresh_times=0: leaves no teacher"),
    ],
)
def test_bad_values_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        snapshot(**changes)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["objectives.gram.crop_scale=1.1"], r"objectives\.gram\.crop_scale=1\.1: makes crops of .* try 1"),
        (["objectives.gram.refresh_every=9"], r"objectives\.gram\.refresh_first=0: no step of trainer\.max_steps=8"),
        (["objectives.gram.refresh_every=0"], r"objectives\.gram\.refresh_every=0: must be at least one step"),
        (["objectives.gram.weight_schedule.warmup=9"], r"objectives\.gram\.weight_schedule: a warm-up of 9"),
        (["objectives.gram.path=/nowhere"], r"objectives\.gram\.path=/nowhere: no such file"),
    ],
)
def test_what_does_not_fit_is_refused_before_the_first_step(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        small_run([*EVERY_2, *overrides])
