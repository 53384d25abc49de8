"""masking.json: draws, collate and generator state, bit for bit."""

import json
import random
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dinoswap.masking.batch_policy import generate_block_masks
from dinoswap.masking.block import BlockMaskGenerator, max_num_patches
from dinoswap.reduction.per_sample import PerSample
from parity.rows import EXACT, Row, Scenarios, compare

WEIGHT = 1e-7


def scenarios(path: Path) -> Scenarios:
    """Of every version of the generator that we have."""
    content = json.loads(path.read_text())
    found: Scenarios = {}
    for grid, case in content.get("exact_draws", {}).get("dinov2", {}).items():
        found[f"draws {grid}"] = partial(check_draws, case)
    for number, case in enumerate(c for c in content.get("collate", []) if c["version"] == "dinov2"):
        found[f"collate {number}"] = partial(check_collate, case)
    if "max_num_patches_expression" in content:
        found["max_num_patches"] = partial(check_caps, content["max_num_patches_expression"])
    return found


def to_hex(mask: np.ndarray) -> str:
    return np.packbits(mask.flatten()).tobytes().hex()


def check_draws(case: dict[str, Any]) -> Iterator[Row]:
    generator = BlockMaskGenerator(tuple(case["grid"]), case["max_num_patches"])
    wrong, states = 0, 0
    for draw in case["draws"]:
        rng = random.Random(draw["seed"])
        masks = [to_hex(generator(target, rng)) for target in case["targets"]]
        wrong += sum(a != b for a, b in zip(masks, draw["masks"], strict=True))
        states += rng.random() != draw["next_random_random"]
    yield compare("masks that differ", wrong, 0, EXACT)
    yield compare("generator states that differ", states, 0, EXACT)


def check_collate(case: dict[str, Any]) -> Iterator[Row]:
    grid, rng = tuple(case["grid"]), random.Random(case["seed"])
    masks = generate_block_masks(
        BlockMaskGenerator(grid, case["max_num_patches"]),
        2 * case["n_images"],
        grid[0] * grid[1],
        probability=case["mask_probability"],
        ratio_min_max=tuple(case["mask_ratio"]),
        rng=rng,
    )
    differing = sum(to_hex(mask) != theirs for mask, theirs in zip(masks, case["masks"], strict=True))
    yield compare("masks that differ", differing, 0, EXACT)
    indices = np.flatnonzero(masks)
    yield compare("mask_indices_list", indices, case["mask_indices_list"], EXACT)
    mask = torch.from_numpy(masks).unflatten(0, (2, -1))
    yield compare("masks_weight", masks_weight(mask), case["masks_weight"], WEIGHT)
    yield compare("generator state", rng.random(), case["next_random_random"], EXACT)


def masks_weight(mask: Tensor) -> Tensor:
    """The official weight of each masked token, [M], for a mask [2, B, N]: what PerSample multiplies its loss with,
    times the number of crops."""
    losses = torch.zeros(int(mask.sum()), requires_grad=True)
    mean = PerSample()(losses, mask, mask.flatten().nonzero()[:, 0])
    return torch.autograd.grad(mean, losses)[0] * mask.shape[0] * mask.shape[1]


def check_caps(cases: dict[str, Any]) -> Iterator[Row]:
    """Names such as img224_patch14."""
    for name, case in cases.items():
        size, patch = (int("".join(filter(str.isdigit, part))) for part in name.split("_")[:2])
        yield compare(name, max_num_patches((size, size), patch), case["value"], EXACT)
