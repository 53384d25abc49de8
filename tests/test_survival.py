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

from dinoswap.run import checkpoint, metrics
from small_models import CENTERING, load_tool
from train_processes import TrainProcess, folder_of, last_step, lines, session, tensor_files, wait_until

pytestmark = pytest.mark.slow

STEPS = 30
EVERY = 3  # steps between checkpoints
SETTINGS = [
    "recipe=smoke",
    "model.drop_path=0.3",  # draws random numbers in the step
    f"trainer.max_steps={STEPS}",
    f"trainer.checkpoint_every={EVERY}",
    "trainer.eval_every=10",
    "tracker=none",
    "evaluation.in_loop_images=20",
    "evaluation.images=20",
]
SNAPSHOT = ["gram=snapshot", "objectives.gram.refresh_every=4"]  # a frozen network among the state
VARIANTS = {
    "fp32": [*SETTINGS, "trainer.precision=fp32"],
    "bf16": [*SETTINGS, "trainer.precision=bf16", *CENTERING, *SNAPSHOT],
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


def last_checkpoint(folder: Path) -> tuple[bytes, dict[str, bytes]]:
    path = folder / f"checkpoints/step-{STEPS:08d}"
    return (path / "state.json").read_bytes(), tensor_files(path)


def record(folder: Path) -> dict[str, Any]:
    return metrics.load_record(folder / "run.json")


def assert_same_result(folder: Path, reference: Path) -> None:
    assert record(folder)["status"] == "completed"
    assert record(folder)["steps"] == STEPS
    assert record(folder)["notes"] == []
    assert record(folder)["throughput"]["images_per_second"] > 0
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


@pytest.mark.parametrize(("precision", "workers"), [("fp32", 0), ("bf16", 2)])
def test_killed_at_any_moment(precision: str, workers: int, reference: Reference, tmp_path: Path) -> None:
    """While it trains, while a checkpoint is written in the background, while it starts."""
    overrides = [*VARIANTS[precision], f"data.workers={workers}"]
    draw = random.Random(f"{precision}/{workers}")
    where, hours = [], 0.0
    for restarts, first in enumerate((1, 8, 15)):
        run = TrainProcess(overrides, tmp_path)
        run.wait_for_step(max(first + draw.randrange(5), last_step(run.folder) + 1))
        time.sleep(draw.uniform(0, 0.05))
        assert run.signal(signal.SIGKILL) == -signal.SIGKILL, run.output
        where.append(f"after step {last_step(run.folder)}{', in a checkpoint' * bool(unfinished(run.folder))}")
        after = record(run.folder)
        assert (after["status"], after["restarts"]) == ("running", restarts)
        assert after["cost"]["core_or_gpu_hours"] > hours
        hours = after["cost"]["core_or_gpu_hours"]
    for stage in draw.sample(range(len(STAGES)), 2):
        run = TrainProcess(overrides, tmp_path, kill_at_sync=stage)
        assert run.wait() == -signal.SIGKILL, run.output
        assert bool(unfinished(run.folder)) == (STAGES[stage] != "renamed")
        where.append(f"in a checkpoint: {STAGES[stage]}")
    run, delay = TrainProcess(overrides, tmp_path), draw.uniform(0, 0.5)
    time.sleep(delay)
    assert run.signal(signal.SIGKILL) == -signal.SIGKILL, run.output
    where.append(f"{delay:.2f} s after the start")
    finish(overrides, tmp_path)
    assert record(run.folder)["restarts"] in (5, 6)  # the last kill may have come before it was counted
    assert_same_result(run.folder, reference[precision])
    assert unfinished(run.folder) == []
    print(f"{precision}, {workers} workers, killed: {'; '.join(where)}")


def unfinished(folder: Path) -> list[str]:
    """Checkpoints that were being written."""
    return [p.name for p in (folder / "checkpoints").glob("*.tmp-*")]


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR2])
def test_preempted(number: signal.Signals, workers: int, reference: Reference, tmp_path: Path) -> None:
    overrides = [*VARIANTS["fp32"], f"data.workers={workers}", "trainer.checkpoint_every=0"]
    run = TrainProcess(overrides, tmp_path)
    run.wait_for_step(7)
    assert run.signal(number) == 75, run.output
    assert_preempted(run.folder, number.name, run.output)
    finish(overrides, tmp_path)
    assert_same_result(run.folder, reference["fp32"])


def test_ctrl_c_in_a_terminal(reference: Reference, tmp_path: Path) -> None:
    """The command itself; a terminal sends the signal to all of its processes."""
    overrides = [*VARIANTS["bf16"], "data.workers=2", "trainer.checkpoint_every=0"]
    command = [sys.executable, "-m", "dinoswap.train", *overrides, f"results_dir={tmp_path}"]
    folder, output = folder_of(overrides, tmp_path), tmp_path / "output.txt"
    with output.open("w") as file:
        process = subprocess.Popen(command, stdout=file, stderr=file, start_new_session=True)
        wait_until(lambda: last_step(folder) >= 7 or process.poll() is not None, "it does not reach step 7", 120)
        os.killpg(process.pid, signal.SIGINT)
        assert process.wait(60) == 75, output.read_text()
    wait_until(lambda: not session(process.pid), "processes are left")
    assert_preempted(folder, "SIGINT", output.read_text())
    finish(overrides, tmp_path)
    assert_same_result(folder, reference["bf16"])


