"""masking=block_accumulate against the legacy generator at b23df50: masks, batches and RNG state bit for bit."""

from typing import Any

import numpy as np
import pytest
from mask_checks import assert_same_draws, assert_same_state, counts, masking, rectangles, sampler, seeded, to_hex

from dinoswap.masking.block import BlockMaskGenerator
from dinoswap.masking.block_accumulate import BlockAccumulateMaskGenerator
from fixtures import LEGACY, load_json
from options import build_option

FIXTURE = load_json("masks_legacy.json", LEGACY)
DRAWS = FIXTURE["exact_draws"]
BATCHES = FIXTURE["generate_block_masks"]["cases"]
STATISTICS = FIXTURE["statistics_14x14"]["b23df50"]


@pytest.mark.parametrize("grid", DRAWS)
def test_draws_are_the_legacy_ones(grid: str) -> None:
    assert_same_draws(rectangles(BlockAccumulateMaskGenerator, tuple(DRAWS[grid]["grid"])), DRAWS[grid])


@pytest.mark.parametrize("case", BATCHES, ids=lambda c: f"seed{c['seed']}-{c['grid']}-{c['sample_probability']}")
def test_two_crops_in_a_row_are_the_legacy_batch(case: dict[str, Any]) -> None:
    grid, rng = tuple(case["grid"]), seeded(case["seed"])
    policy = masking("block_accumulate", case["sample_probability"], tuple(case["ratio"]))
    generator = policy.generator(grid, 1)
    for crop in ("first", "second"):
        masks = policy.generate_block_masks(generator, case["batch"], grid[0] * grid[1], rng)
        assert [to_hex(mask) for mask in masks] == case[crop]["masks"]
    assert_same_state(rng, case)


@pytest.mark.parametrize("target", ["10", "98"])
def test_a_large_sample_has_the_legacy_counts(target: str) -> None:
    case = STATISTICS[target]
    found = counts(rectangles(BlockAccumulateMaskGenerator, (14, 14)), int(target), case["n_draws"], case["seed"])
    values, frequencies = np.unique(found, return_counts=True)
    assert dict(zip(map(str, values), frequencies, strict=True)) == case["histogram"]


@pytest.mark.parametrize("grid", DRAWS)
def test_where_its_first_draw_is_the_official_one(grid: str) -> None:
    shape, target = tuple(DRAWS[grid]["grid"]), DRAWS[grid]["targets"][0]
    official = rectangles(BlockMaskGenerator, shape, 0.5 * shape[0] * shape[1])
    legacy = rectangles(BlockAccumulateMaskGenerator, shape)
    seeds = [draw["seed"] for draw in DRAWS[grid]["draws"]]
    equal = [bool((official(target, seeded(s)) == legacy(target, seeded(s))).all()) for s in seeds]
    assert equal == FIXTURE["first_draw_equal_to_official"][grid]


@pytest.mark.parametrize("grid", [(14, 14), (5, 12)])
def test_mostly_beyond_the_target_and_never_twice_as_much(grid: tuple[int, int]) -> None:
    """The last rectangle is put down while less than the cap is hidden, and hides at most as many as the cap."""
    for target in range(8, grid[0] * grid[1] // 2, 4):
        found = counts(rectangles(BlockAccumulateMaskGenerator, grid), target, draws=60, seed=target)
        assert (found < 2 * target).all()
        assert (found > target).mean() > 0.5


def test_a_rectangle_may_take_more_than_half_of_the_grid() -> None:
    """Where `block` caps it at 98 of 14 x 14 patches."""
    generator, rng = build_option("masking/block_accumulate").generator((224, 224), 16), seeded(0)
    assert isinstance(generator, BlockAccumulateMaskGenerator)
    empty = np.zeros((14, 14), dtype=bool)
    assert max(next(generator.attempts(empty.copy(), 160, rng.python), 0) for _ in range(100)) > 98


def test_ratios_are_spread_in_float64() -> None:
    """Between 0.29 and 0.29, 28 of 100 patches: 100 * 0.29 is just below 29, but 29 in float32."""
    ratios = (0.29, 0.29)
    assert list(masking("block_accumulate", 1.0, ratios).targets(2, 100, seeded(0))) == [28, 28]
    assert list(masking("block", 1.0, ratios).targets(2, 100, seeded(0))) == [29, 29]


def test_in_training() -> None:
    masks = sampler(masking("block_accumulate", 0.5, (0.2, 0.5), scope="crop"))(0)
    assert masks.any(-1).sum(1).tolist() == [2, 2]
