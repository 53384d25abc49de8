"""masking.draws=position: each mask from a generator of its own gives the masks of draws=batch in distribution, and a
rank draws its own."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from mask_checks import sampler

from axis_arms import Arm
from dinoswap.config.configuration import config_dir
from dinoswap.masking.batch_policy import Generators, MaskGenerator
from options import build_option

NAMES = sorted(path.stem for path in (config_dir() / "masking").glob("*.yaml"))
POLICY = {"mask_sample_probability": 0.5, "mask_ratio_min_max": (0.2, 0.5)}  # of 24 patches: no target is 0
every_option = pytest.mark.parametrize(
    ("name", "changes"),
    [pytest.param("bernoulli", {}, id="bernoulli")]
    + [
        pytest.param(name, {**POLICY, "scope": scope}, id=f"{name} {scope}")
        for name in NAMES
        if name != "bernoulli"
        for scope in ("batch", "crop")
    ],
)


@every_option
def test_ranks_draw_the_parts_of_what_one_process_draws(name: str, changes: dict[str, Any]) -> None:
    option = build_option(f"masking/{name}", draws="position", **changes)
    shape = {"images": 8, "crop_size": (224, 224)}
    whole = [sampler(option, **shape)(step) for step in range(3)]
    for ranks in (1, 2, 4):
        for step in (2, 0, 1):
            each = 8 // ranks
            parts = [sampler(option, **shape)(step, slice(first, first + each)) for first in range(0, 8, each)]
            assert all(part.shape == (2, each, 196) and part.dtype == bool for part in parts)
            np.testing.assert_array_equal(np.concatenate(parts, axis=1), whole[step])
    drawn = [mask.tobytes() for masks in whole for mask in masks.reshape(16, 196) if mask.any()]
    assert len(set(drawn)) == len(drawn) >= 24, "no two masks share a generator"
    assert (sampler(option, **shape, seed=4)(0) != whole[0]).any()


@every_option
def test_masks_are_distributed_as_those_of_one_generator(name: str, changes: dict[str, Any]) -> None:
    """Over many steps: counts of hidden patches in the order of their size, which the ratios spread; their spread; how
    often each patch is hidden and each crop is masked. Differences of means are within 5 standard errors."""
    steps = 300
    samplers = [sampler(build_option(f"masking/{name}", draws=draws, **changes)) for draws in ("position", "batch")]
    ours, theirs = (np.stack([masks(step) for step in range(steps)]) for masks in samplers)  # [steps, P, B, N]
    ordered = [np.sort(masks.sum(-1).reshape(steps, -1), axis=1) for masks in (ours, theirs)]  # [steps, P * B]
    error = np.sqrt((ordered[0].var(0) + ordered[1].var(0)) / steps)
    assert (np.abs(ordered[0].mean(0) - ordered[1].mean(0)) <= 5 * error).all()
    assert ordered[0].std() == pytest.approx(ordered[1].std(), rel=0.08)
    hidden = [masks.mean((0, 1, 2)) for masks in (ours, theirs)]  # [N]
    assert np.abs(hidden[0] - hidden[1]).max() < 5 * np.sqrt(2 * 0.25 / (steps * 10))
    masked = [masks.any(-1) for masks in (ours, theirs)]  # [steps, P, B]
    assert np.abs(masked[0].mean(0) - masked[1].mean()).max() < 5 * np.sqrt(0.25 / steps)
    drawn_jointly = 2 if changes.get("scope") == "crop" else (1, 2)
    assert set(masked[0].sum(drawn_jointly).flatten()) == set(masked[1].sum(drawn_jointly).flatten())


def test_a_ratio_is_not_tied_to_a_crop() -> None:
    """Each of the 10 crops has each of the 10 parts of the range equally often."""
    option = build_option(
        "masking/block_exact", mask_sample_probability=1.0, mask_ratio_min_max=(0.0, 1.0), draws="position"
    )
    masks = sampler(option, crop_size=(160, 160))
    counts = np.stack([masks(step).sum(-1).flatten() for step in range(200)])
    for part in range(10, 101, 10):
        assert np.abs((counts == part).mean(0) - 0.1).max() < 5 * np.sqrt(0.09 / 200)


def test_a_rank_of_64_draws_its_share() -> None:
    """Of 1024 masks: each rank draws those of its 2 * 16 crops that are masked, half of them on average."""
    option, calls = build_option("masking/block", draws="position"), list[int]()
    generator: MaskGenerator = option.generator((96, 64), 16)

    def counted(target: int, rng: Generators) -> np.ndarray:
        calls.append(target)
        return generator(target, rng)

    option.generator = lambda crop_size, patch_size: counted
    masks, counts = sampler(option, images=1024), []
    for rank in range(64):
        calls.clear()
        masks(0, slice(16 * rank, 16 * rank + 16))
        counts.append(len(calls))
    assert sum(counts) == 1024
    assert 16 - 5 * np.sqrt(8) < min(counts) <= max(counts) < 16 + 5 * np.sqrt(8)


@pytest.mark.parametrize("draws", ["batch", "position"])
def test_in_training_every_rank_has_its_part(draws: str) -> None:
    """Of a sampler that knows the step alone, too: there it is cut."""
    arm = Arm(f"masking.draws={draws}")
    whole = arm.dataset[1].mask
    parts = [replace(arm.dataset, rank=rank, world_size=2)[1].mask for rank in range(2)]
    assert whole.any()
    assert torch.equal(torch.cat(parts, dim=1), whole)
