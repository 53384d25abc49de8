"""Schedules against the values that the official trainer used."""

import math

import numpy as np
import pytest

from dinoswap.optim.schedules import FreezeBy, Phases, ScheduleSettings, build_schedules, cosine, scaled_lr, steps
from fixtures import LEGACY, load_json
from options import build_settings

FIXTURE = load_json("schedules.json")


@pytest.mark.parametrize("name", ["dinov2_small", "dinov2_nowarmup_longtemp"])
def test_all_schedules_equal_the_official_ones(name: str) -> None:
    case = FIXTURE[name]
    config, epoch = case["config"], case["config"]["OFFICIAL_EPOCH_LENGTH"]
    optim, teacher = config["optim"], config["teacher"]
    settings = build_settings(
        ScheduleSettings,
        "schedule",
        base_lr=optim["base_lr"],
        min_lr=optim["min_lr"],
        warmup=optim["warmup_epochs"] * epoch,
        freeze_last_layer=optim["freeze_last_layer_epochs"] * epoch,
        weight_decay=optim["weight_decay"],
        weight_decay_end=optim["weight_decay_end"],
        momentum=teacher["momentum_teacher"],
        momentum_end=teacher["final_momentum_teacher"],
        teacher_temp_start=teacher["warmup_teacher_temp"],
        teacher_temp=teacher["teacher_temp"],
        teacher_temp_warmup=teacher["warmup_teacher_temp_epochs"] * epoch,
    )
    batch = config["batch_size_per_gpu"] * config["world_size"]
    schedules = build_schedules(settings, total=optim["epochs"] * epoch, batch_size=batch)
    official = ("lr", "last_layer_lr", "weight_decay", "momentum", "teacher_temp")
    for ours in official:
        values = case["wd" if ours == "weight_decay" else ours]
        np.testing.assert_allclose([schedules[ours][i] for i in range(len(values))], values, rtol=1e-15, atol=1e-15)


def test_lr_scaling() -> None:
    for batch, lr in FIXTURE["dinov2_lr_scaling"].items():
        expected = lr if isinstance(lr, float) else lr["lr"]
        assert scaled_lr(0.004, int(batch), "sqrt_1024") == pytest.approx(expected, rel=1e-15)
    assert scaled_lr(0.1, 512, "linear_256") == pytest.approx(0.2)
    assert scaled_lr(0.1, 512, "none") == 0.1


def test_frozen_start_and_past_the_end() -> None:
    schedule = cosine(1.0, 0.1, 6, warmup=2, start=0.5, frozen=1)
    expected = [0.0, 0.5, 1.0, *(0.1 + 0.45 * (1 + np.cos(np.pi * i / 3)) for i in range(3)), 0.1, 0.1]
    np.testing.assert_allclose([schedule[i] for i in range(8)], expected, rtol=1e-15)


def test_lengths_are_steps_or_shares() -> None:
    assert steps(12, 100, "warmup") == 12
    assert steps(0.1, 125_000, "warmup") == 12_500
    assert steps(0, 100, "warmup") == 0
    for bad in (1.5, -1, -0.1):
        with pytest.raises(ValueError, match="warmup"):
            steps(bad, 100, "warmup")


def test_warmup_longer_than_the_run_is_refused() -> None:
    with pytest.raises(ValueError, match="max_steps"):
        build_schedules(build_settings(ScheduleSettings, "schedule", warmup=20), total=10, batch_size=8)


LEGACY_SCHEDULES = load_json("optim_legacy.json", LEGACY)["schedules"]


@pytest.mark.parametrize("name", ["legacy_small_as_parity_dinov2_small", "legacy_nowarmup"])
def test_all_schedules_equal_the_legacy_ones(name: str) -> None:
    case = LEGACY_SCHEDULES[name]
    config = case["config"]
    settings = build_settings(
        ScheduleSettings,
        "schedule",
        base_lr=config["lr"],
        lr_scaling="linear_256",
        min_lr=config["min_lr"],
        warmup=config["warmup_iterations"],
        weight_decay_warmup=config["warmup_iterations"],
        momentum=config["momentum_teacher"],
        teacher_temp_warmup=config["teacher_temp_warmup_iters"],
        teacher_temp_shape="cosine",
    )
    batch = config["batch_size_per_gpu"] * config["world_size"]
    schedules = build_schedules(settings, total=config["total_iterations"], batch_size=batch)
    names = {"lr": "lr", "wd": "weight_decay", "momentum": "momentum", "teacher_temp": "teacher_temp"}
    for legacy, ours in names.items():
        values = [schedules[ours][i] for i in range(len(case[legacy]))]
        np.testing.assert_allclose(values, case[legacy], rtol=1e-15, atol=1e-17)
    halves = [schedules["prototype_lr"][i] / 2 for i in range(len(case["proto_lr"]))]
    np.testing.assert_allclose(halves, case["proto_lr"], rtol=1e-15, atol=1e-17)


@pytest.mark.parametrize("freeze_by", ["zero_lr", "drop_gradients"])
def test_the_last_layer_is_frozen_by_its_lr_or_by_dropping_gradients(freeze_by: FreezeBy) -> None:
    settings = build_settings(ScheduleSettings, "schedule", freeze_last_layer=2, freeze_by=freeze_by, warmup=0)
    schedules = build_schedules(settings, total=4, batch_size=8)
    lr, last, dropped = ([schedules[k][i] for i in range(4)] for k in ("lr", "last_layer_lr", "last_layer_dropped"))
    by_lr = freeze_by == "zero_lr"
    assert last == ([0, 0, *lr[2:]] if by_lr else lr)
    assert dropped == ([0] * 4 if by_lr else [1, 1, 0, 0])


@pytest.mark.parametrize(("warmup", "cosine_steps"), [(0, 0), (3, 0), (0, 4), (2, 5)])
def test_phases_are_those_of_the_formula(warmup: int, cosine_steps: int) -> None:
    phases = Phases(start=0.5, peak=2.0, end=1.0, warmup=warmup, cosine=cosine_steps)
    expected = [0.5 + (2.0 - 0.5) * i / warmup for i in range(warmup)]
    expected += [1.0 + 0.5 * (1 + math.cos(math.pi * i / (cosine_steps - 1))) for i in range(cosine_steps)]
    expected += [1.0] * (10 - len(expected))
    assert [phases.schedule(10, "x")[step] for step in range(10)] == pytest.approx(expected, abs=1e-12)


def test_a_cosine_without_a_length_takes_the_rest_of_the_run() -> None:
    shares = Phases(start=0.0, peak=1.0, end=0.0, warmup=0.2, cosine=None)
    steps_ = Phases(start=0.0, peak=1.0, end=0.0, warmup=2, cosine=8)
    assert (shares.schedule(10, "x").values == steps_.schedule(10, "x").values).all()


def test_phases_longer_than_the_run_are_refused() -> None:
    with pytest.raises(
        ValueError, match=r"local_weight: a warm-up of 6 and a cosine of 5 steps .* shorten local_weight"
    ):
        Phases(start=0.0, peak=1.0, end=0.0, warmup=6, cosine=5).schedule(10, "local_weight")
