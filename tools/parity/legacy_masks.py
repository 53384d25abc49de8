"""masks_legacy*.json: Bernoulli masks, accumulated rectangles, their batches and generator states, bit for bit, and the
statistics of large samples."""

import json
import math
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import torch

from dinoswap.masking.batch_policy import MaskGenerator
from dinoswap.masking.bernoulli import bernoulli_masks
from dinoswap.masking.block_accumulate import BlockAccumulateMaskGenerator, BlockAccumulateMasking
from parity.masks import (
    NEXT,
    RECTANGLE,
    WEIGHT,
    Case,
    check_draws,
    differing,
    dinov2_generator,
    masks_weight,
    recorded,
    seeded,
    to_hex,
)
from parity.rows import EXACT, Row, Scenarios, compare

STATISTIC = 1e-12  # float64 summaries of identical counts
SIGMAS = 5.0  # standard errors between a sample of ours and one of theirs
SAMPLE = 20000  # their mean is a multiple of 1 / 20000


def scenarios(path: Path) -> Scenarios:
    content = json.loads(path.read_text())
    named_checks: Scenarios = {}
    bernoulli = content.get("bernoulli", {})
    for number, case in enumerate(bernoulli.get("cases", [])):
        named_checks[f"bernoulli {number}"] = partial(check_bernoulli, case)
    if "count_stats_ratio0.4_14x14" in bernoulli:
        named_checks["bernoulli counts"] = partial(check_bernoulli_counts, bernoulli["count_stats_ratio0.4_14x14"])
    flags = content.get("first_draw_equal_to_official", {})
    for grid, case in content.get("exact_draws", {}).items():
        named_checks[f"draws {grid}"] = partial(check_draws, accumulating, case)
        if grid in flags:
            named_checks[f"first draw {grid}"] = partial(check_first_draws, case, flags[grid])
    for number, case in enumerate(content.get("generate_block_masks", {}).get("cases", [])):
        named_checks[f"generate_block_masks {number}"] = partial(check_batch, case)
    for target, case in content.get("statistics_14x14", {}).get("b23df50", {}).items():
        named_checks[f"statistics {target}"] = partial(check_statistics, int(target), case)
    if "batch_level_14x14_B32" in content:
        named_checks["batch level"] = partial(check_batch_level, content["batch_level_14x14_B32"])
    return named_checks


def accumulating(grid: tuple[int, int], cap: float = math.inf) -> MaskGenerator:
    return BlockAccumulateMaskGenerator(grid, cap, **RECTANGLE)


def policy(probability: float, ratio: tuple[float, float]) -> BlockAccumulateMasking:
    return BlockAccumulateMasking(
        mask_sample_probability=probability, mask_ratio_min_max=ratio, **RECTANGLE, scope="batch", draws="batch"
    )


def check_bernoulli(case: Case) -> Iterator[Row]:
    rng, patches = torch.Generator().manual_seed(case["seed"]), int(np.prod(case["grid"]))
    for call in ("first_call", "second_call"):
        masks = bernoulli_masks(case["batch"], patches, case["ratio"], rng).numpy()
        yield compare(f"{call}, masks that differ", differing(list(masks), case[call]), 0, EXACT)
        if call == "first_call":
            yield compare("counts", masks.sum(1), case["counts"], EXACT)
    yield compare("generator", torch.rand((), generator=rng), case["next_torch_rand"], EXACT)


def check_bernoulli_counts(case: Case) -> Iterator[Row]:
    """Their seed is not stored: as many masks of ours, within the sampling error of the difference."""
    counts = bernoulli_masks(SAMPLE, 196, 0.4, torch.Generator().manual_seed(0)).sum(1).double()
    mean, deviation = float(counts.mean()), float(counts.std())
    yield compare("mean (another seed)", mean, case["mean"], SIGMAS * deviation * math.sqrt(2 / SAMPLE))
    yield compare(
        "std (another seed)", deviation, case["std"], SIGMAS * deviation * math.sqrt(1 / SAMPLE)
    )  # half of 2 / SAMPLE


