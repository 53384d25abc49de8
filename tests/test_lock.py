"""The lock of a run folder: one holder, whatever happens to it."""

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest

from dinoswap.lock import Held, exclusive, holder

_fork = multiprocessing.get_context("fork")


def started(work: Callable[..., None], *arguments: object) -> BaseProcess:
    process = _fork.Process(target=work, args=arguments)
    process.start()
    return process


def hold(folder: Path, forks: bool = False) -> None:
    with exclusive(folder):
        if forks:
            started(time.sleep, 60)
        (folder / "held").touch()
        time.sleep(60)


def wait_for(path: Path) -> None:
    end = time.monotonic() + 20
    while not path.exists():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_the_second_is_told_who_has_it(tmp_path: Path) -> None:
    assert holder(tmp_path) is None
    process = started(hold, tmp_path)
    wait_for(tmp_path / "held")
    assert f"process {process.pid} on " in str(holder(tmp_path))
    with pytest.raises(Held, match=f"{tmp_path} is in use by process {process.pid} on "), exclusive(tmp_path, 0.1):
        pytest.fail("two hold it")
    process.kill()
    process.join()


@pytest.mark.parametrize("forks", [False, True])
def test_killed_it_has_it_no_more(forks: bool, tmp_path: Path) -> None:
    """Neither do processes that it forked, as data workers are, and that live on."""
    process = started(hold, tmp_path, forks)
    wait_for(tmp_path / "held")
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    assert len(children) == forks
    process.kill()
    process.join()
    assert holder(tmp_path) is None
    with exclusive(tmp_path, 0):
        assert f"process {os.getpid()} on " in str(holder(tmp_path))
    for child in children:
        os.kill(int(child), signal.SIGKILL)


def test_it_leaves_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), exclusive(tmp_path / "run"):
        raise ZeroDivisionError
    assert list((tmp_path / "run").iterdir()) == []


def test_a_cluster_job_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "17")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "3")
    with exclusive(tmp_path):
        assert "(SLURM job 17_3)" in str(holder(tmp_path))


def count_up(folder: Path, times: int) -> None:
    for _ in range(times):
        with exclusive(folder, patience=30):
            value = int((folder / "count").read_text())
            os.sched_yield()
            (folder / "count").write_text(str(value + 1))


def test_one_at_a_time(tmp_path: Path) -> None:
    """Four processes add to a number in a file, which would lose additions if two ever met; each deletes the lock's
    file that the others wait for. All the while somebody asks who has it."""
    (tmp_path / "count").write_text("0")
    processes = [started(count_up, tmp_path, 50) for _ in range(4)]
    asked = 0
    while any(process.is_alive() for process in processes):
        holder(tmp_path)
        asked += 1
    assert asked > 0
    assert [process.exitcode for process in processes] == [0] * 4
    assert int((tmp_path / "count").read_text()) == 200


def test_asking_does_not_get_in_the_way(tmp_path: Path) -> None:
    done = threading.Event()

    def ask() -> None:
        while not done.is_set():
            holder(tmp_path)

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        for _ in range(200):
            with exclusive(tmp_path):
                pass
    finally:
        done.set()
        thread.join()
