"""Runs that are killed, preempted, starved and sabotaged end in the state of one that nothing happened to."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from train_processes import TrainProcess, wait_until

from dinoswap import checkpoint, metrics

STEPS = 30
EVERY = 3  # steps between checkpoints
SETTINGS = [
    "recipe=smoke",
    "model.drop_path=0.3",  # draws random numbers in the step
    f"trainer.max_steps={STEPS}",
    f"trainer.checkpoint_every={EVERY}",
    "trainer.eval_every=10",
    "trainer.tensorboard=false",
    "evaluation.in_loop_images=20",
    "evaluation.images=20",
]
VARIANTS = {
    "fp32": [*SETTINGS, "trainer.precision=fp32"],
    "bf16": [
        *SETTINGS,
        "trainer.precision=bf16",
        "targets@objectives.dino.targets=centering",
        "targets@objectives.ibot.targets=centering",
    ],
}
STAGES = ["tensors written", "state written", "meta written", "folder synced", "renamed"]  # of a checkpoint


class Reference:
    """Runs to the end, once for each precision."""

    def __init__(self, results: Path) -> None:
        self.results = results
        self.folders: dict[str, Path] = {}

    def __getitem__(self, precision: str) -> Path:
        if precision not in self.folders:
            run = TrainProcess(VARIANTS[precision], self.results / precision)
            assert run.wait() == 0, run.output
            self.folders[precision] = run.folder
        return self.folders[precision]


@pytest.fixture(scope="session")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Reference:
    return Reference(tmp_path_factory.mktemp("reference"))


def last_checkpoint(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in (folder / f"checkpoints/step-{STEPS:08d}").iterdir()}


def lines(folder: Path) -> list[dict[str, Any]]:
    """Of metrics.jsonl, without what depends on the clock."""
    return [
        {name: value for name, value in json.loads(line).items() if name != "images_per_second"}
        for line in (folder / "metrics.jsonl").read_text().splitlines()
    ]


def record(folder: Path) -> dict[str, Any]:
    return metrics.load_record(folder / "run.json")


def assert_same_result(folder: Path, reference: Path) -> None:
    assert record(folder)["status"] == "completed"
    assert record(folder)["steps"] == STEPS
    assert last_checkpoint(folder) == last_checkpoint(reference)
    assert lines(folder) == lines(reference)


def finish(overrides: list[str], results: Path) -> TrainProcess:
    """Run to the end."""
    run = TrainProcess(overrides, results)
    assert run.wait() == 0, run.output
    return run


def test_the_reference_has_everything_that_could_differ(reference: Reference) -> None:
    """Else equal results would prove little."""
    steps = [row["step"] for row in lines(reference["fp32"])]
    assert steps == sorted([*range(STEPS + 1), 10, 20, STEPS])
    state = checkpoint.read(reference["bf16"] / f"checkpoints/step-{STEPS:08d}").state
    student, teacher = (state["model"][f"{n}.backbone.blocks.0.attn.qkv.weight"] for n in ("student", "teacher"))
    assert not torch.equal(student, teacher)
    for name in ("dino", "ibot"):
        assert state["model"][f"objectives.{name}.targets.center"].abs().sum() > 0
    moments = state["optimizer"]["backbone.blocks.0.attn.qkv.weight"]
    assert moments["step"] == STEPS
    assert moments["exp_avg_sq"].sum() > 0


@pytest.mark.parametrize(("precision", "workers"), [("fp32", 0), ("fp32", 2), ("bf16", 0), ("bf16", 2)])
def test_killed_at_any_moment(precision: str, workers: int, reference: Reference, tmp_path: Path) -> None:
    overrides = [*VARIANTS[precision], f"data.workers={workers}"]
    draw = random.Random(f"{precision}/{workers}")
    moments = sorted(draw.sample(range(1, STEPS - 8), 3))
    hours = 0.0
    for restarts, step in enumerate(moments):
        run = TrainProcess(overrides, tmp_path)
        run.wait_for_step(step)
        time.sleep(draw.uniform(0, 0.15))
        assert run.signal(signal.SIGKILL) == -signal.SIGKILL, run.output
        after = record(run.folder)
        assert after["restarts"] == restarts
        assert after["cost"]["core_or_gpu_hours"] > hours
        hours = after["cost"]["core_or_gpu_hours"]
        print(f"{precision}, {workers} workers: killed after step {lines(run.folder)[-1]['step']}", *unfinished(run.folder))
    for stage in draw.sample(range(len(STAGES)), 2):
        run = TrainProcess(overrides, tmp_path, kill_at_sync=stage)
        assert run.wait() == -signal.SIGKILL, run.output
        assert bool(unfinished(run.folder)) == (STAGES[stage] != "renamed")
        print(f"{precision}, {workers} workers: killed in a checkpoint: {STAGES[stage]}", *unfinished(run.folder))
    finish(overrides, tmp_path)
    assert record(run.folder)["restarts"] == len(moments) + 2
    assert_same_result(run.folder, reference[precision])
    assert unfinished(run.folder) == []


def unfinished(folder: Path) -> list[str]:
    """Checkpoints that were being written."""
    return [p.name for p in (folder / "checkpoints").glob("*.tmp-*")]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR2])
@pytest.mark.parametrize("workers", [0, 2])
def test_preempted(number: signal.Signals, workers: int, reference: Reference, tmp_path: Path) -> None:
    overrides = [*VARIANTS["fp32"], f"data.workers={workers}", "trainer.checkpoint_every=0"]
    run = TrainProcess(overrides, tmp_path)
    run.wait_for_step(7)
    assert run.signal(number) == 75, run.output
    assert_preempted(run, number.name)
    finish(overrides, tmp_path)
    assert_same_result(run.folder, reference["fp32"])


def assert_preempted(run: TrainProcess, name: str) -> None:
    after, step = record(run.folder), lines(run.folder)[-1]["step"]
    assert (after["status"], after["steps"]) == ("preempted", step)
    assert name in after["error"]
    assert after["throughput"]["images_per_second"] > 0
    saved = checkpoint.newest(run.folder / "checkpoints", pytest.fail)
    assert saved is not None
    assert saved.step == step
    assert "the same command continues this run" in run.output
    assert "Traceback" not in run.output


def test_ctrl_c_in_a_terminal(reference: Reference, tmp_path: Path) -> None:
    """The command itself, and the signal for all its processes, as a terminal sends it."""
