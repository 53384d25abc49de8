"""What holds for every option of the group, and what the batch policy gives to those of the block family."""

from typing import Any

import numpy as np
import pytest
from mask_checks import masking, sampler

from options import build_option

RECTANGLES = ["block", "block_exact", "block_accumulate"]
FAMILY = [*RECTANGLES, "inverse_block"]
RATIOS = (0.2, 0.5)  # of 24 patches: no target is 0


@pytest.mark.parametrize("option", [*FAMILY, "bernoulli"])
def test_masks_depend_on_seed_and_step_alone(option: str) -> None:
    masks = sampler(build_option(f"masking/{option}"))
    first = [masks(step) for step in range(4)]
    assert all(mask.shape == (2, 5, 6 * 4) and mask.dtype == bool for mask in first)
    for step in (2, 0, 3, 1):  # in another order, by the same and by another sampler
        np.testing.assert_array_equal(masks(step), first[step])
        np.testing.assert_array_equal(sampler(build_option(f"masking/{option}"))(step), first[step])
    assert len({mask.tobytes() for mask in first}) == 4
    assert (sampler(build_option(f"masking/{option}"), seed=4)(0) != first[0]).any()


@pytest.mark.parametrize("option", FAMILY)
@pytest.mark.parametrize("probability", [0.5, 0.7, 1.0])
def test_scope_crop_masks_the_same_number_in_every_crop(option: str, probability: float) -> None:
    masks = sampler(masking(option, probability, RATIOS, scope="crop"))
    for step in range(20):
        assert masks(step).any(-1).sum(1).tolist() == [int(5 * probability)] * 2


@pytest.mark.parametrize("option", FAMILY)
def test_scope_batch_masks_over_all_crops_jointly(option: str) -> None:
    masks = sampler(masking(option, 0.7, RATIOS))
    masked = np.stack([masks(step).any(-1).sum(1) for step in range(20)])  # [steps, P]
    assert set(masked.sum(1)) == {int(2 * 5 * 0.7)}
    assert len(set(masked[:, 0])) > 1


@pytest.mark.parametrize("option", FAMILY)
def test_the_scopes_agree_where_one_crop_carries_the_mask(option: str) -> None:
    jointly, by_itself = (
        sampler(build_option(f"masking/{option}", scope=scope), crops=1) for scope in ("batch", "crop")
    )
    for step in range(5):
        np.testing.assert_array_equal(jointly(step), by_itself(step))


@pytest.mark.parametrize("option", ["block", "inverse_block"])
def test_targets_are_spread_evenly_over_the_ratios(option: str) -> None:
    """Four masked crops of 14 x 14: one target in each quarter of the range. A count of `block` may stay 2 below it."""
    masks = sampler(masking(option, 0.5, (0.1, 0.5)), images=4, crop_size=(224, 224))
    for step in range(20):
        found = np.sort(masks(step).sum(-1).flatten())
        assert (found[:4] == 0).all()
        for count, low in zip(found[4:], (0.1, 0.2, 0.3, 0.4), strict=True):
            assert int(196 * low) - 2 <= count <= 196 * (low + 0.1)


def test_every_crop_is_masked_equally_often() -> None:
    masks = sampler(masking("block", 0.5, RATIOS))
    frequency = np.mean([masks(step).any(-1) for step in range(600)], axis=0)  # [P, B]
    assert np.abs(frequency - 0.5).max() < 5 * np.sqrt(0.25 / 600)


@pytest.mark.parametrize("option", FAMILY)
@pytest.mark.parametrize(
    ("arguments", "key"),
    [
        ({"mask_sample_probability": 1.5}, "mask_sample_probability=1.5"),
        ({"mask_sample_probability": -0.1}, "mask_sample_probability=-0.1"),
        ({"mask_sample_probability": float("nan")}, "mask_sample_probability=nan"),
        ({"mask_ratio_min_max": (0.6, 0.5)}, r"mask_ratio_min_max=\[0.6, 0.5\]"),
        ({"mask_ratio_min_max": (-0.1, 0.5)}, "mask_ratio_min_max"),
        ({"mask_ratio_min_max": (0.1, 1.1)}, "mask_ratio_min_max"),
        ({"min_aspect": 0.0}, "min_aspect=0.0"),
        ({"min_aspect": 1.1}, "min_aspect=1.1"),
        ({"scope": "image"}, "scope=image"),
    ],
)
def test_bad_values_are_named(option: str, arguments: dict[str, Any], key: str) -> None:
    with pytest.raises(ValueError, match=key):
        build_option(f"masking/{option}", **arguments)


@pytest.mark.parametrize("option", RECTANGLES)
def test_a_rectangle_has_at_least_a_patch_and_at_most_the_grid(option: str) -> None:
    with pytest.raises(ValueError, match="min_num_patches=0"):
        build_option(f"masking/{option}", min_num_patches=0)
    with pytest.raises(ValueError, match="min_num_patches=25: a crop has 6 x 4"):
        sampler(build_option(f"masking/{option}", min_num_patches=25))
    sampler(build_option(f"masking/{option}", min_num_patches=24))
