"""reduction=per_sample against the official weights and a loop over crops."""

import pytest
import torch

from contexts import random
from dinoswap.reduction.per_sample import PerSample
from fixtures import Fixture, load_json

FIXTURE = Fixture("losses_dinov2.npz")
COLLATE = [case for case in load_json("masking.json")["collate"] if case["version"] == "dinov2"]


def weights(mask: torch.Tensor) -> torch.Tensor:
    """What each token's loss is multiplied with, [M]: the gradient of the mean."""
    indices = mask.flatten().nonzero()[:, 0]
    losses = torch.zeros(len(indices), requires_grad=True)
    PerSample()(losses, mask, indices).backward()
    assert losses.grad is not None
    return losses.grad


def test_weights_are_the_official_ones() -> None:
    """masks_weight of the collate, over the number of crops, of which three of eight have no mask."""
    masks = FIXTURE["ibot/masks"]
    expected = FIXTURE["ibot/masks_weight"] / len(masks)
    torch.testing.assert_close(weights(masks.unflatten(0, (2, -1))), expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("case", COLLATE, ids=lambda case: f"seed{case['seed']}-{case['grid']}")
def test_weights_are_those_of_the_collate(case: dict) -> None:
    patches, crops = case["grid"][0] * case["grid"][1], 2 * case["n_images"]
    mask = torch.zeros(crops * patches, dtype=torch.bool)
    mask[case["mask_indices_list"]] = True
    expected = torch.tensor(case["masks_weight"]) / crops
    torch.testing.assert_close(weights(mask.view(2, -1, patches)), expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("carriers", [1, 2])  # one masked crop per image, or both globals
def test_value_is_that_of_the_loop(carriers: int) -> None:
    mask = random(carriers, 3, 8, seed=carriers) > 0.3
    mask[0, 1] = False
    losses = random(int(mask.sum()), seed=5)
    expected, start = 0.0, 0
    for crop in mask.flatten(0, 1):
        count = int(crop.sum())
        if count:
            expected += float(losses[start : start + count].mean())
        start += count
    reduced = PerSample()(losses, mask, mask.flatten().nonzero()[:, 0])
    assert float(reduced) == pytest.approx(expected / (carriers * 3), rel=1e-12)


def test_equal_counts_give_the_mean_over_tokens() -> None:
    mask = torch.zeros(2, 3, 8, dtype=torch.bool)
    mask[..., 2:5] = True
    losses = random(18)
    reduced = PerSample()(losses, mask, mask.flatten().nonzero()[:, 0])
    assert float(reduced) == pytest.approx(float(losses.mean()), rel=1e-12)


def test_nothing_masked_is_a_zero_on_the_graph() -> None:
    source = torch.empty(0, requires_grad=True)
    reduced = PerSample()(source * 2, torch.zeros(2, 3, 8, dtype=torch.bool), torch.empty(0, dtype=torch.int64))
    reduced.backward()
    assert reduced.item() == 0
    assert source.grad is not None
