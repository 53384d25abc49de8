"""Forms the process group of a run from the processes that were launched, and reports which rank failed.

Hosts communicate over gloo, GPUs over nccl if every rank has one.

When a rank is killed or hangs, the others fail in their next collective: at once if the connection breaks, else after
the timeout. What torch raises there does not say which rank is missing. So each rank writes why it ends to a key-value
store, and reads the messages of the others. Whatever ends the group, its connections are closed, so that no rank waits
for one that is gone, and the next job in the same processes forms a group of its own.
"""

import contextlib
import functools
import gc
import os
import socket
import time
import traceback
from collections.abc import Iterable, Iterator
from datetime import timedelta

import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from dinoswap.distributed import RankFailed
from dinoswap.distributed.environment import launched_ranks, local_device

GRACE_SECONDS = 10.0
"""How long a rank waits for the messages of the others after a failure: until then, those that still run notice it."""
EXCUSE_SECONDS = 20.0
"""How long a rank that cannot begin tries to reach those that wait for it."""
FAILED = "failed: "
POLL_SECONDS = 0.1
COLLECTIVE = ("gloo", "NCCL", "Timed out", "timed out", "Connection")
"""Words in the message of an exception that a collective raises because another rank has left."""


@contextlib.contextmanager
def process_group(timeout_minutes: float) -> Iterator[None]:
    """Forms the group of the processes that were launched, within the context; for a single process it does nothing.
    Raises RankFailed when a rank does not come within `timeout_minutes`, or fails. The function that enters the context
    should hold no model: see `release`."""
    if launched_ranks() == 1:
        yield
        return
    timeout = timedelta(minutes=timeout_minutes)
    messages = RankMessages(*joined(timeout))
    try:
        backend = backend_of(messages.present("gpu" if torch.cuda.is_available() else "cpu", timeout))
        if torch.cuda.is_available():
            torch.cuda.set_device(local_device())
        dist.init_process_group(
            backend,
            store=messages.store,
            rank=messages.rank,
            world_size=messages.world_size,
            timeout=timeout,
            device_id=device_of(backend),
        )
        _messages_of_group.append(messages)
        yield
    except Exception as error:
        reason = explained(error)
        release(error)
        if reason is not error:
            raise reason from error
        raise
    finally:
        _messages_of_group.clear()
        if dist.is_initialized():
            dist.destroy_process_group()
        messages.close()


def excuse(reason: str) -> None:
    """Tells the waiting ranks why this process ends, if it ends before it has joined the group."""
    if launched_ranks() > 1 and not _jobs_begun:
        with contextlib.suppress(RankFailed, ValueError):  # nobody waits, or there is no place to meet
            messages = RankMessages(*joined(timedelta(seconds=EXCUSE_SECONDS)))
            messages.store.set(f"present {messages.rank}", FAILED + reason)
            messages.close()


def joined(timeout: timedelta) -> tuple[Store, int, int]:
    """Returns the store of the next job that the launched processes do together, the rank of this process, and the
    number of ranks. Raises RankFailed when the processes do not find each other within `timeout`."""
    # torchrun may keep one store over its restarts, with the addresses of ranks that are no more
    _jobs_begun.append(attempt := f"attempt {os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}")
    store, rank, world_size = _joined(os.environ.get("MASTER_ADDR"), os.environ.get("MASTER_PORT"), timeout)
    return PrefixStore(f"{attempt}, job {len(_jobs_begun)}", store), rank, world_size


@functools.cache
def _joined(address: str | None, port: str | None, timeout: timedelta) -> tuple[Store, int, int]:
    """Returns the store, the rank and the number of ranks. They are kept for all jobs of this process, because the
    first rank's store holds the port. Raises RankFailed when the processes do not find each other within `timeout`."""
    try:
        store, rank, world_size = next(rendezvous("env://", timeout=timeout))
    except dist.DistError as error:
        raise RankFailed(
            f"the processes of this run did not find each other at MASTER_ADDR={address}, MASTER_PORT={port} within "
            f"{timeout.total_seconds() / 60:g} minutes (distributed.timeout_minutes): {one_line(error)}"
        ) from error
    return store, rank, world_size


def backend_of(devices: Iterable[str]) -> str:
    """Returns the backend for ranks that have these devices, "gpu" or "cpu"."""
    return "cpu:gloo,cuda:nccl" if set(devices) == {"gpu"} else "gloo"


