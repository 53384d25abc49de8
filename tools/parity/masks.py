"""masking.json: draws, collate and generator states, bit for bit."""

import json
import math
import random
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dinoswap.masking.batch_policy import BatchPolicy, Generators, MaskGenerator
from dinoswap.masking.block import BlockMaskGenerator, BlockMasking, max_num_patches
from dinoswap.masking.block_exact import BlockExactMaskGenerator, BlockExactMasking
from dinoswap.reduction.per_sample import PerSample
from parity.rows import EXACT, Row, Scenarios, compare

RECTANGLE = {"min_num_patches": 4, "min_aspect": 0.3}
"""The bounds of a rectangle in all of the codes."""
WEIGHT = 1e-7
NEXT = ("next_random_random", "next_np_random_rand")  # the next number of each: equal if as many were drawn before

Case = dict[str, Any]
MakeGenerator = Callable[[tuple[int, int], float], MaskGenerator]
"""(grid, max_num_patches) -> its generator"""


def scenarios(path: Path) -> Scenarios:
    """Of both versions of the generator."""
    content = json.loads(path.read_text())
    named_checks: Scenarios = {}
    for version, make in (("dinov2", dinov2_generator), ("dinov3", dinov3_generator)):
        for grid, case in content.get("exact_draws", {}).get(version, {}).items():
            named_checks[f"draws {version} {grid}"] = partial(check_draws, make, case)
    for number, case in enumerate(content.get("collate", [])):
        named_checks[f"collate {number} {case['version']}"] = partial(check_collate, case)
    if "max_num_patches_expression" in content:
        named_checks["max_num_patches"] = partial(check_caps, content["max_num_patches_expression"])
    return named_checks


def dinov2_generator(grid: tuple[int, int], cap: float) -> MaskGenerator:
    return BlockMaskGenerator(grid, cap, **RECTANGLE)


def dinov3_generator(grid: tuple[int, int], cap: float, circular_shift: bool = False) -> MaskGenerator:
    return BlockExactMaskGenerator(grid, cap, **RECTANGLE, circular_shift=circular_shift)


def to_hex(mask: np.ndarray) -> str:
    return np.packbits(mask.flatten()).tobytes().hex()


def seeded(seed: int) -> Generators:
    """Both generators as random.seed(seed) and np.random.seed(seed) leave them."""
    return Generators(random.Random(seed), np.random.RandomState(seed))


def differing(ours: Sequence[np.ndarray], theirs: Sequence[str]) -> int:
    return sum(to_hex(mask) != other for mask, other in zip(ours, theirs, strict=True))


def check_draws(make: MakeGenerator, case: Case) -> Iterator[Row]:
    """Several masks in a row, for each of the seeds."""
    generator = make(tuple(case["grid"]), case.get("max_num_patches", math.inf))
    wrong, counts, states = 0, [], []
    for draw in case["draws"]:
        rng = seeded(draw["seed"])
        masks = [generator(target, rng) for target in case["targets"]]
        wrong += differing(masks, draw["masks"])
        counts.append([mask.sum() for mask in masks])
        states.append([rng.python.random(), rng.numpy.rand()])
    yield compare("masks that differ", wrong, 0, EXACT)
    yield compare("counts", counts, [draw["counts"] for draw in case["draws"]], EXACT)
    yield compare("generator states", states, [[draw[key] for key in NEXT] for draw in case["draws"]], EXACT)


def recorded(generator: MaskGenerator, targets: list[int]) -> MaskGenerator:
    """The generator, noting down what it is asked for."""

    def call(target: int, rng: Generators) -> np.ndarray:
        targets.append(target)
        return generator(target, rng)

    return call


def policy_and_generator(case: Case) -> tuple[BatchPolicy, MaskGenerator]:
    policy = {"mask_sample_probability": case["mask_probability"], "mask_ratio_min_max": tuple(case["mask_ratio"])}
    grid, cap = tuple(case["grid"]), case["max_num_patches"]
    if case["version"] == "dinov2":
        return BlockMasking(**policy, **RECTANGLE, scope="batch", draws="batch"), dinov2_generator(grid, cap)
    shift = case["kwargs"].get("random_circular_shift", False)
    option = BlockExactMasking(**policy, **RECTANGLE, circular_shift=shift, scope="batch", draws="batch")
    return option, dinov3_generator(grid, cap, shift)


def check_collate(case: Case) -> Iterator[Row]:
    policy, generator = policy_and_generator(case)
    rng, targets = seeded(case["seed"]), list[int]()
    crops, patches = 2 * case["n_images"], int(np.prod(case["grid"]))
    masks = policy.generate_block_masks(recorded(generator, targets), crops, patches, rng)
    yield compare("targets", targets, case["requested_targets_in_call_order"], EXACT)
    yield compare("masks that differ", differing(list(masks), case["masks"]), 0, EXACT)
    yield compare("mask_counts", masks.sum(1), case["mask_counts"], EXACT)
    yield compare("mask_indices_list", np.flatnonzero(masks), case["mask_indices_list"], EXACT)
    mask = torch.from_numpy(masks).unflatten(0, (2, -1))
    yield compare("masks_weight", masks_weight(mask), case["masks_weight"], WEIGHT)
    yield compare("generator states", [rng.python.random(), rng.numpy.rand()], [case[key] for key in NEXT], EXACT)


def masks_weight(mask: Tensor) -> Tensor:
    """The official weight of each masked token, [M], for a mask [P, B, N]: what PerSample multiplies its loss with,
    times the number of crops."""
    losses = torch.zeros(int(mask.sum()), requires_grad=True)
    mean = PerSample()(losses, mask, mask.flatten().nonzero()[:, 0])
    return torch.autograd.grad(mean, losses)[0] * mask.shape[0] * mask.shape[1]


def check_caps(cases: dict[str, Any]) -> Iterator[Row]:
    """Names such as img224_patch14."""
    for name, case in cases.items():
        size, patch = (int("".join(filter(str.isdigit, part))) for part in name.split("_")[:2])
        yield compare(name, max_num_patches((size, size), patch), case["value"], EXACT)
