"""What a run says before its first step: each where it is so, and nothing where all is well."""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from dinoswap.config.command_line import compose_config
from dinoswap.config.schema import construct_option
from dinoswap.run.notices import notices

SMOKE = compose_config(["recipe=smoke"])
LABELLED, BARE = SimpleNamespace(labels=np.zeros(3)), SimpleNamespace(labels=None)


def said(config: dict[str, Any], train: Any = LABELLED, test: Any = LABELLED, ranks: int = 1) -> Sequence[str]:
    return list(notices(config, train=cast(Any, train), test=cast(Any, test), masked_crops=2, ranks=ranks))


def with_values(**sections: dict[str, Any]) -> dict[str, Any]:
    return {**SMOKE, **{name: SMOKE[name] | values for name, values in sections.items()}}


def test_nothing_is_said_where_all_is_well() -> None:
    assert said(SMOKE) == []
    assert said(with_values(schedule={"freeze_last_layer": 10, "teacher_temp_warmup": 1.0 - 1e-9})) == []
    assert said({**SMOKE, "objective_metric": "eval/rankme"}, BARE, None) == []
    assert said({**SMOKE, "distributed": {"_target_": "x"}}, ranks=2) == []


@pytest.mark.parametrize("name", ["freeze_last_layer", "teacher_temp_warmup"])
def test_a_schedule_that_ends_after_the_run(name: str) -> None:
    (sentence,) = said(with_values(schedule={name: 11}))
    assert sentence.startswith(f"schedule.{name}=11: is longer than the run of trainer.max_steps=10: the ")


@pytest.mark.parametrize(
    ("train", "test", "why"),
    [
        (BARE, LABELLED, "the training images have no labels"),
        (LABELLED, None, "there are no test images"),
        (LABELLED, BARE, "the test images have no labels"),
    ],
)
def test_an_accuracy_without_labels(train: Any, test: Any, why: str) -> None:
    (sentence,) = said(SMOKE, train, test)
    assert sentence.startswith(f"objective_metric=eval/knn_top1: will not be measured: {why}")


def test_ddp_of_one_process() -> None:
    (sentence,) = said({**SMOKE, "distributed": {"_target_": "x"}})
    assert sentence.startswith("distributed: one process was started") and "torchrun" in sentence


@pytest.mark.parametrize(("size", "expected"), [(16, 0.55), (24, 0.21)])
def test_masks_that_are_mostly_empty(size: int, expected: float) -> None:
    """Of 2 x 2 patches 55 % of the crops that are to be masked are not, of 3 x 3 21 %; counted here crop by crop over
    many more steps than the notice draws."""
    config = with_values(crops={"global_size": size})
    (sentence,) = said(config)
    masks = construct_option(SMOKE["masking"], "masking").sampler(
        crop_size=(size, size), patch_size=8, crops=2, images=8, seed=1
    )
    hidden = [bool(crop.any()) for step in range(200) for image in masks(step) for crop in image]
    assert 1 - 2 * sum(hidden) / len(hidden) == pytest.approx(expected, abs=0.03)
    assert float(sentence.split("%")[0].split()[-1]) / 100 == pytest.approx(expected, abs=0.06)
    assert f"only {size // 8} x {size // 8} patches" in sentence