def assert_preempted(folder: Path, name: str, output: str) -> None:
    after, step = record(folder), lines(folder)[-1]["step"]
    assert (after["status"], after["steps"]) == ("preempted", step)
    assert name in after["error"]
    assert after["throughput"]["images_per_second"] > 0
    saved = checkpoint.newest(folder / "checkpoints", pytest.fail)
    assert saved is not None
    assert saved.step == step
    assert "the same command continues this run" in output
    assert "Traceback" not in output


def test_a_run_that_diverges_stops_and_keeps_what_is_needed(tmp_path: Path) -> None:
    """The first step has a learning rate of 0, the second ruins the weights, from the third on nothing is finite."""
    overrides = [*SETTINGS, "schedule.base_lr=1e30", "trainer.max_nonfinite_steps=4", "trainer.checkpoint_every=1"]
    run = TrainProcess(overrides, tmp_path)
    assert run.wait() == 1, run.output
    assert record(run.folder)["status"] == "diverged"
    assert record(run.folder)["steps"] == 6
    assert "4 such steps in a row" in record(run.folder)["error"]
    assert "schedule.base_lr" in run.output
    assert [row.get("nonfinite") for row in lines(run.folder)][1:] == [0, 0, 1, 1, 1, 1]
    kept = [p.name for p in (run.folder / "nonfinite").iterdir()]
    assert kept == ["step-00000003"]
    saved = checkpoint.newest(run.folder / "checkpoints", pytest.fail)
    assert saved is not None
    assert all(weight.isfinite().all() for weight in saved.state["model"].values())
    replayed = load_tool("replay").replay(run.folder / "nonfinite" / kept[0])
    assert (replayed.step, replayed.logs["nonfinite"]) == (3, 1)
    assert replayed.origin.startswith("output of ")


def test_a_checkpoint_of_another_config_is_refused(reference: Reference, tmp_path: Path) -> None:
    overrides = [*VARIANTS["fp32"], "schedule.base_lr=0.001"]
    checkpoints = folder_of(overrides, tmp_path) / "checkpoints"
    shutil.copytree(reference["fp32"] / "checkpoints", checkpoints)
    run = TrainProcess(overrides, tmp_path)
    assert run.wait() == 1, run.output
    assert "schedule.base_lr: (default) -> 0.001" in run.output
    assert "Traceback" not in run.output
    assert record(run.folder)["status"] == "failed"
    assert contents(checkpoints) == contents(reference["fp32"] / "checkpoints")


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_a_truncated_checkpoint_is_reported_and_the_one_before_used(reference: Reference, tmp_path: Path) -> None:
    folder = folder_of(VARIANTS["fp32"], tmp_path)
    shutil.copytree(reference["fp32"], folder)
    (folder / "run.json").unlink()  # else it is complete
    newest = folder / f"checkpoints/step-{STEPS:08d}"
    os.truncate(next(newest.glob("*.safetensors")), 1000)
    run = finish(VARIANTS["fp32"], tmp_path)
    assert f"{newest} is damaged" in run.output
    assert f"resumed after step {STEPS - EVERY} " in run.output
    assert_same_result(folder, reference["fp32"])


def test_lost_lines_of_metrics_are_told(reference: Reference, tmp_path: Path) -> None:
    folder = folder_of(VARIANTS["fp32"], tmp_path)
    shutil.copytree(reference["fp32"], folder)
    (folder / "run.json").unlink()
    *rows, _ = (folder / "metrics.jsonl").read_text().splitlines(keepends=True)  # all but the final evaluation
    (folder / "metrics.jsonl").write_text("".join(rows[:5] + rows[6:]))
    run = finish(VARIANTS["fp32"], tmp_path)
    note = f"metrics.jsonl had {len(rows) - 1} of the {len(rows)} lines logged up to step {STEPS} when the run resumed"
    assert note in run.output
    assert [text.startswith(note) for text in record(folder)["notes"]] == [True]


@pytest.mark.parametrize("logged", [False, True])
def test_killed_in_the_final_evaluation(logged: bool, reference: Reference, tmp_path: Path) -> None:
    """After the last checkpoint; `logged`: between its line in metrics.jsonl and the end."""
    folder = folder_of(VARIANTS["fp32"], tmp_path)
    shutil.copytree(reference["fp32"], folder)
    before = record(folder) | {"status": "running"}
    (folder / "run.json").write_text(json.dumps(before))
    if not logged:
        text = (folder / "metrics.jsonl").read_text()
        (folder / "metrics.jsonl").write_text("".join(text.splitlines(keepends=True)[:-1]))
    finish(VARIANTS["fp32"], tmp_path)
    assert_same_result(folder, reference["fp32"])
    assert record(folder)["throughput"] == before["throughput"]
    assert record(folder)["restarts"] == 1


