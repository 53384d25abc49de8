"""The lock of a run folder: one holder, whatever happens to it."""

import errno
import fcntl
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest

from dinoswap.files.lock import Held, exclusive, holder, require_sole_writer

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


@pytest.fixture(params=[errno.ENOLCK, errno.EINVAL, errno.EPERM], ids=errno.errorcode.get)
def no_locks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """As file systems without locks answer, each in its own way."""

    def flock(descriptor: int, operation: int) -> None:
        raise OSError(request.param, os.strerror(request.param))

    monkeypatch.setattr(fcntl, "flock", flock)


def test_without_locks_the_last_to_come_is_the_writer(
    no_locks: None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with exclusive(tmp_path):
        assert "nothing keeps a second process from writing" in caplog.text
        assert holder(tmp_path) is None
        require_sole_writer(tmp_path)
        second = started(hold, tmp_path)
        wait_for(tmp_path / "held")
        with pytest.raises(Held, match=f"{tmp_path} has been taken over by process {second.pid} on "):
            require_sole_writer(tmp_path)
    assert f"process {second.pid} on" in (tmp_path / ".lock").read_text()  # whose it is is not ours to delete
    second.kill()
    second.join()
    with exclusive(tmp_path):
        require_sole_writer(tmp_path)
    assert not (tmp_path / ".lock").exists()


def test_with_locks_their_text_decides_nothing(tmp_path: Path) -> None:
    with exclusive(tmp_path):
        (tmp_path / ".lock").write_text("process 1 on another host")
        require_sole_writer(tmp_path)


@pytest.mark.parametrize("kind", ["pipe", "folder", "link to itself", "bytes", "file in the folder's place"])
def test_whatever_bears_the_name_nobody_holds_it(kind: str, tmp_path: Path) -> None:
    path = tmp_path / ".lock"
    {
        "pipe": lambda: os.mkfifo(path),
        "folder": lambda: path.mkdir(),
        "link to itself": lambda: path.symlink_to(path),
        "bytes": lambda: path.write_bytes(b"\xff\xfe"),
        "file in the folder's place": lambda: path.touch(),
    }[kind]()
    assert holder(path if kind.startswith("file") else tmp_path) is None


def test_a_full_disk_is_said_with_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(OSError, match=f"No space left on device: '{tmp_path}/.lock'"), exclusive(tmp_path):
        pytest.fail("it was not written")
