"""masking=block against the official generator: masks, collate and the state of the RNG bit for bit."""

import random

import numpy as np
import pytest

from dinoswap.masking.batch_policy import generate_block_masks
from dinoswap.masking.block import BlockMaskGenerator, BlockMasking, max_num_patches
from fixtures import load_json

FIXTURE = load_json("masking.json")
DRAWS = FIXTURE["exact_draws"]["dinov2"]
COLLATE = [case for case in FIXTURE["collate"] if case["version"] == "dinov2"]


def to_hex(mask: np.ndarray) -> str:
    return np.packbits(mask.flatten()).tobytes().hex()


@pytest.mark.parametrize("grid", DRAWS)
def test_draws_are_the_official_ones(grid: str) -> None:
    case = DRAWS[grid]
    generator = BlockMaskGenerator(tuple(case["grid"]), case["max_num_patches"])
    for draw in case["draws"]:
        rng = random.Random(draw["seed"])
        masks = [generator(target, rng) for target in case["targets"]]
        assert [to_hex(mask) for mask in masks] == draw["masks"]
        assert rng.random() == draw["next_random_random"]


@pytest.mark.parametrize("case", COLLATE, ids=lambda c: f"seed{c['seed']}-{c['grid']}-{c['mask_probability']}")
def test_batch_is_the_official_collate(case: dict) -> None:
    grid = tuple(case["grid"])
    rng = random.Random(case["seed"])
    masks = generate_block_masks(
        BlockMaskGenerator(grid, case["max_num_patches"]),
        2 * case["n_images"],
        grid[0] * grid[1],
        probability=case["mask_probability"],
        ratio_min_max=tuple(case["mask_ratio"]),
        rng=rng,
    )
    assert [to_hex(mask) for mask in masks] == case["masks"]
    assert np.flatnonzero(masks).tolist() == case["mask_indices_list"]
    assert rng.random() == case["next_random_random"]


def test_cap_of_one_rectangle_is_the_official_expression() -> None:
    for name, case in FIXTURE["max_num_patches_expression"].items():
        size, patch = (int(part.lstrip("imgpatch")) for part in name.split("_"))
        assert max_num_patches((size, size), patch) == case["value"]


def test_sampler_is_a_function_of_seed_and_step() -> None:
    def sampler(seed: int):
        return BlockMasking().sampler(crop_size=(96, 64), patch_size=16, crops=2, images=5, seed=seed)

    masks = sampler(3)(7)
    assert masks.shape == (2, 5, 6 * 4)
    assert masks.dtype == bool
    np.testing.assert_array_equal(masks, sampler(3)(7))
    assert (masks != sampler(3)(8)).any()
    assert (masks != sampler(4)(7)).any()
    assert (masks.reshape(10, -1).any(1)).sum() <= 5  # half of the crops at most


@pytest.mark.parametrize(
    ("arguments", "key"),
    [
        ({"mask_sample_probability": 1.5}, "mask_sample_probability=1.5"),
        ({"mask_ratio_min_max": (0.6, 0.5)}, "mask_ratio_min_max"),
        ({"min_aspect": 0.0}, "min_aspect=0.0"),
    ],
)
def test_bad_values_are_named(arguments: dict, key: str) -> None:
    with pytest.raises(ValueError, match=key):
        BlockMasking(**arguments)
