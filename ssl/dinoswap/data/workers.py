"""Data workers: processes that prepare batches, and whatever can happen to one told in a line that names the remedy.

A worker sends a `Failure` in the place of a batch that it could not make, or could not hand over: PyTorch would hand on
the text of a traceback for the first, and for the second print one and leave the training process waiting for ever.
"""

import contextlib
import errno
import multiprocessing.queues
import os
import shutil
import signal
import sys
import threading
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from multiprocessing import connection
from pathlib import Path
from typing import Any, TypeVar

import cv2
import torch
from torch.utils.data import DataLoader, Dataset

from dinoswap.data.corrupt import TooManyCorrupt
from dinoswap.values import Batch

T = TypeVar("T")
PREFETCH = 2
"""Batches that a worker prepares ahead."""
SHARED_MEMORY = Path("/dev/shm")
ABOUT_THE_DATA = (TooManyCorrupt, OSError, ValueError)
"""What a data set raises, with or without workers, and says what is wrong by itself."""
EXHAUSTED = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)
"""But for these OSErrors, which are about the number of processes."""
REMEDIES = {
    ("shared memory", "/torch_", "SIGBUS"): (
        f"{SHARED_MEMORY} is too small: set data.workers=0 or fewer, or enlarge it (docker run --shm-size=8g)"
    ),
    ("open files", "ancdata", "file descriptor"): "set data.workers=0, or raise the limit (ulimit -n 65536)",
    ("SIGKILL", "memory"): "out of memory? Lower data.workers or data.batch_size, or set data.workers=0",
    ("",): "data.workers=0 shows where it comes from",
}
"""What helps, by words of what happened; the first that fits."""


class DataWorkerError(RuntimeError):
    """A data worker died, cannot be started, or cannot hand over what it made."""


@dataclass(frozen=True)
class Failure:
    """Sent in the place of a batch."""

    kind: type[Exception]
    text: str

    @classmethod
    def of(cls, error: BaseException) -> "Failure":
        for kind in ABOUT_THE_DATA:
            if isinstance(error, kind) and getattr(error, "errno", None) not in EXHAUSTED:
                return cls(kind, str(error))
        *_, frame = traceback.extract_tb(error.__traceback__) or [None]
        where = f" ({Path(frame.filename).name}:{frame.lineno})" if frame else ""
        return cls(DataWorkerError, f"{type(error).__name__}: {_first_line(error)}{where}")

    def error(self, workers: int) -> Exception:
        return explained(self.text, workers) if self.kind is DataWorkerError else self.kind(self.text)


class Telling(Dataset[T | Failure]):
    """`dataset` in a worker."""

    def __init__(self, dataset: Dataset[T]) -> None:
        self.dataset = dataset

    def __getitem__(self, index: int) -> T | Failure:
        try:
            return self.dataset[index]
        except Exception as error:  # whatever it is: the training process decides
            return Failure.of(error)


def in_order(
    dataset: Dataset[T], indices: Sequence[int], workers: int, *, pin_memory: bool = False, ahead: int = PREFETCH
) -> Iterator[T]:
    """`dataset[index]` of each of `indices`, made by `workers` processes, `ahead` of them by each before they are asked
    for, or by this one where that is 0.

    Raises what the data set raises; with workers that is what `ABOUT_THE_DATA` lists, and DataWorkerError otherwise.
    """
    if not workers:
        return (dataset[index] for index in indices)
    return _prepared(dataset, indices, workers, pin_memory, ahead)


def _prepared(dataset: Dataset[T], indices: Sequence[int], workers: int, pin_memory: bool, ahead: int) -> Iterator[T]:
    batches: DataLoader[T | Failure] = DataLoader(
        Telling(dataset),
        batch_size=None,
        sampler=indices,
        num_workers=workers,
        prefetch_factor=ahead,
        collate_fn=_as_it_is,
        pin_memory=pin_memory,
        worker_init_fn=_start,
        # Forked workers share the images that are held in memory.
        multiprocessing_context="fork" if sys.platform == "linux" else None,
        generator=torch.Generator(),  # its base seed must not be drawn from the training process's generator
    )
    iterator: Iterator[T | Failure] | None = None
    while True:
        try:
            iterator = _started(batches) if iterator is None else iterator
            batch = next(iterator)
        except StopIteration:
            return
        except (RuntimeError, OSError, EOFError) as error:
            raise explained(_what_happened(error, iterator), workers) from error
        if isinstance(batch, Failure):
            raise batch.error(workers)
        yield batch


def _as_it_is(item: T) -> T:
    """torch would make tensors of arrays, which travel by shared memory, of which there may be little."""
    return item


def explained(what: str, workers: int) -> DataWorkerError:
    remedy = next(remedy for words, remedy in REMEDIES.items() if any(word in what for word in words))
    return DataWorkerError(f"data.workers={workers}: {what}; {remedy}")


def require_shared_memory(batch: Batch, workers: int) -> None:
    """Raises DataWorkerError where the batches that `workers` prepare ahead, each like `batch`, find no room."""
    if not workers or not SHARED_MEMORY.is_dir():
        return
    size, free = sum(tensor.nbytes for tensor in batch.tensors().values()), shutil.disk_usage(SHARED_MEMORY).free
    count = workers * PREFETCH + 1  # the one that is trained on
    if count * size > free:
        needs = f"{count} batches of {size / 1e6:,.1f} MB are in shared memory at a time, {free / 1e6:,.1f} MB are free"
        raise explained(needs, workers)


def _started(batches: DataLoader[T | Failure]) -> Iterator[T | Failure]:
    """With the handler of SIGCHLD that was there before. PyTorch's would raise wherever the training process is when a
    worker dies, in the middle of a step or of a checkpoint; without it `next` says so, within seconds."""
    before = signal.getsignal(signal.SIGCHLD)
    iterator = iter(batches)
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGCHLD, before if before is not None else signal.SIG_DFL)
    return iterator


def _what_happened(error: Exception, iterator: Any) -> str:
    workers = getattr(iterator, "_workers", [])
    dying = connection.wait(
        [worker.sentinel for worker in workers], timeout=1
    )  # its files are closed before it is dead
    for worker in workers:
        worker.join(timeout=1 if worker.sentinel in dying else 0)
    signals = {signal.Signals(-worker.exitcode).name for worker in workers if (worker.exitcode or 0) < 0}
    return f"a worker was killed by {', '.join(sorted(signals))}" if signals else _first_line(error)


def _first_line(error: BaseException) -> str:
    return str(error).partition("\n")[0]


# --- in a worker ------------------------------------------------------------------------------------------------------


def _start(worker: int) -> None:
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    multiprocessing.queues.Queue._on_queue_feeder_error = _tell  # type: ignore[attr-defined]
    # Terminals and schedulers signal every process of a job, but only the training process knows how to stop, and
    # it needs its workers until it has saved. A SIGTERM that it sends itself must end them: on exit it sends one
    # and waits for them.
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_exit_when_terminated_by_parent, daemon=True).start()


def _tell(queue: Any, error: Exception, item: tuple[int, Any]) -> None:
    """The batch could not be put into the pipe; a few words can. The queue's thread calls it, as its hook."""
    with contextlib.suppress(OSError):
        queue.put((item[0], Failure.of(error)))


def _exit_when_terminated_by_parent() -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)
