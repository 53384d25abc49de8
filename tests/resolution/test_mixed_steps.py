"""Steps of several crop sizes: what they share with those of one size, and what the rest of a run sees of them."""

from statistics import fmean

import pytest
import torch

import plan
from axis_arms import Arm, teacher_of
from dinoswap.build import build_pipeline
from dinoswap.config.command_line import compose_config
from dinoswap.config.facts import build_source
from dinoswap.config.sections import step_sizes
from dinoswap.data.steps import loader
from dinoswap.run.flops import step_flops
from dinoswap.run.notices import empty_masks
from planning import networks

TWO = ["resolution=mixed", "resolution.global_sizes=[32,48]", "resolution.local_sizes=[8,16]"]
DISTILLED = ["da3=enabled", *teacher_of("enabled")]


@pytest.mark.parametrize(
    "overrides",
    [["preset=official"], ["preset=legacy"], ["preset=dinov3", "model.drop_path=0.3", *DISTILLED]],
    ids=" ".join,
)
def test_one_entry_as_in_crops_is_fixed(overrides: list[str]) -> None:
    """Bit for bit, with stochastic depth and all."""
    one = ["resolution=mixed", "resolution.global_sizes=[32]", "resolution.local_sizes=[8]", "resolution.ratios=[1.0]"]
    fixed, mixed = Arm(*overrides), Arm(*overrides, *one)
    for step in range(3):
        assert fixed.step(step)["loss"] == mixed.step(step)["loss"]
    weights = mixed.weights()
    assert all(torch.equal(value, weights[name]) for name, value in fixed.weights().items())


def test_a_step_of_the_size_in_crops_is_that_of_a_fixed_run() -> None:
    """Images, boxes and masks are keyed by position and step, and by no size."""
    fixed, mixed = Arm(*DISTILLED), Arm(*DISTILLED, *TWO)
    index = [mixed.dataset.choose(step) for step in range(12)]
    assert set(index) == {0, 1}
    for step in (index.index(0), index.index(1)):
        one, other = fixed.raw_batch(step).tensors(), mixed.raw_batch(step).tensors()
        assert torch.equal(one["indices"], other["indices"])
        if index[step] == 0:
            assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())


@pytest.mark.parametrize(
    "overrides",
    [["preset=official"], ["preset=official", *DISTILLED], ["preset=legacy", "masking=block_exact"], ["preset=dinov3"]],
    ids=lambda overrides: " ".join(overrides[:2]),
)
def test_every_size_trains(overrides: list[str]) -> None:
    """The grids of masks, of clean crops and of the frozen teacher are those of the step."""
    arm = Arm(*overrides, *TWO)
    seen = set()
    for step in range(4):
        batch = arm.raw_batch(step)
        size, local = [(32, 8), (48, 16)][arm.dataset.choose(step)]
        assert batch.patch_crops.shape[-2:] == (size, size)
        assert batch.local_crops.shape[-2:] == (local, local)
        assert batch.mask.shape[-1] == (size // 8) ** 2
        assert list(batch.clean_crops) == [size] * ("da3=enabled" in overrides)
        seen.add(size)
        logs = arm.step(step)
        assert logs["nonfinite"] == 0
        assert all(value.isfinite() for value in logs.values())
    assert seen == {32, 48}


def test_workers_do_not_change_the_steps() -> None:
    cfg = compose_config(["recipe=smoke", "da3=enabled", *TWO])
    dataset = build_pipeline(cfg, Arm(*DISTILLED, *TWO).trainer.model)(build_source(cfg).train())
    alone = list(loader(dataset, 0, 6, 0, False))
    for workers in (1, 2):
        for one, other in zip(alone, loader(dataset, 0, 6, workers, False), strict=True):
            ours, theirs = one.tensors(), other.tensors()
            assert set(ours) == set(theirs)
            assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())


def test_a_plan_is_the_mean_in_time_and_the_largest_in_memory() -> None:
    base, mixture = ["recipe=smoke"], ["resolution=mixed", "resolution.ratios=[0.75,0.25]"]
    small, large = (plan.make_plan([*base, f"crops.global_size={size}"]) for size in (32, 64))
    mixed = plan.make_plan([*base, *mixture])
    assert mixed.flops_per_image == pytest.approx(0.75 * small.flops_per_image + 0.25 * large.flops_per_image, rel=1e-4)
    assert mixed.memory_bytes == pytest.approx(large.memory_bytes, rel=0.02)  # but for the table of positions
    assert mixed.memory_bytes > 1.2 * small.memory_bytes


def test_the_plan_counts_what_the_package_counts() -> None:
    arm = Arm("da3=enabled", "da3.projector_hidden_dim=32", *TWO)
    hyper, shares = arm.trainer.schedules.final(), [entry.share for entry in step_sizes(arm.config)]
    batches = [arm.dataset.made_by(pipeline, 0) for pipeline in arm.dataset.pipelines]
    counted = fmean([step_flops(arm.trainer.model, batch, hyper) for batch in batches], shares)
    model = networks.meta_model(arm.config)
    planned = [networks.meta_batch(arm.config, model, 1, sizes) for sizes in step_sizes(arm.config)]
    for ours, theirs in zip(planned, batches, strict=True):
        assert {n: t.shape for n, t in ours.tensors().items()} == {n: t.shape for n, t in theirs.tensors().items()}
    assert plan.step.mean_flops(model, planned, shares, hyper, False).algorithm == counted


def test_empty_masks_are_told_for_the_size_that_has_them() -> None:
    sizes = ["resolution=mixed", "resolution.global_sizes=[16,64]"]
    (told,) = empty_masks(compose_config(["recipe=smoke", *sizes]), masked_crops=2)
    assert "2 x 2 patches" in told
