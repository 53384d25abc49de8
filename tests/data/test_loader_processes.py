"""Worker processes and signals. Every case runs in a process of its own: a dying worker signals its parent."""

import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from data_fakes import FakeImages, FakeMasks, augmentation

from dinoswap.data.order import Order
from dinoswap.data.steps import StepDataset, loader


def steps(images: FakeImages) -> StepDataset:
    return StepDataset(images, Order(images.blocks, 7), augmentation, FakeMasks(8), 7, 8)


def in_child(scenario: Callable[..., None], *arguments: object) -> int | None:
    """Exit code of a process that runs `scenario`: 0 unless it raised; None when it hung and was killed."""
    child = multiprocessing.get_context("fork").Process(target=scenario, args=arguments)
    child.start()
    child.join(timeout=60)
    if child.exitcode is None:
        child.kill()
    return child.exitcode


class DeadlyImages(FakeImages):
    """Kills the process that loads row 3."""

    def load(self, row: int) -> np.ndarray:
        if row == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().load(row)


def worker_dies() -> None:
    with pytest.raises(RuntimeError, match="worker"):
        list(loader(steps(DeadlyImages(50)), 0, 20, 1, False))


def test_a_worker_that_dies_is_an_error():
    assert in_child(worker_dies) == 0


def signals_reach_every_process() -> None:
    batches = loader(steps(FakeImages(50)), 0, 40, 2, False)
    next(batches)
    workers = multiprocessing.active_children()
    assert len(workers) == 2
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
        for worker in workers:
            # Sent by another process than the parent, whose own SIGTERM must end its workers.
            assert in_child(os.kill, worker.pid, number) == 0
    assert len(list(batches)) == 39


def test_workers_outlive_the_signals_of_a_job():
    assert in_child(signals_reach_every_process) == 0


def leaves_with_workers_running(fails: bool) -> None:
    batches = loader(steps(FakeImages(50)), 0, 1000, 2, False)
    next(batches)
    globals()["still_held"] = batches  # an iterator that nothing closes, as in a traceback
    if fails:
        raise SystemExit(3)


@pytest.mark.parametrize("fails", [False, True])
def test_the_parent_can_leave_at_any_time(fails):
    assert in_child(leaves_with_workers_running, fails) == (3 if fails else 0)


def is_killed(note: Path) -> None:
    batches = loader(steps(FakeImages(50)), 0, 1000, 1, False)
    next(batches)
    note.write_text(str(multiprocessing.active_children()[0].pid))
    os.kill(os.getpid(), signal.SIGKILL)


def is_running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def test_workers_do_not_outlive_a_killed_parent(tmp_path):
    assert in_child(is_killed, tmp_path / "pid") == -signal.SIGKILL
    worker, end = int((tmp_path / "pid").read_text()), time.monotonic() + 30
    while is_running(worker) and time.monotonic() < end:
        time.sleep(0.1)
    assert not is_running(worker)
