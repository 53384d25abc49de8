"""One writer per run folder: a lock that the system takes back however its holder ends.

It is flock(2) on `<folder>/.lock`, whose text says who holds it. Nodes of a cluster see each other's locks where their
file system hands them on: NFS does, Lustre when it is mounted with -o flock. Without locks its text is all there is:
whoever came last is the writer, and one who came before learns of it from `require_sole_writer`.
"""

import contextlib
import errno
import fcntl
import logging
import os
import socket
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

NAME = ".lock"
PATIENCE = 1.0
"""Seconds. Whoever asks for the holder has the lock for an instant."""

_log = logging.getLogger(__name__)
_descriptors: set[int] = set()
_unguarded: dict[Path, str] = {}
"""Text of the locks that this process has written where nothing else keeps a second writer away."""


class Held(BlockingIOError):
    """Somebody else writes in this folder."""


@contextlib.contextmanager
def exclusive(folder: Path, patience: float = PATIENCE) -> Iterator[None]:
    """Hold the lock of `folder`, which is made if need be. Raises Held, with who has it, after `patience` seconds."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / NAME
    descriptor, guarded = _acquire(path, time.monotonic() + patience)
    _descriptors.add(descriptor)
    who = _who()
    try:
        _write(descriptor, path, who)
        if not guarded:
            _unguarded[folder] = who
        yield
    finally:
        if guarded or _text(path) == who:
            with contextlib.suppress(OSError):  # it says nothing once nobody holds it
                path.unlink()
        _unguarded.pop(folder, None)
        _descriptors.discard(descriptor)
        os.close(descriptor)


def require_sole_writer(folder: Path) -> None:
    """Raises Held where this process has the lock of `folder` by its text alone, and somebody else has written his."""
    own, now = _unguarded.get(folder), _text(folder / NAME)
    if own is not None and now not in (own, ""):  # "" is nobody, or one who is just writing it
        raise Held(f"{folder} has been taken over by {now}; this file system has no locks that would have kept it out")


def holder(folder: Path) -> str | None:
    """Who has the lock of `folder`, in words; None when nobody does, or nobody can: there is no file of that name, or
    no locks here. OSError where it cannot be found out."""
    try:
        descriptor = os.open(folder / NAME, os.O_RDONLY | os.O_NONBLOCK)  # a pipe of this name is not waited for
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
            return None
        raise
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return os.read(descriptor, 1000).decode(errors="replace") or "a process that has just started"
    except OSError:  # there are no locks here
        return None
    finally:
        os.close(descriptor)
    return None


def _write(descriptor: int, path: Path, text: str) -> None:
    try:
        os.ftruncate(descriptor, 0)
        os.write(descriptor, text.encode())
    except OSError as error:
        error.filename = str(path)  # which the system does not say of an open file
        raise


def _text(path: Path) -> str:
    """Of a lock; empty when there is none to be read."""
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""


def _acquire(path: Path, deadline: float) -> tuple[int, bool]:
    """An open descriptor, and whether the system keeps others away."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                who = os.read(descriptor, 1000).decode(errors="replace")
                os.close(descriptor)
                raise Held(f"{path.parent} is in use by {who}") from None
            time.sleep(0.02)
        except OSError as error:  # ENOLCK, ENOSYS, EOPNOTSUPP, EINVAL, ...: each file system has its own word for it
            _log.warning("%s: %s: nothing keeps a second process from writing the same run", path, error.strerror)
            return descriptor, False
        else:
            if _is_there(descriptor, path):
                return descriptor, True
        os.close(descriptor)


def _is_there(descriptor: int, path: Path) -> bool:
    """Whether the open file still has its name: the one who had the lock may just have deleted it."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ESTALE):
            return False
        raise


def _who() -> str:
    job = os.environ.get("SLURM_ARRAY_JOB_ID", os.environ.get("SLURM_JOB_ID"))
    element = os.environ.get("SLURM_ARRAY_TASK_ID")
    scheduled = f" (SLURM job {job}{f'_{element}' if element else ''})" if job else ""
    return f"process {os.getpid()} on {socket.gethostname()}{scheduled} since {datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC"


def _close_in_child() -> None:
    """Data workers are forked, and would keep the lock of a training process that was killed until they notice."""
    for descriptor in _descriptors:
        os.close(descriptor)
    _descriptors.clear()


os.register_at_fork(after_in_child=_close_in_child)
