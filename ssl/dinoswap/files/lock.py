"""Ensures one writer per run folder, by a lock that the system releases however its holder ends.

The lock is flock(2) on `<folder>/.lock`, whose text says who holds it. Nodes of a cluster see each other's locks if
their file system supports it: NFS does, Lustre when it is mounted with -o flock. Without support for locks only the
text is left: whoever wrote it last is the writer, and an earlier one learns of it from `require_sole_writer`.
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
"""Seconds to wait for the lock. A process that asks for the holder has the lock for an instant."""

_log = logging.getLogger(__name__)
_descriptors: set[int] = set()
_unguarded: dict[Path, str] = {}
"""By folder, the text of the locks that this process has written where the file system has no locks."""


class Held(BlockingIOError):
    """Raised when another process writes in the folder."""


@contextlib.contextmanager
def exclusive(folder: Path, patience: float = PATIENCE) -> Iterator[None]:
    """Holds the lock of `folder`, which is created if it does not exist. Raises Held, naming the holder, when the lock
    is not free within `patience` seconds, and OSError when the folder cannot be written."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / NAME
    descriptor, guarded = _acquire(path, time.monotonic() + patience)
    _descriptors.add(descriptor)
    text = _lock_text()
    try:
        _write(descriptor, path, text)
        if not guarded:
            _unguarded[folder] = text
        yield
    finally:
        if guarded or _text(path) == text:
            with contextlib.suppress(OSError):  # a file that stays behind does no harm, since nobody holds its lock
                path.unlink()
        _unguarded.pop(folder, None)
        _descriptors.discard(descriptor)
        os.close(descriptor)


def require_sole_writer(folder: Path) -> None:
    """Raises Held when another process has taken the lock of `folder` over. This is only possible where the file system
    has no locks, so that this process has the lock by its text alone."""
    written, writer = _unguarded.get(folder), _text(folder / NAME)
    if written is not None and writer not in (written, ""):  # "" is nobody, or one who is just writing it
        raise Held(
            f"{folder} has been taken over by {writer}; this file system has no locks that would have kept it out"
        )


def holder(folder: Path) -> str | None:
    """Returns who has the lock of `folder`, in words; None when nobody does, when there is no lock file, or when the
    file system has no locks. Raises OSError when it cannot be found out."""
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
    """Replaces the content of an open file. An OSError that it raises names `path`."""
    try:
        os.ftruncate(descriptor, 0)
        os.write(descriptor, text.encode())
    except OSError as error:
        error.filename = str(path)  # which the system does not say of an open file
        raise


def _text(path: Path) -> str:
    """Returns the text of a lock, "" when it cannot be read."""
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""


def _acquire(path: Path, deadline: float) -> tuple[int, bool]:
    """Returns an open descriptor of the lock file, and whether the system keeps other processes away. Raises Held at
    the deadline, which is a time of time.monotonic()."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                text = os.read(descriptor, 1000).decode(errors="replace")
                os.close(descriptor)
                raise Held(f"{path.parent} is in use by {text}") from None
            time.sleep(0.02)
        except OSError as error:  # ENOLCK, ENOSYS, EOPNOTSUPP, EINVAL, ...: each file system has its own word for it
            _log.warning("%s: %s: nothing keeps a second process from writing the same run", path, error.strerror)
            return descriptor, False
        else:
            if _is_there(descriptor, path):
                return descriptor, True
        os.close(descriptor)


def _is_there(descriptor: int, path: Path) -> bool:
    """Tells whether the open file still has its name: the previous holder of the lock may just have deleted it."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ESTALE):
            return False
        raise


def _lock_text() -> str:
    """Returns the text of a lock of this process: its id, host, SLURM job and the current time."""
    job = os.environ.get("SLURM_ARRAY_JOB_ID", os.environ.get("SLURM_JOB_ID"))
    element = os.environ.get("SLURM_ARRAY_TASK_ID")
    scheduled = f" (SLURM job {job}{f'_{element}' if element else ''})" if job else ""
    return f"process {os.getpid()} on {socket.gethostname()}{scheduled} since {datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC"


def _close_in_child() -> None:
    """Closes the lock files in a forked data worker, which would otherwise keep the lock of a training process that was
    killed until it notices."""
    for descriptor in _descriptors:
        os.close(descriptor)
    _descriptors.clear()


os.register_at_fork(after_in_child=_close_in_child)
