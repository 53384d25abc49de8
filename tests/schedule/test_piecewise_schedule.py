"""schedule=piecewise: the values that the official code had over its recipes, and what it refuses."""

from typing import Any

import numpy as np
import pytest

from dinoswap.config.command_line import compose_config
from dinoswap.config.first_check import first_check
from dinoswap.config.schema import ConfigError
from dinoswap.optim.schedules import Phases
from fixtures import DINOV3, load_json
from options import build_option

RECIPES = ("vit7b16_pretrain", "vit7b16_gram_anchor", "vit7b16_high_res_adapt")
OFFICIAL_NAMES = ("lr", "last_layer_lr", "weight_decay", "momentum", "teacher_temp")


def phases(official: dict[str, Any], epoch: int) -> Phases:
    """A line of an official section, whose lengths are epochs."""
    cosine = official.get("cosine_epochs")
    return Phases(
        **{name: float(official[name]) for name in ("start", "peak", "end")},
        warmup=official["warmup_epochs"] * epoch,
        cosine=None if cosine is None else cosine * epoch,
    )


@pytest.mark.parametrize("name", RECIPES)
def test_all_schedules_equal_the_official_ones(name: str) -> None:
    case = load_json("schedules_dinov3.json", DINOV3)[f"recipe_{name}"]
    config, epoch = case["config"], case["config"]["OFFICIAL_EPOCH_LENGTH"]
    official, batch = config["schedules"], config["batch_size_per_gpu"] * config["world_size"]
    lr = phases(official["lr"], epoch)
    plan = build_option(
        "schedule/piecewise",
        lr=Phases(**{**vars(lr), "peak": lr.peak * 4, "end": lr.end * 4}),  # theirs is that of 64 images
        weight_decay=phases(official["weight_decay"], epoch),
        momentum=phases(official["momentum"], epoch),
        teacher_temp=phases(official["teacher_temp"], epoch),
        freeze_last_layer=official["lr"]["freeze_last_layer_epochs"] * epoch,
    )
    schedules = plan.schedules(case["total"], batch_size=batch)
    for ours in OFFICIAL_NAMES:
        values = [schedules[ours][step] for step in case["steps"]]
        np.testing.assert_allclose(values, case[ours], rtol=1e-12, atol=1e-15)
    unscaled = [schedules["prototype_lr"][step] for step in case["steps"]]
    assert unscaled == pytest.approx([4 * lr.schedule(case["total"], "lr")[step] for step in case["steps"]])


def test_a_value_stays_past_its_phases() -> None:
    plan = build_option("schedule/piecewise", lr=Phases(start=0.5, peak=2.0, end=1.0, warmup=2, cosine=3))
    schedules = plan.schedules(10, batch_size=1024)
    assert [schedules["lr"][step] for step in (0, 1, 2, 3, 4, 5, 9, 99)] == [0.5, 1.25, 2.0, 1.5, 1.0, 1.0, 1.0, 1.0]


def test_the_batch_scales_peak_and_end_and_not_the_start() -> None:
    lr = Phases(start=1.0, peak=2.0, end=3.0, warmup=1, cosine=2)
    schedules = build_option("schedule/piecewise", lr=lr, lr_scaling="linear_256").schedules(4, batch_size=512)
    assert [schedules["lr"][step] for step in range(4)] == [1.0, 4.0, 6.0, 6.0]
    assert [schedules["prototype_lr"][step] for step in range(4)] == [1.0, 2.0, 3.0, 3.0]


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("lr.peak=-1.0", "schedule.lr.peak=-1.0: must be 0 or more"),
        ("weight_decay.end=-0.1", "schedule.weight_decay.end=-0.1: must be 0 or more"),
        ("momentum.start=1.1", "schedule.momentum.start=1.1: an EMA momentum lies between 0 and 1"),
        ("teacher_temp.peak=0.0", "schedule.teacher_temp.peak=0.0: a temperature must be above 0"),
        ("lr.warmup=11", "schedule.lr: a warm-up of 11 and a cosine of 0 steps are longer than the run"),
        ("momentum.cosine=1.5", "schedule.momentum.cosine=1.5: give a whole number of steps"),
        ("teacher_temp.cosine=-1", "schedule.teacher_temp.cosine=-1: must not be negative"),
        ("freeze_last_layer=-2", "schedule.freeze_last_layer=-2: must not be negative"),
        ("lr_scaling=sqrt", "schedule.lr_scaling=sqrt: must be one of sqrt_1024, linear_256, none"),
        ("lr=0.1", "schedule.lr=0.1: is a section, not a value; set one of its keys, schedule.lr."),
    ],
)
def test_refused_with_key_value_and_remedy(assignment: str, message: str) -> None:
    config = compose_config(["recipe=smoke", "schedule=piecewise", f"schedule.{assignment}"])
    with pytest.raises(ConfigError) as refused:
        first_check(config)
    assert str(refused.value).startswith(message)


def test_keys_of_cosine_are_refused_by_name() -> None:
    with pytest.raises(ConfigError, match=r"there is no key or group 'schedule\.base_lr' in schedule=piecewise"):
        compose_config(["schedule=piecewise", "schedule.base_lr=0.1"])


@pytest.mark.parametrize("recipe", ["demo", "vitg14", "vitl16_short"])
def test_a_recipe_says_nothing_to_an_option_that_it_was_not_made_for(recipe: str) -> None:
    first_check(compose_config([f"recipe={recipe}", "preset=legacy", "schedule=piecewise"]))
