"""One writer per run folder: a lock that the system takes back however its holder ends.

It is flock(2) on `<folder>/.lock`, whose text says who holds it. Nodes of a cluster see each other's locks where their
file system hands them on: NFS does, Lustre when it is mounted with -o flock.
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


class Held(BlockingIOError):
    """Somebody else writes in this folder."""


@contextlib.contextmanager
def exclusive(folder: Path, patience: float = PATIENCE) -> Iterator[None]:
    """Hold the lock of `folder`, which is made if need be. Raises Held, with who has it, after `patience` seconds."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / NAME
    descriptor = _acquire(path, time.monotonic() + patience)
    _descriptors.add(descriptor)
    try:
        os.ftruncate(descriptor, 0)
        os.write(descriptor, _who().encode())
        yield
    finally:
        path.unlink(missing_ok=True)
        _descriptors.discard(descriptor)
        os.close(descriptor)


def holder(folder: Path) -> str | None:
    """Who has the lock of `folder`, in words; None when nobody does."""
    try:
        descriptor = os.open(folder / NAME, os.O_RDONLY)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return os.read(descriptor, 1000).decode() or "a process that has just started"
    except OSError as error:
        if error.errno not in _UNSUPPORTED:
            raise
    finally:
        os.close(descriptor)
    return None


_UNSUPPORTED = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


def _acquire(path: Path, deadline: float) -> int:
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(descriptor), path.stat()):
                return descriptor
        except FileNotFoundError:  # the one who had it has just deleted it
            pass
        except BlockingIOError:
            if time.monotonic() > deadline:
                who = os.read(descriptor, 1000).decode()
                os.close(descriptor)
                raise Held(f"{path.parent} is in use by {who}") from None
            time.sleep(0.02)
        except OSError as error:
            if error.errno not in _UNSUPPORTED:
                raise
            _log.warning("%s: %s: nothing keeps a second process from writing the same run", path, error.strerror)
            return descriptor
        os.close(descriptor)


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
