"""Runs data workers, processes that prepare batches, and reports each of their failures in one line that names the
remedy.

A worker sends a `Failure` in place of a batch that it could not make or could not hand over. PyTorch would pass on the
text of a traceback for the first; for the second it would print one and leave the training process waiting for ever.
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
from dinoswap.data.stalls import Stalls
from dinoswap.values import Batch

T = TypeVar("T")
PREFETCH = 2
"""The number of batches that a worker prepares ahead."""
SHARED_MEMORY = Path("/dev/shm")
ABOUT_THE_DATA = (TooManyCorrupt, OSError, ValueError)
"""Exceptions that a data set raises on purpose. They are passed on as they are, because their message says what is
wrong."""
EXHAUSTED = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)
"""Codes of OSErrors that are not about the data but about the number of processes."""
REMEDIES = {
    ("shared memory", "/torch_", "SIGBUS"): (
        f"{SHARED_MEMORY} is too small: set data.workers=0 or fewer, or enlarge it (docker run --shm-size=8g)"
    ),
    ("open files", "ancdata", "file descriptor"): "set data.workers=0, or raise the limit (ulimit -n 65536)",
    ("SIGKILL", "memory"): "out of memory? Lower data.workers or data.batch_size, or set data.workers=0",
    ("",): "data.workers=0 shows where it comes from",
}
"""Maps words that occur in an error to what helps against it; the first entry that fits is used."""


class DataWorkerError(RuntimeError):
    """Raised when a data worker died, cannot be started, or cannot hand over what it made."""


@dataclass(frozen=True)
class Failure:
    """Describes an exception of a worker; it is sent in place of a batch."""

    kind: type[Exception]
    text: str

    @classmethod
    def of(cls, error: BaseException) -> "Failure":
        """Returns the failure that describes `error`."""
        for kind in ABOUT_THE_DATA:
            if isinstance(error, kind) and getattr(error, "errno", None) not in EXHAUSTED:
                return cls(kind, str(error))
        *_, frame = traceback.extract_tb(error.__traceback__) or [None]
        location = f" ({Path(frame.filename).name}:{frame.lineno})" if frame else ""
        return cls(DataWorkerError, f"{type(error).__name__}: {_first_line(error)}{location}")

    def error(self, workers: int) -> Exception:
        """Returns the exception to raise in the training process."""
        return worker_error(self.text, workers) if self.kind is DataWorkerError else self.kind(self.text)


class FailureSending(Dataset[T | Failure]):
    """Wraps `dataset` for a worker: an exception is returned as a Failure."""

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
    """Yields `dataset[index]` for each of `indices`. They are made by `workers` processes, each of which is `ahead`
    items ahead of the consumer, or by this process when `workers` is 0.

    Raises what the data set raises. With workers, exceptions other than ABOUT_THE_DATA are raised as DataWorkerError.
    """
    if not workers:
        return (dataset[index] for index in indices)
    return _prepared(dataset, indices, workers, pin_memory, ahead)


def _prepared(dataset: Dataset[T], indices: Sequence[int], workers: int, pin_memory: bool, ahead: int) -> Iterator[T]:
    batches: DataLoader[T | Failure] = DataLoader(
        FailureSending(dataset),
        batch_size=None,
        sampler=indices,
        num_workers=workers,
        prefetch_factor=ahead,
        collate_fn=_uncollated,
        pin_memory=pin_memory,
        worker_init_fn=_initialise_worker,
        # Forked workers share the images that are held in memory.
        multiprocessing_context="fork" if sys.platform == "linux" else None,
        generator=torch.Generator(),  # its base seed must not be drawn from the training process's generator
    )
    iterator: Iterator[T | Failure] | None = None
    stalls = Stalls(lambda: [worker.pid for worker in getattr(iterator, "_workers", [])])
    with contextlib.ExitStack() as stack:
        while True:
            try:
                if iterator is None:
                    iterator = _started(batches)
                    stack.enter_context(stalls.watched())  # its thread begins after the fork of the workers
                with stalls.waiting():
                    batch = next(iterator)
            except StopIteration:
                return
            except (RuntimeError, OSError, EOFError) as error:
                raise worker_error(_cause_of(error, iterator), workers) from error
            if isinstance(batch, Failure):
                raise batch.error(workers)
            yield batch


def _uncollated(item: T) -> T:
    """Returns the item as it is. PyTorch's default would make tensors of arrays, and tensors travel by shared memory,
    of which there may be little."""
    return item


def worker_error(cause: str, workers: int) -> DataWorkerError:
    """Returns the error that describes a failure of a worker, with the remedy for it."""
    remedy = next(remedy for words, remedy in REMEDIES.items() if any(word in cause for word in words))
    return DataWorkerError(f"data.workers={workers}: {cause}; {remedy}")


def require_shared_memory(batches: Sequence[Batch], workers: int) -> None:
    """Raises DataWorkerError when the batches that `workers` prepare ahead, each as large as the largest of `batches`,
    do not fit into shared memory."""
    if not workers or not SHARED_MEMORY.is_dir():
        return
    size = max(sum(tensor.nbytes for tensor in batch.tensors().values()) for batch in batches)
    free = shutil.disk_usage(SHARED_MEMORY).free
    count = workers * PREFETCH + 1  # the one that is trained on
    if count * size > free:
        needs = f"{count} batches of {size / 1e6:,.1f} MB are in shared memory at a time, {free / 1e6:,.1f} MB are free"
        raise worker_error(needs, workers)


def _started(batches: DataLoader[T | Failure]) -> Iterator[T | Failure]:
    """Starts the workers and restores the previous handler of SIGCHLD. PyTorch's handler would raise when a worker
    dies, wherever the training process is, in the middle of a step or of a checkpoint; without it `next` raises within
    seconds."""
    previous_handler = signal.getsignal(signal.SIGCHLD)
    iterator = iter(batches)
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGCHLD, previous_handler if previous_handler is not None else signal.SIG_DFL)
    return iterator


def _cause_of(error: Exception, iterator: Any) -> str:
    """Returns which signals killed workers, or else the first line of the error."""
    workers = getattr(iterator, "_workers", [])
    # A process closes its files before it is dead.
    dying = connection.wait([worker.sentinel for worker in workers], timeout=1)
    for worker in workers:
        worker.join(timeout=1 if worker.sentinel in dying else 0)
    signals = {signal.Signals(-worker.exitcode).name for worker in workers if (worker.exitcode or 0) < 0}
    return f"a worker was killed by {', '.join(sorted(signals))}" if signals else _first_line(error)


def _first_line(error: BaseException) -> str:
    return str(error).partition("\n")[0]


# --- in a worker ------------------------------------------------------------------------------------------------------


def _initialise_worker(worker: int) -> None:
    """Prepares a worker process: one thread, no signals but SIGTERM from the training process."""
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    multiprocessing.queues.Queue._on_queue_feeder_error = _send_failure  # type: ignore[attr-defined]
    # Terminals and schedulers signal every process of a job, but only the training process knows how to stop, and
    # it needs its workers until it has saved. A SIGTERM that it sends itself must end them: on exit it sends one
    # and waits for them.
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_exit_when_terminated_by_parent, daemon=True).start()


def _send_failure(queue: Any, error: Exception, item: tuple[int, Any]) -> None:
    """Sends a Failure in place of a batch that could not be put into the pipe. The queue's thread calls it as its
    hook."""
    with contextlib.suppress(OSError):
        queue.put((item[0], Failure.of(error)))


def _exit_when_terminated_by_parent() -> None:
    """Waits for a SIGTERM that the training process sends and ends the worker; others are ignored."""
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)
