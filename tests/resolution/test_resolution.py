"""Which crop sizes a step has: the sequence against a loop, and what is refused, under its full key."""

from collections import Counter
from typing import Any

import numpy as np
import pytest

from dinoswap.config.command_line import compose_config
from dinoswap.config.schema import ConfigError
from dinoswap.config.sections import step_sizes
from dinoswap.config.settings import check
from dinoswap.resolution.base import Resolution, StepSizes
from options import build_option

THREE = {"global_sizes": [64, 96, 128], "local_sizes": [16, 32, 32], "ratios": [0.5, 0.3, 0.2]}


def mixed(**changes: Any) -> Any:
    return build_option("resolution/mixed", **changes)


def by_hand(ratios: list[float], seed: int, steps: int) -> list[int]:
    """One uniform number for each step, from one generator; the entry is the interval of the ratios that it lies in."""
    generator, found = np.random.default_rng(seed), []
    for _ in range(steps):
        number, index = generator.random(), 0
        while number >= sum(ratios[: index + 1]) / sum(ratios):
            index += 1
        found.append(index)
    return found


@pytest.mark.parametrize("seed", [0, 7, 65537])
@pytest.mark.parametrize("ratios", [[0.5, 0.5], [0.3, 0.3, 0.3, 0.05, 0.05], [1 / 3, 1 / 3, 1 / 3], [1.0]], ids=str)
def test_a_step_has_the_entry_of_a_loop_that_reaches_it(ratios: list[float], seed: int) -> None:
    option = mixed(global_sizes=[32] * len(ratios), ratios=ratios, seed=seed)
    expected = by_hand(ratios, seed, 300)
    assert [option.index(1, step) for step in range(300)] == expected
    assert [option.index(1, step) for step in (299, 7, 150)] == [expected[step] for step in (299, 7, 150)]


def test_entries_are_as_frequent_as_their_ratios() -> None:
    option = mixed(**THREE)
    for seed in (0, 1):
        counts = Counter(option.index(seed, step) for step in range(3000))
        for index, ratio in enumerate(THREE["ratios"]):
            assert abs(counts[index] - 3000 * ratio) < 4 * (3000 * ratio * (1 - ratio)) ** 0.5


def test_the_runs_seed_decides_unless_one_is_given() -> None:
    def sequence(option: Resolution, of_run: int) -> list[int]:
        return [option.index(of_run, step) for step in range(100)]

    assert sequence(mixed(), 0) == sequence(mixed(), 0) != sequence(mixed(), 1)
    assert sequence(mixed(seed=5), 0) == sequence(mixed(seed=5), 1)


def test_sizes() -> None:
    assert build_option("resolution/fixed").sizes(224, 96) == [(224, 96, 1.0)]
    assert mixed().sizes(224, 96) == [(224, 96, 0.5), (448, 96, 0.5)]
    assert mixed(**THREE).sizes(224, 96) == [(64, 16, 0.5), (96, 32, 0.3), (128, 32, 0.2)]
    assert mixed(global_sizes=[64], ratios=[1.0]).sizes(224, 96) == [(64, 96, 1.0)]


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (
            ["ratios=[0.5,0.6]"],
            r"resolution\.ratios=\[0\.5, 0\.6\]: must be above 0 and sum to 1, and they sum to 1\.1",
        ),
        (["ratios=[1.5,-0.5]"], r"resolution\.ratios=\[1\.5, -0\.5\]: must be above 0"),
        (["ratios=[1.0,0.0]"], r"resolution\.ratios=\[1\.0, 0\.0\]: must be above 0"),
        (["ratios=[]"], r"resolution\.ratios=\[\]: there are 0, and 2 global_sizes and 2 local_sizes"),
        (["ratios=[1.0]"], r"resolution\.ratios=\[1\.0\]: there are 1, and 2 global_sizes and 2 local_sizes; give as"),
        (
            ["global_sizes=[32,40,48]"],
            r"resolution\.ratios=\[0\.5, 0\.5\]: there are 2, and 3 global_sizes and 3 local",
        ),
        (["local_sizes=[16]"], r"resolution\.ratios=\[0\.5, 0\.5\]: there are 2, and 2 global_sizes and 1 local_sizes"),
        (["seed=-1"], r"resolution\.seed=-1: must be 0 or more, or null"),
        (
            ["global_sizes=[32,44]"],
            r"resolution\.global_sizes=\[32, 44\]: must be multiples of model\.patch_size=8; "
            r"try resolution\.global_sizes=\[32,48\]",
        ),
        (["local_sizes=[16,4]"], r"resolution\.local_sizes=\[16, 4\]: .*=8; try resolution\.local_sizes=\[16,8\]"),
        (["global_sizes=[0,32]"], r"resolution\.global_sizes=\[0, 32\]: must be .*; try .*=\[8,32\]"),
        (["global_sizes=32"], r"resolution\.global_sizes=32: "),
    ],
    ids=str,
)
def test_refused_settings(keys: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=f"^{message}"):
        check(compose_config(["recipe=smoke", "resolution=mixed", *(f"resolution.{key}" for key in keys)]))


def test_fixed_has_the_sizes_of_the_crops() -> None:
    cfg = compose_config(["recipe=smoke", "crops.global_size=48"])
    assert step_sizes(cfg) == [StepSizes(48, 16, 1.0)]
