"""300 random configurations over all groups and keys, plausible and not. Each is refused in one line that names a key
of it, or accepted; and of the accepted ones some train two steps, whatever they combine.

The draws are seeded. Values are of the kinds that users and scripts type: of the key's own type in and out of range,
and of every other type. Twelve configurations share a choice of options: composing that takes most of the time.
"""

import functools
import random
from pathlib import Path
from typing import Any

import pytest

from dinoswap.config.command_line import compose_config
from dinoswap.config.configuration import config_dir, flatten
from dinoswap.config.schema import ConfigError
from dinoswap.config.settings import check
from dinoswap.run.assemble import build_run
from dinoswap.run.metrics import RunRecord

pytestmark = pytest.mark.slow

CONFIGS, PER_CHOICE, TRAINED = 300, 12, 12
GROUPS = {
    group: sorted(path.stem for path in (config_dir() / group).glob("*.yaml"))
    for group in [
        *("forward", "augmentation", "masking", "clustering", "weight_decay", "layer_decay", "da3", "data"),
        *("details", "preset", "distributed"),
    ]
} | {
    f"{kind}@objectives.{name}.{kind}": sorted(path.stem for path in (config_dir() / kind).glob("*.yaml"))
    for kind, names in (("targets", ("dino", "ibot", "clustering")), ("reduction", ("ibot", "clustering")))
    for name in names
}
WILD = [
    "null",
    "true",
    "-1",
    "0",
    "1",
    "3",
    "1e-3",
    "0.5",
    "2.5",
    "-inf",
    "nan",
    "99999999999999999999",
    "1e400",
    "abc",
]
WILD += [
    "''",
    "[]",
    "[0.1,0.5]",
    "[1]",
    "{}",
    "{a: 1}",
    "'a b'",
    "é",
    "001",
    "2024_05_01",
    "[null]",
    "os.system",
    "-0.5",
]
TARGETS = ["os.system", "dinoswap.data.filesystem.os", "dinoswap.objectives.koleo.torch", "dinoswap.masking", "", "5"]
SHRUNK = {
    "trainer": {"max_steps": 2, "precision": "fp32", "compile": False, "device": "cpu"},
    "data": {"batch_size": 4, "workers": 0},
    "evaluation": {"images": 20, "in_loop_images": 20, "linear_probe": False},
}
OWN = (
    "_target_",
    "path",
    "test_path",
    "ckpt_path",
    "name",
    "variant",
)  # data and weights that are not there


def near(value: Any, draw: random.Random) -> str:
    """A plausible value of the kind of `value`."""
    if isinstance(value, bool):
        return draw.choice(["true", "false"])
    if isinstance(value, int):
        return str(draw.choice([value, value + 1, max(value - 1, 0), 2 * value, 1]))
    if isinstance(value, float):
        return str(round(value * draw.choice([0.5, 0.9, 1.0, 1.1]), 6))
    if isinstance(value, list):
        return "[" + ",".join(map(str, value)) + "]"
    return "null" if value is None else str(value)


def drawn(number: int) -> list[str]:
    """The overrides of one configuration: some options, some keys with likely values, and in most one unlikely."""
    draw, choosing = random.Random(number), drawn_choice(number // PER_CHOICE)
    leaves = leaves_of(tuple(choosing))
    keys = draw.sample(sorted(leaves), draw.randrange(4))
    lines = [f"{key}={near(leaves[key], draw)}" for key in keys if not key.endswith(OWN)]
    if number % 3:
        key = draw.choice(sorted(leaves))
        lines.append(f"{key}={draw.choice(TARGETS if key.endswith('_target_') else WILD)}")
    return [*choosing, *lines]


@functools.cache
def leaves_of(choosing: tuple[str, ...]) -> dict[str, Any]:
    return flatten(compose_config(choosing))


def drawn_choice(number: int) -> list[str]:
    draw = random.Random(10_000 + number)
    chosen = draw.sample(list(GROUPS), draw.randrange(5))
    choosing = sorted(
        (f"{group}={draw.choice(GROUPS[group])}" for group in chosen), key=lambda line: line[:6] != "preset"
    )
    return ["recipe=smoke", *choosing, *needed(choosing)]


def needed(choosing: list[str]) -> list[str]:
    """What has to be given with an option."""
    files = {"parquet", "image_folder", "webdataset", "torchvision"}
    return ["data.path=/nowhere"] if files & {line.partition("=")[2] for line in choosing} else []


@pytest.fixture(scope="module")
def outcomes() -> dict[int, tuple[list[str], dict[str, Any] | ConfigError]]:
    """Of each configuration, by number: its overrides, and its config or why it is refused."""
    return {number: (lines := drawn(number), outcome(lines)) for number in range(CONFIGS)}


def outcome(overrides: list[str]) -> dict[str, Any] | ConfigError:
    try:
        config = compose_config(overrides)
        check(config)
    except ConfigError as error:
        return error
    return config


def test_each_is_refused_in_a_line_that_names_a_key_or_accepted(outcomes: dict[int, Any]) -> None:
    refused = 0
    for overrides, found in outcomes.values():
        if isinstance(found, ConfigError):
            refused += 1
            keys = [line.partition("=")[0] for line in overrides]
            names = [part for key in keys for part in (key, key.rpartition(".")[0], key.partition("@")[2]) if part]
            assert any(name in str(found) for name in names), (overrides, found)
            assert "\n" not in str(found) and len(str(found)) < 700, (overrides, found)
    assert 60 < refused < 240


def test_what_is_accepted_trains(outcomes: dict[int, Any], tmp_path: Path) -> None:
    accepted = [(lines, found) for lines, found in outcomes.values() if isinstance(found, dict)]
    trained = 0
    for lines, found in accepted:
        if found["data"]["_target_"].endswith("EmbeddedData") and not found["distributed"]:
            trained += trains(lines, shrunk(found), tmp_path)
        if trained == TRAINED:
            return
    pytest.fail(f"only {trained} could be trained")


def shrunk(config: dict[str, Any]) -> dict[str, Any]:
    small = {section: config[section] | values for section, values in SHRUNK.items()}
    lengths = {key: 0.1 for key in ("warmup", "weight_decay_warmup") if key in config["schedule"]}
    return {**config, **small, "schedule": config["schedule"] | lengths}


def trains(overrides: list[str], config: dict[str, Any], folder: Path) -> bool:
    """Two steps. False where the builder refuses it, which is as clear as a refusal before."""
    try:
        run = build_run(config, folder, lambda: RunRecord(folder / "run.json", "", "", 0, {}, []))
    except ConfigError as error:
        assert "\n" not in str(error), (overrides, error)
        return False
    for step in range(2):
        batch = run.dataset[step].normalised(run.evaluator.mean, run.evaluator.std)
        logs = run.trainer.step(step, [batch])
        assert "loss" in logs, overrides
    return True
