"""schedule=cosine against the values that the official and the legacy trainer used."""

import numpy as np
import pytest

from fixtures import LEGACY, load_json
from options import build_option

OFFICIAL_SCHEDULES = load_json("schedules.json")
LEGACY_SCHEDULES = load_json("optim_legacy.json", LEGACY)["schedules"]


@pytest.mark.parametrize("name", ["dinov2_small", "dinov2_nowarmup_longtemp"])
def test_all_schedules_equal_the_official_ones(name: str) -> None:
    case = OFFICIAL_SCHEDULES[name]
    config, epoch = case["config"], case["config"]["OFFICIAL_EPOCH_LENGTH"]
    optim, teacher = config["optim"], config["teacher"]
    plan = build_option(
        "schedule/cosine",
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
    schedules = plan.schedules(optim["epochs"] * epoch, batch_size=config["batch_size_per_gpu"] * config["world_size"])
    official = ("lr", "last_layer_lr", "weight_decay", "momentum", "teacher_temp")
    for ours in official:
        values = case["wd" if ours == "weight_decay" else ours]
        np.testing.assert_allclose([schedules[ours][i] for i in range(len(values))], values, rtol=1e-15, atol=1e-15)


@pytest.mark.parametrize("name", ["legacy_small_as_parity_dinov2_small", "legacy_nowarmup"])
def test_all_schedules_equal_the_legacy_ones(name: str) -> None:
    case = LEGACY_SCHEDULES[name]
    config = case["config"]
    plan = build_option(
        "schedule/cosine",
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
    schedules = plan.schedules(config["total_iterations"], batch_size=batch)
    names = {"lr": "lr", "wd": "weight_decay", "momentum": "momentum", "teacher_temp": "teacher_temp"}
    for legacy, ours in names.items():
        values = [schedules[ours][i] for i in range(len(case[legacy]))]
        np.testing.assert_allclose(values, case[legacy], rtol=1e-15, atol=1e-17)
    halves = [schedules["prototype_lr"][i] / 2 for i in range(len(case["proto_lr"]))]
    np.testing.assert_allclose(halves, case["proto_lr"], rtol=1e-15, atol=1e-17)


@pytest.mark.parametrize("name", ["warmup", "weight_decay_warmup"])
def test_what_a_cosine_follows_does_not_end_after_the_run(name: str) -> None:
    plan = build_option("schedule/cosine", **{name: 11})
    for refuse in (plan.check, lambda total: plan.schedules(total, batch_size=8)):
        with pytest.raises(ValueError, match=rf"schedule\.{name}=11: is longer than the run of trainer\.max_steps=10"):
            refuse(10)
    plan.check(11)
