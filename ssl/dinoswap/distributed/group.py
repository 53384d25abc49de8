"""The process group of a run: formed by the processes that were launched, and left with a word on who failed.

Hosts talk over gloo, GPUs over nccl, where every rank has one.

When a rank is killed or hangs, the others fail in their next collective: at once where the connection breaks, else
after the timeout. What torch raises there does not say who is missing. So each rank leaves a word in a key-value store
before it ends, and reads those of the others. Whatever ends the group, its connections are closed, so that nobody waits
for a rank that is gone and the next job in the same processes forms its own.
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
"""In which the ranks that still run notice that a collective failed, once one has."""
EXCUSE_SECONDS = 20.0
"""In which a rank that cannot begin looks for those that wait for it."""
FAILED = "failed: "
POLL_SECONDS = 0.1
COLLECTIVE = ("gloo", "NCCL", "Timed out", "timed out", "Connection")
"""Words in the message of a collective that another rank left."""


@contextlib.contextmanager
def process_group(timeout_minutes: float) -> Iterator[None]:
    """Of the processes that were launched; nothing for a single one. Raises RankFailed where one does not come within
    `timeout_minutes`, or leaves. The function that enters it should hold no model: see `release`."""
    if launched_ranks() == 1:
        yield
        return
    timeout = timedelta(minutes=timeout_minutes)
    words = LastWords(*joined(timeout))
    try:
        backend = backend_of(words.present("gpu" if torch.cuda.is_available() else "cpu", timeout))
        if torch.cuda.is_available():
            torch.cuda.set_device(local_device())
        dist.init_process_group(
            backend, store=words.store, rank=words.rank, world_size=words.world_size, timeout=timeout
        )
        _last_words.append(words)
        yield
    except Exception as error:
        reason = explained(error)
        release(error)
        if reason is not error:
            raise reason from error
        raise
    finally:
        _last_words.clear()
        if dist.is_initialized():
            dist.destroy_process_group()
        words.farewell()


def excuse(reason: str) -> None:
    """Where this process ends before it has come to the group: tell those that wait for it why."""
    if launched_ranks() > 1 and not _jobs_begun:
        with contextlib.suppress(RankFailed, ValueError):  # nobody waits, or there is no place to meet
            words = LastWords(*joined(timedelta(seconds=EXCUSE_SECONDS)))
            words.store.set(f"present {words.rank}", FAILED + reason)
            words.farewell()


def joined(timeout: timedelta) -> tuple[Store, int, int]:
    """The store of the next job that the launched processes do together, this one's rank, and how many they are."""
    # torchrun may keep one store over its restarts, with the addresses of ranks that are no more
    _jobs_begun.append(attempt := f"attempt {os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}")
    store, rank, world_size = _joined(os.environ.get("MASTER_ADDR"), os.environ.get("MASTER_PORT"), timeout)
    return PrefixStore(f"{attempt}, job {len(_jobs_begun)}", store), rank, world_size


@functools.cache
def _joined(address: str | None, port: str | None, timeout: timedelta) -> tuple[Store, int, int]:
    """Kept for all jobs of this process: the first rank's store holds the port."""
    try:
        store, rank, world_size = next(rendezvous("env://", timeout=timeout))
    except dist.DistError as error:
        raise RankFailed(
            f"the processes of this run did not find each other at MASTER_ADDR={address}, MASTER_PORT={port} within "
            f"{timeout.total_seconds() / 60:g} minutes (distributed.timeout_minutes): {one_line(error)}"
        ) from error
    return store, rank, world_size


def backend_of(devices: Iterable[str]) -> str:
    """For ranks with these devices."""
    return "cpu:gloo,cuda:nccl" if set(devices) == {"gpu"} else "gloo"


def explained(error: Exception) -> Exception:
    """Of an exception that ends this rank: leaves word of it, or, where a collective raised it, RankFailed with what
    the other ranks left."""
    if not _last_words or isinstance(error, RankFailed):
        return error
    words = _last_words[0]
    collective = isinstance(error, RuntimeError) and any(word in str(error) for word in COLLECTIVE)
    try:
        words.leave("" if collective else f"rank {words.rank} on {socket.gethostname()}: {one_line(error)}")
        return RankFailed(words.heard() or f"a collective failed on every rank: {error}") if collective else error
    except dist.DistError:
        return RankFailed("no answer from rank 0, which keeps the group's store: killed, or its node is lost")


class LastWords:
    """What ranks say as they come, and leave for the others as they end, in the store of the group."""

    def __init__(self, store: Store, rank: int, world_size: int) -> None:
        self.store, self.rank, self.world_size = store, rank, world_size
        self.deadline: float | None = None  # of waiting for the others, once something failed

    def present(self, word: str, timeout: timedelta) -> list[str]:
        """The words with which all ranks come, by rank. Raises RankFailed with the reason of one that does not."""
        self.store.set(f"present {self.rank}", word)
        if missing := self._wait_for("present ", time.monotonic() + timeout.total_seconds()):
            raise RankFailed(f"no answer from {listed(missing)}: ended before it began, or hanging")
        words = [self.store.get(f"present {other}").decode() for other in range(self.world_size)]
        failed = {other: word for other, word in enumerate(words) if word.startswith(FAILED)}
        if failed:
            raise RankFailed("; ".join(f"rank {other}: {word.removeprefix(FAILED)}" for other, word in failed.items()))
        return words

    def leave(self, word: str) -> None:
        """Why this rank ends; nothing where another one is the reason."""
        self.store.set(f"word {self.rank}", word)
        self.deadline = self.deadline or time.monotonic() + GRACE_SECONDS

    def heard(self) -> str:
        """Who failed, by the words of those that left one and the silence of the others."""
        missing = self._wait_for("word ", self.deadline)
        found = [self.store.get(f"word {other}").decode() for other in range(self.world_size) if other not in missing]
        silent = [f"no answer from {listed(missing)}: killed, lost or hanging"] if missing else []
        return "; ".join([*filter(None, found), *silent])

    def farewell(self) -> None:
        """Last of all. The first rank keeps the store: it must not be gone while another one still reads."""
        self.deadline = self.deadline or time.monotonic() + GRACE_SECONDS
        with contextlib.suppress(dist.DistError):  # the first rank has waited long enough, or was killed
            self.store.set(f"left {self.rank}", "")
            if self.rank == 0:
                self._wait_for("left ", self.deadline)

    def _wait_for(self, prefix: str, deadline: float | None) -> list[int]:
        """For a key of each rank; the ranks that have none by the deadline."""
        while missing := [other for other in range(self.world_size) if not self.store.check([f"{prefix}{other}"])]:
            if deadline is None or time.monotonic() > deadline:
                break
            time.sleep(POLL_SECONDS)
        return missing


_jobs_begun: list[str] = []  # by this process: all ranks begin the same ones
_last_words: list[LastWords] = []  # of the process group, while there is one


def release(error: BaseException) -> None:
    """Drop what the frames of an exception hold. A model among it would keep the connections of its process group open
    for as long as somebody keeps the exception, and the other ranks would wait for this one."""
    chain: BaseException | None = error
    while chain is not None:
        traceback.clear_frames(chain.__traceback__)
        chain = chain.__cause__ or chain.__context__
    gc.collect()


def listed(ranks: Iterable[int]) -> str:
    return ", ".join(f"rank {number}" for number in ranks)


def one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
