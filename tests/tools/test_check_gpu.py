"""tools/check_gpu.py, tried on the CPU: each check can fail, says what it found, and costs none of the others."""

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fixtures import OFFICIAL
from gpu_checks import fixtures, ranks, resume, speed, steps, worker
from gpu_checks.numbers import Check, Numbers, largest_difference
from gpu_checks.page import page
from parity.rows import Row
from small_models import load_tool

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)


@pytest.fixture(autouse=True)
def _forked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers that have imported torch already, and know what a test has replaced."""
    monkeypatch.setattr(worker, "START", "fork")


# --- the command ------------------------------------------------------------------------------------------------------


def replaced(check: Check, run: Callable[[str, torch.device], Numbers]) -> Check:
    return replace(check, run=run, subjects=lambda _: ["official"])


def test_a_check_that_fails_stops_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool = load_tool("check_gpu")

    def broken(*_: object) -> Numbers:
        raise RuntimeError("no kernel image")

    def crashed(*_: object) -> Numbers:
        os._exit(7)

    stand_ins = {"losses": broken, "ranks": crashed, "resume": lambda *_: survivor(plain=False)}
    for name, run in stand_ins.items():
        monkeypatch.setitem(tool.CHECKS, name, replaced(tool.CHECKS[name], run))
    chosen = ["--checks", "losses", "ranks", "waits", "resume", "--presets", "official"]
    assert tool.main(["-o", str(tmp_path), "--device", "cpu", *chosen]) == 1
    losses, rank, waits, resumed = json.loads((tmp_path / "check_gpu.json").read_text())["rows"]
    assert losses["failed"] == "RuntimeError: no kernel image"
    assert rank["failed"] == "its process ended, exit status 7"
    assert "only a GPU" in waits["skipped"]
    assert not resumed["failed"]
    text = (tmp_path / "README.md").read_text()
    assert "1 checks passed, 2 failed, 1 were skipped" in text
    assert "No GPU was at hand" in text
    assert "| losses | official | FAILED | RuntimeError: no kernel image |" in text
    assert "README.md may say: After `kill -9`" in text


def test_what_was_found_is_written_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool = load_tool("check_gpu")

    def interrupted(*_: object) -> Numbers:
        raise KeyboardInterrupt

    monkeypatch.setattr(tool, "Worker", InThisProcess)
    monkeypatch.setitem(tool.CHECKS, "losses", replaced(tool.CHECKS["losses"], interrupted))
    with pytest.raises(KeyboardInterrupt):
        tool.main(["-o", str(tmp_path), "--device", "cpu", "--checks", "waits", "losses", "--presets", "official"])
    (waits,) = json.loads((tmp_path / "check_gpu.json").read_text())["rows"]
    assert waits["check"] == "waits"


class InThisProcess(worker.Worker):
    def __call__(self, seconds: float, *arguments: Any) -> Numbers:
        return self.work(*arguments)


def test_a_check_that_hangs_ends_with_all_that_it_started(tmp_path: Path) -> None:
    """And the next one has a process of its own."""

    def work(what: str) -> Numbers:
        if what == "hang":
            started = subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(600)"])
            (tmp_path / "started").write_text(str(started.pid))
            started.wait()
        return {"pid": os.getpid()}

    with worker.Worker(work) as run:
        first = run(60, "answer")
        assert run(60, "answer") == first != {"pid": os.getpid()}
        assert run(1, "hang") == {"failed": "not done in 1 s"}
        assert run(60, "answer") != first
    started = Path("/proc") / (tmp_path / "started").read_text() / "cmdline"
    for _ in range(100):
        if not started.exists() or not started.read_bytes():  # gone, or about to be
            return
        time.sleep(0.05)
    raise AssertionError("what the check had started is still there")


# --- the checks -------------------------------------------------------------------------------------------------------


def test_a_changed_fixture_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arrays = dict(np.load(OFFICIAL / "losses_dinov2.npz", allow_pickle=False))
    (tmp_path / "official").mkdir()
    monkeypatch.setenv(fixtures.FOLDER, str(tmp_path))
    assert "no fixture" in fixtures.parity("official", CPU)["skipped"]
    try:
        for change in (0.0, 1e-4):
            arrays["koleo/loss"] = arrays["koleo/loss"] + np.float32(change)
            np.savez(tmp_path / "official" / "losses_dinov2.npz", **arrays)
            found = fixtures.parity("official", CPU)
            assert found["failed"].startswith("losses_dinov2:koleo/loss is off by") == bool(change)
            assert found["beyond the CPU's tolerance"] == bool(change)
    finally:
        torch.use_deterministic_algorithms(False)
    assert found["quantities"] > 20


def test_a_gpu_may_be_beyond_the_tolerance_of_a_cpu_and_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    errors = {"within": (1e-6, 2e-6), "beyond": (1e-5, 2e-6), "far beyond": (3e-5, 2e-6), "not finite": (np.nan, 1.0)}
    errors |= {"nearly equal": (1e-7, 0.0), "another number": (1.0, 0.0)}
    rows = [Row(name, error, error, error, tolerance) for name, (error, tolerance) in errors.items()]
    monkeypatch.setattr(fixtures, "rows_of", lambda *_, **__: rows)
    found = fixtures.parity("official", GPU)
    assert found["beyond the CPU's tolerance"] == len(found["larger"]) == 5
    assert {line.split(" is off by")[0] for line in found["failed"].split("; ")} == {
        "far beyond", "not finite", "another number",
    }  # fmt: skip


def test_losses_are_compared_in_each_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(steps, "TOLERANCES", {"fp32": 0.0, "bf16": 0.0})
    found = steps.losses("official", CPU)
    assert found["fp32"] == found["of the CPU"]  # it is the same device
    assert 0 < found["difference in bf16"] < 0.02
    assert found["failed"].startswith("losses in bf16 differ by")


def test_a_value_that_is_not_finite_holds_no_tolerance() -> None:
    assert not largest_difference([1.0, float("nan")], [1.0, 1.0]) <= 1e9


def test_steps_in_which_nothing_is_compiled_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dinoswap.build.set_compiled", lambda *_: None)
    found = steps.compiled_steps("true", CPU)
    assert found["failed"] == "nothing was compiled; "
    assert found["difference"] == 0
    assert "refused on a CPU" in steps.compiled_steps("cudagraphs", CPU)["skipped"]


def test_ranks_that_compute_something_else_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    alone = steps.Steps(CPU, *ranks.OVERRIDES, batches=ranks.STEPS)
    found: dict[str, Any] = {"losses": alone.losses(ranks.STEPS), "weights": ranks.whole_weights(alone.trainer)}

    def launch(backend: str, spread: str, device: torch.device, folder: Path) -> None:
        torch.save(found, folder / "0.pt")

    monkeypatch.setattr(ranks, "launch", launch)
    assert not ranks.ranks("gloo ddp", CPU)["failed"]
    found["losses"][2] *= 1.001
    found["weights"]["teacher.backbone.cls_token"] += 1e-3
    failed = ranks.ranks("gloo fsdp2", CPU)["failed"]
    assert failed.startswith("losses differ by 1.0e-03")
    assert "weights differ by 1.0e-03" in failed
    assert ranks.ranks("nccl ddp", CPU)["skipped"] == "NCCL is for GPUs"


def test_what_gloo_lacks_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)

    def unknown(*_: object) -> None:
        raise RuntimeError("unsupported device\nstack")

    try:
        assert not ranks.lacks("fsdp2", CPU)
        monkeypatch.setattr(torch.distributed, "reduce_scatter_tensor", unknown)
        assert not ranks.lacks("ddp", CPU)
        assert ranks.lacks("fsdp2", CPU).endswith("no reduce_scatter_tensor on this device: unsupported device")
    finally:
        torch.distributed.destroy_process_group()


def survivor(*, plain: bool, deterministic: bool = True, failed: str = "") -> Numbers:
    """A row of a killed run."""
    numbers: Numbers = {"of": "official", "check": "resume", "failed": failed, "seconds": 1.0}
    for mode, same in ((resume.PLAIN, plain), (resume.DETERMINISTIC, deterministic)):
        numbers |= {f"losses, {mode}": 0.0 if same else 2e-6, f"same bits, {mode}": same}
    return numbers


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([], ""),
        ([survivor(plain=True)] * 2, "ends in the same bits."),
        (
            [survivor(plain=True), survivor(plain=False)],
            "within 2e-06 .* the same bits with .*CUBLAS_WORKSPACE_CONFIG=",
        ),
        ([survivor(plain=False, deterministic=False)], "with deterministic algorithms neither"),
        ([survivor(plain=True), {"of": "legacy", "failed": "not done in 90 s"}], "Nothing can be promised .* legacy"),
    ],
)
def test_what_is_promised_follows_from_what_was_found(rows: list[Numbers], said: str) -> None:
    promise = resume.promise(rows)
    assert bool(promise) == bool(said)
    assert re.search(said, promise)


def test_the_largest_batch_is_found_by_doubling(monkeypatch: pytest.MonkeyPatch) -> None:
    for memory, found in ((100, 96), (90, 64), (8, 8)):
        measured = speed.largest(lambda images, most=memory: {"images": images} if images <= most else None)
        assert measured == {"images": found, "limit": "memory"}
    with pytest.raises(RuntimeError, match="not even 8 images"):
        speed.largest(lambda _: None)
    monkeypatch.setattr(speed, "SECONDS", -1.0)
    assert speed.largest(lambda images: {"images": images}) == {"images": 8, "limit": "time"}


def test_speed_stands_beside_its_plan() -> None:
    row = {"check": "speed", "of": speed.ON_CPU, "failed": "", "seconds": 1.0, **speed.speed(speed.ON_CPU, CPU)}
    assert row["images"] == 8
    assert row["images per second"] == pytest.approx(8 / row["seconds per step"])
    row |= speed.compared_with_plan(row, speed.in_table("NVIDIA H100 80GB HBM3", 85 * 10**9))
    ratio = row["planned images per second"] / row["images per second"]
    assert row["share of the peak"] == pytest.approx(0.18 / ratio, rel=1e-3)  # a plan takes 18 % on an H100
    text = page({"command": "", "device": "cuda:0", "machine": {**MACHINE, "gpu": "NVIDIA H100"}, "rows": [row]})
    assert f"({ratio:.2f})" in text
    assert "No GPU" not in text


MACHINE = {"cpu": "AMD EPYC", "instruction_set": "AVX512", "threads": 1, "torch": "2.14"}


def test_gpus_are_those_of_the_plans() -> None:
    names = {
        ("NVIDIA A100-SXM4-40GB", 42 * 10**9): "a100-40",
        ("NVIDIA A100-SXM4-80GB", 85 * 10**9): "a100",
        ("NVIDIA H200", 150 * 10**9): "h200",
        ("NVIDIA GeForce RTX 4090", 25 * 10**9): None,
    }
    assert {each: speed.in_table(*each) for each in names} == names
