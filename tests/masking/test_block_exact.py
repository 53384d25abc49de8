"""masking=block_exact against dinov3: masks, collate and the states of both generators bit for bit; exact counts."""

from typing import Any

import numpy as np
import pytest
from mask_checks import assert_same_draws, assert_same_state, counts, masking, rectangles, sampler, seeded, to_hex

from dinoswap.masking.batch_policy import Generators
from dinoswap.masking.block import BlockMaskGenerator
from dinoswap.masking.block_exact import BlockExactMaskGenerator
from dinoswap.rng import numpy_generator, python_generator
from fixtures import load_json
from options import build_option

FIXTURE = load_json("masking.json")
DRAWS = FIXTURE["exact_draws"]["dinov3"]
COLLATE = [case for case in FIXTURE["collate"] if case["version"] == "dinov3"]


@pytest.mark.parametrize("grid", DRAWS)
def test_draws_are_those_of_dinov3(grid: str) -> None:
    assert_same_draws(
        rectangles(
            BlockExactMaskGenerator, tuple(DRAWS[grid]["grid"]), DRAWS[grid]["max_num_patches"], circular_shift=False
        ),
        DRAWS[grid],
    )


@pytest.mark.parametrize("case", COLLATE, ids=lambda c: f"seed{c['seed']}-{c['grid']}")
def test_batch_is_the_collate_of_dinov3(case: dict[str, Any]) -> None:
    """One of the cases shifts its masks around the grid."""
    grid, rng = tuple(case["grid"]), seeded(case["seed"])
    shift = case["kwargs"].get("random_circular_shift", False)
    generator = rectangles(BlockExactMaskGenerator, grid, case["max_num_patches"], circular_shift=shift)
    policy = masking("block_exact", case["mask_probability"], tuple(case["mask_ratio"]))
    masks = policy.generate_block_masks(generator, 2 * case["n_images"], grid[0] * grid[1], rng)
    assert [to_hex(mask) for mask in masks] == case["masks"]
    assert np.flatnonzero(masks).tolist() == case["mask_indices_list"]
    assert_same_state(rng, case)


def test_the_fixture_has_both_ways_to_collate() -> None:
    assert {case["kwargs"].get("random_circular_shift", False) for case in COLLATE} == {False, True}


@pytest.mark.parametrize("circular_shift", [False, True])
@pytest.mark.parametrize("grid", [(14, 14), (5, 12), (1, 4)])
def test_exactly_the_target(grid: tuple[int, int], circular_shift: bool) -> None:
    patches = grid[0] * grid[1]
    generator = rectangles(BlockExactMaskGenerator, grid, 0.5 * patches, circular_shift=circular_shift)
    for target in range(patches + 1):
        assert (counts(generator, target, draws=3, seed=target) == target).all()


def test_the_rectangles_are_those_of_block() -> None:
    block, exact = (
        rectangles(BlockMaskGenerator, (14, 14), 98.0),
        rectangles(BlockExactMaskGenerator, (14, 14), 98.0, circular_shift=False),
    )
    for seed in range(50):
        assert not (block(60, seeded(seed)) & ~exact(60, seeded(seed))).any()


@pytest.mark.parametrize("scope", ["batch", "crop"])
def test_every_step_hides_the_same_number_of_patches(scope: Any) -> None:
    """The upper ends of the parts of the range: of 14 x 14 patches in 4 parts, 196 * (.2, .3, .4, .5)."""
    images = 4 if scope == "batch" else 8
    masks = sampler(build_option("masking/block_exact", scope=scope), images=images, crop_size=(224, 224))
    for step in range(5):
        found = masks(step).sum(-1)  # [P, B]
        drawn_together = [found.flatten()] if scope == "batch" else list(found)
        for crops in drawn_together:
            assert sorted(crops) == [0, 0, 0, 0, 39, 58, 78, 98]


def test_in_training_both_generators_are_those_of_seed_and_step() -> None:
    policy = masking("block_exact", 1.0, (0.5, 0.9))  # rectangles do not hide so much: many patches are filled in
    fill = np.random.RandomState(numpy_generator(3, "mask", 7).bit_generator)
    rng = Generators(python_generator(3, "mask", 7), fill)
    expected = policy.generate_block_masks(policy.generator((96, 64), 16), 2 * 5, 6 * 4, rng)
    np.testing.assert_array_equal(sampler(policy, seed=3)(7), expected.reshape(2, 5, 6 * 4))


def test_the_option_passes_the_shift_on() -> None:
    """The centre is preferred without the shift, and every patch is as good with it."""

    def frequency(circular_shift: bool) -> np.ndarray:
        """Of a grid whose sides cannot be mistaken for each other."""
        option = masking("block_exact", 1.0, (0.5, 0.5), circular_shift=circular_shift)
        masks = sampler(option, images=8, crop_size=(224, 112))
        found: np.ndarray = np.concatenate([masks(step).reshape(-1, 14, 7) for step in range(40)]).mean(0)
        return found

    centred = frequency(False)
    assert centred[6:8, 3].mean() > 0.7 > 0.2 > centred[[0, 0, -1, -1], [0, -1, 0, -1]].mean()
    assert np.abs(frequency(True) - 0.5).max() < 5 * np.sqrt(0.25 / 640)