def check_first_draws(case: Case, flags: list[bool]) -> Iterator[Row]:
    """Whether the first mask of each seed is the one that the official generator draws."""
    grid = tuple(case["grid"])
    official = dinov2_generator(grid, 0.5 * grid[0] * grid[1])
    accumulate = accumulating(grid)
    target = case["targets"][0]
    equal = [
        to_hex(official(target, seeded(draw["seed"]))) == to_hex(accumulate(target, seeded(draw["seed"])))
        for draw in case["draws"]
    ]
    yield compare("equal to the official one", equal, flags, EXACT)


def check_batch(case: Case) -> Iterator[Row]:
    """Two calls from the same generators: the two global crops of a step."""
    grid, crops = tuple(case["grid"]), case["batch"]
    batch_policy = policy(case["sample_probability"], tuple(case["ratio"]))
    rng, targets = seeded(case["seed"]), list[int]()
    for call in ("first", "second"):
        drawn = list[int]()
        generator = recorded(accumulating(grid), drawn)
        masks = batch_policy.generate_block_masks(generator, crops, grid[0] * grid[1], rng)
        targets += drawn[: int(crops * case["sample_probability"])]  # the rest are those of the unmasked crops
        yield compare(f"{call}, masks that differ", differing(list(masks), case[call]["masks"]), 0, EXACT)
        yield compare(f"{call}, counts", masks.sum(1), case[call]["counts"], EXACT)
        weights = np.repeat(case[call]["weights"], masks.sum(1))  # [B] -> [M]
        yield compare(f"{call}, weights", masks_weight(torch.from_numpy(masks)[None]), weights, WEIGHT)
        unmasked = np.array(case[call]["weights"])[~masks.any(1)]
        yield compare(f"{call}, weights of unmasked crops", unmasked, np.zeros(len(unmasked)), EXACT)
    yield compare("targets", targets, case["requested_targets_in_call_order"], EXACT)
    yield compare("generator states", [rng.python.random(), rng.numpy.rand()], [case[key] for key in NEXT], EXACT)


def check_statistics(target: int, case: Case) -> Iterator[Row]:
    """A whole sample again, from its seed."""
    generator, rng = accumulating((14, 14)), seeded(case["seed"])
    masks = np.stack([generator(target, rng) for _ in range(case["n_draws"])])
    counts = masks.sum((1, 2))
    values, frequencies = np.unique(counts, return_counts=True)
    yield compare("counts that occur", values, sorted(map(int, case["histogram"])), EXACT)
    yield compare("their frequencies", frequencies, [case["histogram"].get(str(v), 0) for v in values], EXACT)
    yield compare("prob_map", masks.mean(0), case["prob_map"], STATISTIC)
    yield compare("mean", counts.mean(), case["mean"], STATISTIC, scale=1.0)
    yield compare("std", counts.std(), case["std"], STATISTIC, scale=1.0)
    over = counts > target
    yield compare("frac_overshoot", over.mean(), case["frac_overshoot"], STATISTIC)
    excess = (counts - target)[over].mean()
    yield compare("mean overshoot", excess, case["mean_overshoot_given_overshoot"], STATISTIC, scale=1.0)


def check_batch_level(case: Case) -> Iterator[Row]:
    """Their seed is not stored: as many batches of ours, within the sampling error of the difference."""
    batch_policy, generator = policy(0.5, (0.1, 0.5)), accumulating((14, 14))
    rng, batches, drawn = seeded(0), case["n_batches"], list[int]()
    call = recorded(generator, drawn)
    counts = np.stack([batch_policy.generate_block_masks(call, 32, 196, rng).sum(1) for _ in range(batches)])
    masked = case["masked_samples_per_batch"]
    yield compare("masked crops of each batch", (counts > 0).sum(1), [masked] * batches, EXACT)
    targets = np.array(drawn).reshape(batches, 32)
    for name, values in (
        ("mean_count_of_masked_samples", counts.sum(1) / masked),
        ("nominal_mean", targets.sum(1) / masked),
        ("frac_masked_samples_over_50pct", (counts > 98).sum(1) / masked),
    ):
        tolerance = SIGMAS * float(values.std()) * math.sqrt(2 / batches)
        yield compare(f"{name} (another seed)", values.mean(), case[name], tolerance)