def test_a_completed_run_is_left_alone(reference: Reference) -> None:
    def stamps() -> dict[str, int]:  # Hydra writes its own folder anew, with the same contents
        return {str(p): p.stat().st_mtime_ns for p in folder.rglob("*") if ".hydra" not in p.parts}

    folder = reference["fp32"]
    before = contents(folder), stamps()
    run = finish(VARIANTS["fp32"], reference.results / "fp32")
    assert "complete" in run.output
    assert (contents(folder), stamps()) == before


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system with room for two checkpoints, at `runs` of the results."""
    disk = tmp_path / "runs"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2300k", "tmpfs", str(disk)]
    if os.geteuid() != 0 or subprocess.run(mount, check=False).returncode != 0:
        (pytest.fail if "CI" in os.environ else pytest.skip)("mounting a small file system needs root")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def enlarge(disk: Path) -> None:
    subprocess.run(["mount", "-o", "remount,size=20m", str(disk)], check=True)


@pytest.mark.parametrize("tracker", ["none", "tensorboard"])
def test_a_full_disk(tracker: str, small_disk: Path, reference: Reference, tmp_path: Path) -> None:
    overrides = [*VARIANTS["fp32"], f"tracker={tracker}"]
    run = TrainProcess(overrides, tmp_path)
    assert run.wait() == 1, run.output
    assert "No space left" in run.output
    assert "Traceback" not in run.output
    assert record(run.folder)["status"] == "failed"
    saved = checkpoint.newest(run.folder / "checkpoints", pytest.fail)
    assert saved is not None
    assert f"step-{saved.step:08d} is the last complete checkpoint" in run.output
    enlarge(small_disk)
    finish(overrides, tmp_path)
    assert_same_result(run.folder, reference["fp32"])


@pytest.mark.parametrize("every", [EVERY, 0])
def test_a_disk_full_to_the_last_byte(every: int, small_disk: Path, reference: Reference, tmp_path: Path) -> None:
    """Filled by somebody else while the run trains: the next write fails, be it of a checkpoint or a metrics line."""
    overrides = [*VARIANTS["fp32"], f"trainer.checkpoint_every={every}"]
    run = TrainProcess(overrides, tmp_path)
    run.wait_for_step(4)
    with pytest.raises(OSError, match="No space left"), (small_disk / "filler").open("wb", buffering=0) as filler:
        while True:
            filler.write(bytes(4096))
    assert run.wait() == 1, run.output
    last_words = run.output.splitlines()[-1]
    assert "No space left" in last_words
    assert str(run.folder) in last_words
    assert "Traceback" not in run.output
    (small_disk / "filler").unlink()
    checkpoint.newest(run.folder / "checkpoints", pytest.fail)
    enlarge(small_disk)
    finish(overrides, tmp_path)
    assert_same_result(run.folder, reference["fp32"])


BROKEN = ["05.png", "12.png", "19.png"]


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """24 images, of which 3 are broken."""
    folder = tmp_path / "images"
    folder.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (24, 36, 36, 3), dtype=np.uint8)
    for number, image in enumerate(pixels):
        Image.fromarray(image).save(folder / f"{number:02d}.png")
    for name in BROKEN:
        os.truncate(folder / name, 100)
    return folder


def corrupt_overrides(images: Path, fraction: float) -> list[str]:
    return [*SETTINGS, "trainer.max_steps=12", "data=image_folder", f"data.path={images}",
            f"data.max_corrupt_fraction={fraction}"]  # fmt: skip


def test_too_many_corrupt_images_end_the_run(images: Path, tmp_path: Path) -> None:
    run = TrainProcess(corrupt_overrides(images, 2 / 24), tmp_path)
    assert run.wait() == 1, run.output
    assert record(run.folder)["status"] == "failed"
    assert "Traceback" not in run.output
    for text in (run.output, record(run.folder)["error"], (run.folder / "corrupt.txt").read_text()):
        assert [name for name in BROKEN if name in text] == BROKEN


def test_a_few_corrupt_images_are_listed_once(images: Path, tmp_path: Path) -> None:
    overrides = [*corrupt_overrides(images, 3 / 24), "data.workers=2", "trainer.checkpoint_every=1"]
    run = TrainProcess(overrides, tmp_path)
    run.wait_for_step(4)  # more than an epoch: all have been met
    run.signal(signal.SIGKILL)
    finish(overrides, tmp_path)
    listed = [line.split("\t") for line in (run.folder / "corrupt.txt").read_text().splitlines()]
    assert sorted(Path(name).name for name, _ in listed) == BROKEN
    assert all(reason for _, reason in listed)


def test_what_an_evaluation_cannot_decode_is_listed_too(images: Path, tmp_path: Path) -> None:
    """Training reads two images, the evaluation all of them."""
    few = ["trainer.max_steps=1", "data.batch_size=2", "evaluation.images=24"]
    run = finish([*corrupt_overrides(images, 3 / 24), *few], tmp_path)
    listed = [line.split("\t") for line in (run.folder / "corrupt.txt").read_text().splitlines()]
    assert sorted(Path(name).name for name, _ in listed) == BROKEN
