"""Worker processes and signals. Every case runs in a process of its own: a dying worker signals its parent."""

import ctypes
import errno
import logging
import multiprocessing
import os
import resource
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from data_fakes import FakeImages, FakeMasks, augmentation, one_pipeline

from dinoswap.data import stalls
from dinoswap.data.corrupt import TooManyCorrupt
from dinoswap.data.order import Order
from dinoswap.data.steps import Pipeline, StepDataset, loader
from dinoswap.data.workers import DataWorkerError, require_shared_memory
from dinoswap.values import Views


def steps(images: FakeImages) -> StepDataset:
    return StepDataset(images, Order(images.blocks, 7), *one_pipeline(8), 7, 8)


def in_child(scenario: Callable[..., None], *arguments: object) -> int | None:
    """Exit code of a process that runs `scenario`: 0 unless it raised; None when it hung and was killed."""
    child = multiprocessing.get_context("fork").Process(target=scenario, args=arguments)
    child.start()
    child.join(timeout=200)
    if child.exitcode is None:
        child.kill()
    return child.exitcode


class FatalImages(FakeImages):
    """Something happens to the process that loads row 3."""

    def __init__(self, length: int, happens: Callable[[], None]) -> None:
        super().__init__(length)
        self.happens = happens

    def load(self, row: int) -> np.ndarray:
        if row == 3:
            self.happens()
        return super().load(row)


def raises(error: Exception) -> Callable[[], None]:
    def happens() -> None:
        raise error

    return happens


def killed_by(number: signal.Signals) -> Callable[[], None]:
    return lambda: os.kill(os.getpid(), number)


SHM = "/dev/shm is too small: set data.workers=0 .*--shm-size"
FATES = {
    "killed": (killed_by(signal.SIGKILL), DataWorkerError, r"data.workers=1: .*SIGKILL; out of memory\? Lower data"),
    "bus error": (killed_by(signal.SIGBUS), DataWorkerError, f"data.workers=1: .*SIGBUS; {SHM}"),
    "a bug": (
        raises(KeyError("x")),
        DataWorkerError,
        r"KeyError: 'x' \(test_loader_proc.*py:\d+\); data.workers=0",
    ),
    "open files": (raises(OSError(errno.EMFILE, "Too many open files")), DataWorkerError, "data.workers=0.*ulimit -n"),
    "its own": (raises(OSError(errno.ESTALE, "Stale file handle", "a.png")), OSError, r"^\[Errno 116\] Stale.*a.png'$"),
    "many corrupt": (raises(TooManyCorrupt("several\nlines")), TooManyCorrupt, "^several\nlines$"),
}


def meets(fate: str) -> None:
    happens, kind, words = FATES[fate]
    before = signal.getsignal(signal.SIGCHLD)
    with pytest.raises(kind, match=words) as caught:
        for _ in loader(steps(FatalImages(50, happens)), 0, 20, 1, False):
            assert signal.getsignal(signal.SIGCHLD) == before  # else a death would be told in the middle of a step
    assert kind is TooManyCorrupt or "\n" not in str(caught.value)


@pytest.mark.parametrize("fate", FATES)
def test_what_happens_to_a_worker_is_told_in_a_line(fate: str) -> None:
    assert in_child(meets, fate) == 0


def large(image: np.ndarray, rng: np.random.Generator) -> Views:
    """A crop of 270,000 bytes."""
    views = augmentation(image, rng)
    return replace(views, global_crops=[torch.zeros(3, 300, 300, dtype=torch.uint8)])


def does_not_fit() -> None:
    assert ctypes.CDLL(None).unshare(0x00020000) == 0  # CLONE_NEWNS: what is mounted here is so for this process alone
    subprocess.run(["mount", "--make-rprivate", "/"], check=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", "/dev/shm"], check=True)
    small = steps(FakeImages(50))
    dataset = replace(small, pipelines=[Pipeline(large, FakeMasks(8))])
    with pytest.raises(DataWorkerError, match=f"data.workers=2: 5 batches of 2.2 MB .* 0.3 MB are free; {SHM}"):
        require_shared_memory([small[0], dataset[0]], 2)
    require_shared_memory([dataset[0]], 0)
    with pytest.raises(DataWorkerError, match=f"data.workers=2: .*shared memory.*; {SHM}"):
        list(loader(dataset, 0, 20, 2, False))


def test_shared_memory_that_is_too_small():
    """Said before the first step; and where something else fills it later, the item that was lost is not waited for."""
    if os.geteuid() != 0:
        (pytest.fail if "CI" in os.environ else pytest.skip)("mounting a small file system needs root")
    assert in_child(does_not_fit) == 0


def few_files() -> None:
    batches = loader(steps(FakeImages(50)), 0, 20, 2, False)
    held = [next(batches)]
    resource.setrlimit(resource.RLIMIT_NOFILE, (48, 48))
    with pytest.raises(DataWorkerError, match=r"data.workers=2: .*; set data.workers=0, or raise the limit"):
        held += batches


def test_too_few_open_files():
    assert in_child(few_files) == 0


def signals_reach_every_process() -> None:
    batches = loader(steps(FakeImages(50)), 0, 40, 2, False)
    next(batches)
    workers = multiprocessing.active_children()
    assert len(workers) == 2
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
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


def stops_itself() -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


def a_stalled_worker_is_told_and_waited_for() -> None:
    lines: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("dinoswap.data.stalls").addHandler(handler)
    stalls.FIRST, stalls.INTERVAL = 0.5, 0.05
    batches = loader(steps(FatalImages(8, stops_itself)), 0, 2, 1, False)

    done = threading.Event()

    def go_on() -> None:
        while not done.wait(0.05):
            for child in multiprocessing.active_children() if lines else []:
                assert child.pid is not None
                os.kill(child.pid, signal.SIGCONT)  # it stops again in the next batch

    thread = threading.Thread(target=go_on)
    thread.start()
    assert sorted(next(batches).indices.tolist()) == list(range(8))
    done.set()
    thread.join()
    (pid,) = (child.pid for child in multiprocessing.active_children())
    assert lines[0].startswith("data: no batch for ")
    assert f"The workers: {pid} is stopped." in lines[0]


def test_a_worker_that_hangs_is_told_and_waited_for() -> None:
    assert in_child(a_stalled_worker_is_told_and_waited_for) == 0


def waits_that_end_are_not_told() -> None:
    lines: list[str] = []
    logging.getLogger("dinoswap.data.stalls").addFilter(lambda record: bool(lines.append(record.getMessage())))
    stalls.FIRST, stalls.INTERVAL = 0.3, 0.01
    watch = stalls.Stalls(list)
    with watch.watched():
        for _ in range(10):
            with watch.waiting():
                time.sleep(0.1)  # of many short waits
        time.sleep(0.5)  # the training step, however long
        assert lines == []
        with watch.waiting():
            time.sleep(1.6)
    assert len(lines) == 3  # after 0.3 s, 0.6 s, 1.2 s


def test_only_one_long_wait_is_told_each_time_it_has_doubled() -> None:
    assert in_child(waits_that_end_are_not_told) == 0