def device_of(backend: str) -> torch.device | None:
    """Returns the GPU of this process where GPUs communicate, to which nccl then connects at once, and not at the first
    collective, whose device it would have to guess."""
    return torch.device("cuda", local_device()) if "nccl" in backend else None


def explained(error: Exception) -> Exception:
    """Returns the exception to raise in place of `error`, which ends this rank. For an error of this rank it is `error`
    itself, which is written to the store. If a collective raised it, it is RankFailed with the messages of the other
    ranks."""
    if not _messages_of_group or isinstance(error, RankFailed):
        return error
    messages = _messages_of_group[0]
    collective = isinstance(error, RuntimeError) and any(word in str(error) for word in COLLECTIVE)
    try:
        messages.write("" if collective else f"rank {messages.rank} on {socket.gethostname()}: {one_line(error)}")
        return RankFailed(messages.failures() or f"a collective failed on every rank: {error}") if collective else error
    except dist.DistError:
        return RankFailed("no answer from rank 0, which keeps the group's store: killed, or its node is lost")


class RankMessages:
    """Exchanges messages of the ranks through the store of the group: one when a rank joins, and one that says why it
    ends."""

    def __init__(self, store: Store, rank: int, world_size: int) -> None:
        self.store, self.rank, self.world_size = store, rank, world_size
        self.deadline: float | None = None  # of waiting for the others, once something failed

    def present(self, message: str, timeout: timedelta) -> list[str]:
        """Writes the message with which this rank joins, and returns those of all ranks, by rank. Raises RankFailed
        when a rank does not join within `timeout`, and with the reason of one that cannot begin."""
        self.store.set(f"present {self.rank}", message)
        if missing := self._wait_for("present ", time.monotonic() + timeout.total_seconds()):
            raise RankFailed(f"no answer from {listed(missing)}: ended before it began, or hanging")
        messages = [self.store.get(f"present {other}").decode() for other in range(self.world_size)]
        failed = {other: message for other, message in enumerate(messages) if message.startswith(FAILED)}
        if failed:
            raise RankFailed(
                "; ".join(f"rank {other}: {message.removeprefix(FAILED)}" for other, message in failed.items())
            )
        return messages

    def write(self, reason: str) -> None:
        """Writes why this rank ends; "" when another rank is the reason."""
        self.store.set(f"word {self.rank}", reason)
        self.deadline = self.deadline or time.monotonic() + GRACE_SECONDS

    def failures(self) -> str:
        """Returns why ranks failed, by their messages, and which ranks left none; "" when no rank gave a reason."""
        missing = self._wait_for("word ", self.deadline)
        reasons = [self.store.get(f"word {other}").decode() for other in range(self.world_size) if other not in missing]
        silent = [f"no answer from {listed(missing)}: killed, lost or hanging"] if missing else []
        return "; ".join([*filter(None, reasons), *silent])

    def close(self) -> None:
        """Ends the use of the store; no other call follows. The first rank keeps the store, which must exist while
        another rank still reads, so it waits for the others."""
        self.deadline = self.deadline or time.monotonic() + GRACE_SECONDS
        with contextlib.suppress(dist.DistError):  # the first rank has waited long enough, or was killed
            self.store.set(f"left {self.rank}", "")
            if self.rank == 0:
                self._wait_for("left ", self.deadline)

    def _wait_for(self, prefix: str, deadline: float | None) -> list[int]:
        """Waits until each rank has written its key `<prefix><rank>`, and returns the ranks that have not by the
        deadline, a time of time.monotonic(). Without a deadline it does not wait."""
        while missing := [other for other in range(self.world_size) if not self.store.check([f"{prefix}{other}"])]:
            if deadline is None or time.monotonic() > deadline:
                break
            time.sleep(POLL_SECONDS)
        return missing


_jobs_begun: list[str] = []  # by this process: all ranks begin the same ones
_messages_of_group: list[RankMessages] = []  # of the process group, while there is one


def release(error: BaseException) -> None:
    """Clears the local variables in the frames of an exception. A model among them would keep the connections of its
    process group open for as long as the exception is kept, and the other ranks would wait for this one."""
    chain: BaseException | None = error
    while chain is not None:
        traceback.clear_frames(chain.__traceback__)
        chain = chain.__cause__ or chain.__context__
    gc.collect()


def listed(ranks: Iterable[int]) -> str:
    """Returns the ranks in words."""
    return ", ".join(f"rank {number}" for number in ranks)


def one_line(error: Exception) -> str:
    """Returns an error with its type and the first line of its message."""
    return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
