"""What the options of the group `schedule` share: the frozen last layer, and what a run ends before."""

import pytest

from options import build_option

OPTIONS = pytest.mark.parametrize("option", ["cosine", "piecewise"])


@OPTIONS
@pytest.mark.parametrize("freeze_by", ["zero_lr", "drop_gradients"])
def test_the_last_layer_is_frozen_by_its_lr_or_by_dropping_gradients(option: str, freeze_by: str) -> None:
    plan = build_option(f"schedule/{option}", freeze_last_layer=2, freeze_by=freeze_by)
    schedules = plan.schedules(4, batch_size=8)
    lr, last, dropped = ([schedules[k][i] for i in range(4)] for k in ("lr", "last_layer_lr", "last_layer_dropped"))
    by_lr = freeze_by == "zero_lr"
    assert last == ([0, 0, *lr[2:]] if by_lr else lr)
    assert dropped == ([0] * 4 if by_lr else [1, 1, 0, 0])


@OPTIONS
def test_schedules_of_what_is_never_scheduled_and_of_the_prototype_bank(option: str) -> None:
    plan = build_option(f"schedule/{option}", lr_scaling="linear_256")
    schedules = plan.schedules(8, batch_size=512)
    assert {schedules["constant_weight_decay"][step] for step in range(9)} == {0.01}
    assert schedules["prototype_lr"][4] == pytest.approx(schedules["lr"][4] / 2, rel=1e-3)


@OPTIONS
def test_a_last_layer_that_stays_frozen_is_told(option: str) -> None:
    plan = build_option(f"schedule/{option}", freeze_last_layer=11)
    assert list(plan.unfinished(11)) == []
    (sentence,) = plan.unfinished(10)
    assert sentence.startswith("schedule.freeze_last_layer=11: is longer than the run of trainer.max_steps=10: ")
