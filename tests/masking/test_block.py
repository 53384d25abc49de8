"""masking=block against the official generator: masks, collate and the state of the RNG bit for bit."""

from typing import Any

import numpy as np
import pytest
from mask_checks import assert_same_draws, assert_same_state, counts, masking, rectangles, seeded, to_hex

from dinoswap.masking.block import BlockMaskGenerator, max_num_patches
from fixtures import load_json

FIXTURE = load_json("masking.json")
DRAWS = FIXTURE["exact_draws"]["dinov2"]
COLLATE = [case for case in FIXTURE["collate"] if case["version"] == "dinov2"]


@pytest.mark.parametrize("grid", DRAWS)
def test_draws_are_the_official_ones(grid: str) -> None:
    assert_same_draws(
        rectangles(BlockMaskGenerator, tuple(DRAWS[grid]["grid"]), DRAWS[grid]["max_num_patches"]), DRAWS[grid]
    )


@pytest.mark.parametrize("case", COLLATE, ids=lambda c: f"seed{c['seed']}-{c['grid']}-{c['mask_probability']}")
def test_batch_is_the_official_collate(case: dict[str, Any]) -> None:
    grid, rng = tuple(case["grid"]), seeded(case["seed"])
    generator = rectangles(BlockMaskGenerator, grid, case["max_num_patches"])
    policy = masking("block", case["mask_probability"], tuple(case["mask_ratio"]))
    masks = policy.generate_block_masks(generator, 2 * case["n_images"], grid[0] * grid[1], rng)
    assert [to_hex(mask) for mask in masks] == case["masks"]
    assert np.flatnonzero(masks).tolist() == case["mask_indices_list"]
    assert_same_state(rng, case)


def test_cap_of_one_rectangle_is_the_official_expression() -> None:
    for name, case in FIXTURE["max_num_patches_expression"].items():
        size, patch = (int(part.lstrip("imgpatch")) for part in name.split("_"))
        assert max_num_patches((size, size), patch) == case["value"]


@pytest.mark.parametrize("grid", [(14, 14), (5, 12), (4, 4)])
def test_never_beyond_the_target(grid: tuple[int, int]) -> None:
    patches = grid[0] * grid[1]
    generator = rectangles(BlockMaskGenerator, grid, 0.5 * patches)
    for target in range(0, patches // 2, 3):
        found = counts(generator, target, draws=40, seed=target)
        assert (found <= target).all()
        assert found.mean() >= 0.8 * target  # and rarely far below it


def test_the_share_of_masks_below_the_target_is_the_official_one() -> None:
    official = FIXTURE["statistics_14x14"]["dinov2"]["40"]["frac_exactly_target"]
    exactly = (counts(rectangles(BlockMaskGenerator, (14, 14), 98.0), 40, draws=4000) == 40).mean()
    assert abs(exactly - official) < 5 * np.sqrt(official * (1 - official) * (1 / 4000 + 1 / 20000))
