"""The config.yaml of a run that is older than some of today's keys."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from dinoswap.config.command_line import compose_config
from dinoswap.config.configuration import config_dir
from dinoswap.config.first_check import first_check
from dinoswap.config.identity import ROOT, default_of, defaults, described, same
from dinoswap.config.schema import ConfigError
from dinoswap.config.stored import completed, read_config

KNOWN = defaults(config_dir() / "identity.json")
CONFIGS = [
    ["preset=official"],
    ["preset=aligned", "distributed=fsdp2"],
    ["preset=legacy", "masking=block_exact", "recipe=demo"],
    ["preset=dinov3", "gram=snapshot", "objectives.gram.weight_schedule.end=2.0"],
    ["preset=legacy", "schedule=piecewise", "schedule.lr.cosine=null", "schedule.momentum.peak=0.9"],
    ["da3=enabled", "da3.enabled=false", "data=parquet", "data.path=x", "~objectives.koleo", "layer_decay=uniform"],
]


def without(config: Mapping[str, Any], key: str) -> dict[str, Any]:
    head, _, rest = key.partition(".")
    if not rest:
        return {name: value for name, value in config.items() if name != head}
    return {**config, head: without(config[head], rest)}


def older(config: dict[str, Any]) -> tuple[dict[str, Any], int]:
    """The config without any key that has the value of its introduction, and how many these are."""
    leaves = [leaf for leaf in described(config) if not leaf.is_option and leaf.key != "data.path"]
    removed = [leaf.key for leaf in leaves if same(default_of(leaf, KNOWN), leaf.value)]
    for key in removed:
        config = without(config, key)
    return config, len(removed)


@pytest.mark.parametrize("overrides", CONFIGS, ids=" ".join)
def test_what_an_older_run_did_is_what_the_key_was_introduced_with(overrides: list[str], tmp_path: Path) -> None:
    config = compose_config(overrides)
    left, removed = older(config)
    assert removed > 60
    assert completed(left, KNOWN) == config
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(left))
    assert read_config(tmp_path / "config.yaml") == config


@pytest.mark.parametrize("overrides", CONFIGS, ids=" ".join)
def test_a_config_of_today_stays_as_it_is(overrides: list[str]) -> None:
    config = compose_config(overrides)
    assert completed(config, KNOWN) == config


@pytest.mark.parametrize("section", ["objectives.dino.local_weight", "objectives.gram.weight_schedule"])
def test_a_section_that_came_later_is_added_whole(section: str) -> None:
    config = compose_config(["gram=ema"])
    assert completed(without(config, section), KNOWN) == config


@pytest.mark.parametrize("section", ["objectives.dino", "objectives.gram", "crops"])
def test_no_option_and_no_section_of_the_root_is_added(section: str) -> None:
    config = without(compose_config(["gram=ema"]), section)
    assert completed(config, KNOWN) == config


def test_the_section_of_another_class_gets_none_of_the_keys() -> None:
    config = compose_config() | {"objectives": {"dino": {"_target_": "guest.Other", "temperature": 1.0}}}
    assert completed(config, KNOWN)["objectives"] == config["objectives"]


def test_a_key_that_nobody_recorded_has_to_be_given() -> None:
    recorded = {key: value for key, value in KNOWN[ROOT].items() if key != "trainer.max_steps"}
    config = completed(without(compose_config(), "trainer.max_steps"), {**KNOWN, ROOT: recorded})
    with pytest.raises(ConfigError, match=r"trainer\.max_steps: has to be given; add trainer\.max_steps="):
        first_check(config)


@pytest.mark.parametrize(
    ("today", "then"),
    [
        (["da3.teacher.variant=base"], {"backend": "native", "variant": "base"}),
        (["teacher@da3.teacher=dinov2", "da3.teacher.layer=3"], {"backend": "dinov2", "layer": 3}),
        (["teacher@da3.teacher=timm", "da3.teacher.variant=resnet18"], {"backend": "timm", "variant": "resnet18"}),
    ],
    ids=lambda value: value["backend"] if isinstance(value, dict) else "",
)
def test_keys_that_have_moved_are_read_where_they_were(today: list[str], then: dict[str, Any], tmp_path: Path) -> None:
    """The teacher's stood in da3 itself, those of all backends at once."""
    config = compose_config(["da3=enabled", *today])
    of_all = {"variant": None, "num_heads": None, "layer": None, "token_part": "full", "normalise_halves": False}
    stored = {**config, "da3": {**{k: v for k, v in config["da3"].items() if k != "teacher"}, **of_all, **then}}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(stored))
    assert read_config(tmp_path / "config.yaml") == config


@pytest.mark.parametrize(
    "group", ["evaluation.metric", "position", "resolution", "schedule._target_", "start", "tracker"]
)
def test_a_config_from_before_there_was_this_choice(group: str, tmp_path: Path) -> None:
    config = compose_config()
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(without(config, group)))
    assert read_config(tmp_path / "config.yaml") == config


@pytest.mark.parametrize(("written", "today"), [(True, "tensorboard"), (False, "none")])
def test_a_config_from_before_there_were_trackers(written: bool, today: str, tmp_path: Path) -> None:
    """TensorBoard was a key of the trainer."""
    config = compose_config()
    old = {**without(config, "tracker"), "trainer": {**config["trainer"], "tensorboard": written}}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(old))
    assert read_config(tmp_path / "config.yaml") == compose_config([f"tracker={today}"])
