"""masking=bernoulli against the legacy masks bit for bit; its mean, and the independence of patches and crops."""

from typing import Any

import numpy as np
import pytest
import torch
from mask_checks import sampler, to_hex

from dinoswap.masking.bernoulli import bernoulli_masks
from dinoswap.rng import torch_generator
from fixtures import LEGACY, load_json
from options import build_option

CASES = load_json("masks_legacy.json", LEGACY)["bernoulli"]["cases"]


@pytest.mark.parametrize("case", CASES, ids=lambda c: f"seed{c['seed']}-{c['grid']}-{c['ratio']}")
def test_masks_are_the_legacy_ones(case: dict[str, Any]) -> None:
    rng, patches = torch.Generator().manual_seed(case["seed"]), case["grid"][0] * case["grid"][1]
    for call in ("first_call", "second_call"):
        masks = bernoulli_masks(case["batch"], patches, case["ratio"], rng).numpy()
        assert [to_hex(mask) for mask in masks] == case[call]
    assert torch.rand((), generator=rng).item() == case["next_torch_rand"]


def test_in_training_the_generator_is_that_of_seed_and_step() -> None:
    expected = bernoulli_masks(2 * 5, 6 * 4, 0.4, torch_generator(3, "mask", 7)).view(2, 5, 6 * 4)
    np.testing.assert_array_equal(sampler(build_option("masking/bernoulli"), seed=3)(7), expected.numpy())


def test_patches_and_crops_are_independent() -> None:
    """Over n steps, means are within 5 standard errors of 0.4, and the correlation of any two of all P * B * N patches
    within 5.5 of 0 (28680 pairs)."""
    steps = 2000
    masks = sampler(build_option("masking/bernoulli", token_mask_ratio=0.4))
    sample = np.stack([masks(step).flatten() for step in range(steps)]).astype(float)  # [steps, P * B * N]
    assert sample.shape[1] == 240
    assert np.abs(sample.mean(0) - 0.4).max() < 5 * np.sqrt(0.24 / steps)
    correlation = np.corrcoef(sample.T) - np.eye(240)
    assert np.abs(correlation).max() < 5.5 / np.sqrt(steps)
    over_time = np.corrcoef(sample[:-1].flatten(), sample[1:].flatten())[0, 1]
    assert abs(over_time) < 5 / np.sqrt(240 * steps)


@pytest.mark.parametrize(("ratio", "hidden"), [(0.0, 0), (1.0, 240)])
def test_the_ends_of_the_range(ratio: float, hidden: int) -> None:
    assert sampler(build_option("masking/bernoulli", token_mask_ratio=ratio))(0).sum() == hidden


@pytest.mark.parametrize("ratio", [-0.1, 1.1, float("nan")])
def test_a_ratio_beyond_them_is_named(ratio: float) -> None:
    with pytest.raises(ValueError, match=f"token_mask_ratio={ratio}"):
        build_option("masking/bernoulli", token_mask_ratio=ratio)
