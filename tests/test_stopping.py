"""A signal in an evaluation: the run is left within a batch, and the same command ends like a run left alone. A run
whose folder another process has taken over saves nothing. And no step waits for a checkpoint, but the end does."""

import errno
import fcntl
import json
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from torch import Tensor

from dinoswap.config.configuration import plain
from dinoswap.data.images import Pixels
from dinoswap.files.lock import Held, exclusive
from dinoswap.metric import logistic_regression
from dinoswap.run import checkpoint
from dinoswap.run.assemble import build_run
from dinoswap.run.loop import Preempted, Run
from dinoswap.run.metrics import RunRecord, load_record
from dinoswap.tracker.base import Status
from dinoswap.values import Batch
from small_models import composed
from train_processes import lines, tensor_files

SETTINGS = [
    *("recipe=smoke", "trainer.precision=fp32", "tracker=none", "trainer.device=cpu", "data.workers=0"),
    *("trainer.max_steps=4", "trainer.eval_every=2", "trainer.checkpoint_every=0", "evaluation.batch_size=4"),
    *("evaluation.images=24", "evaluation.in_loop_images=24", "evaluation.linear_probe=true"),
]


def run(folder: Path, *overrides: str) -> Run:
    config = plain(composed([*SETTINGS, *overrides]))
    return build_run(config, folder, lambda: RunRecord.start(folder / "run.json", **RECORD))


RECORD = {"run_id": "", "study": "", "seed": 0, "choices": {}, "overrides": []}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed")
    run(folder).train()
    return folder


def counted(work: Callable[[int], Pixels], loads: list[int], signal_at: int) -> Callable[[int], Pixels]:
    """`work`, in whose `signal_at`th call this process gets a signal."""

    def load(row: int) -> Pixels:
        loads.append(row)
        if len(loads) == signal_at:
            os.kill(os.getpid(), signal.SIGUSR1)
        return work(row)

    return load


@pytest.mark.parametrize(("evaluation", "step"), [("before the first step", 0), ("after step 2", 2), ("final", 4)])
def test_an_evaluation_is_left_at_the_next_batch(evaluation: str, step: int, undisturbed: Path, tmp_path: Path) -> None:
    stopped = run(tmp_path)
    test, loads = stopped.evaluator.test, list[int]()
    assert test is not None
    with pytest.MonkeyPatch.context() as patch:
        whole = stopped.evaluator.final if evaluation == "final" else stopped.evaluator.in_loop

        def begun(*args: object) -> object:
            if stopped.steps == step:
                patch.setattr(stopped.evaluator, "_quick", stopped.evaluator._split(24))  # decodes again
                patch.setattr(test, "load", counted(test.load, loads, signal_at=6))
            return whole(*args)  # type: ignore[arg-type]

        patch.setattr(stopped.evaluator, whole.__name__, begun)
        with pytest.raises(Preempted, match=f"SIGUSR1: saved after step {step}"):
            stopped.train()
    assert len(loads) == 8  # the second batch of 4 to its end
    assert load_record(tmp_path / "run.json")["status"] == "preempted"
    run(tmp_path).train()
    assert load_record(tmp_path / "run.json")["status"] == "completed"
    assert lines(tmp_path) == lines(undisturbed)


def write_slowly(patch: pytest.MonkeyPatch, before: Callable[[], object] = lambda: time.sleep(0.5)) -> None:
    """Each file of a checkpoint, after `before()`."""
    write_new = checkpoint.write_new
    patch.setattr(checkpoint, "write_new", lambda *arguments: (before(), write_new(*arguments))[1])


def test_no_step_waits_for_a_checkpoint(undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """That of step 2 is written after step 4, and holds step 2 all the same: the run goes on from it like one that was
    left alone. The last one is complete before the run is."""
    training = run(tmp_path, "trainer.checkpoint_every=2")
    saved = [tmp_path / f"checkpoints/step-{step:08d}" for step in (2, 4)]
    step, write_record, may_write, completed = training.trainer.step, training.write_record, threading.Event(), []

    def counted(number: int, batches: list[Batch]) -> dict[str, Tensor]:
        logs = step(number, batches)
        if number == 3:
            assert not saved[0].exists()
            may_write.set()
        return logs

    def noted(status: Status = "running", error: str | None = None) -> None:
        if status == "completed":
            completed.extend(path.exists() for path in saved)
        write_record(status, error)

    monkeypatch.setattr(training.trainer, "step", counted)
    monkeypatch.setattr(training, "write_record", noted)
    with monkeypatch.context() as patch:
        write_slowly(patch, lambda: may_write.wait(60) and time.sleep(0.2))
        training.train()
    assert completed == [True, True]
    assert lines(tmp_path) == lines(undisturbed)
    shutil.rmtree(saved[1])
    run(tmp_path).train()
    assert tensor_files(saved[1]) == tensor_files(undisturbed / "checkpoints/step-00000004")
    assert lines(tmp_path) == lines(undisturbed)


def test_a_long_fit_is_broken_off(undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stopped = run(tmp_path)

    def fit(*_: object) -> dict[str, float]:
        os.kill(os.getpid(), signal.SIGTERM)
        pytest.fail("it goes on")

    path, saved = tmp_path / "run.json", tmp_path / "checkpoints/step-00000004"
    told = list[tuple[str, bool]]()
    launchers = signal.signal(signal.SIGTERM, lambda *_: told.append((load_record(path)["status"], saved.exists())))
    with monkeypatch.context() as patch:
        patch.setattr(logistic_regression, "linear_probe", fit)
        write_slowly(patch)
        with pytest.raises(Preempted, match="SIGTERM: saved after step 4"):
            stopped.train()
    signal.signal(signal.SIGTERM, launchers)
    assert told == [("preempted", True)]  # the launcher's handler, once all is saved
    record = load_record(path)
    path.write_text(json.dumps(record | {"cost": record["cost"] | {"core_or_gpu_hours": 1000.0}}))
    run(tmp_path).train()
    assert lines(tmp_path) == lines(undisturbed)
    assert load_record(path)["cost"]["core_or_gpu_hours"] > 1000


def test_a_run_that_was_taken_over_saves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the file system has no locks."""

    def unsupported(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", unsupported)
    with exclusive(tmp_path):
        (tmp_path / ".lock").write_text("process 1 on another node")
        with pytest.raises(Held, match="taken over by process 1 on another node"):
            run(tmp_path).train()
    assert not (tmp_path / "checkpoints").exists()
