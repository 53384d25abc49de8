"""The process group of a run: joined by what torchrun or SLURM put into the environment, and left with a word on who
failed.

torchrun sets RANK, LOCAL_RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT; the tasks of a SLURM step are told the same
from SLURM's own variables. Hosts talk over gloo, GPUs over nccl.

When a rank is killed or hangs, the others fail in their next collective: at once where the connection breaks, else
after the timeout. What torch raises there does not say who is missing. So each rank leaves a word in the group's
key-value store before it ends, and reads those of the others.
"""

import contextlib
import os
import socket
import subprocess
import time
from collections.abc import Iterator
from datetime import timedelta

import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from dinoswap.distributed import RankFailed

FIRST_PORT, PORTS = 20000, 20000
GRACE_SECONDS = 10.0
"""In which the ranks that still run notice that a collective failed, once one has."""
COLLECTIVE = ("gloo", "NCCL", "Timed out", "timed out", "Connection")
"""Words in the message of a collective that another rank left."""

_last_words: list[Store] = []  # of the process group, while there is one


def launched_ranks() -> int:
    """How many processes were started for this run; SLURM's tasks are told what torchrun tells its own."""
    tasks = int(os.environ.get("SLURM_STEP_NUM_TASKS", "1"))
    if "WORLD_SIZE" not in os.environ and tasks > 1:
        os.environ.update(slurm_variables())
    return int(os.environ.get("WORLD_SIZE", "1"))


def slurm_variables() -> dict[str, str]:
    """What torchrun would set for this task of a SLURM step. The port depends on the job, so that two of them can share
    a node."""
    variables = os.environ
    nodes = variables.get("SLURM_STEP_NODELIST") or variables["SLURM_JOB_NODELIST"]
    listed = subprocess.run(["scontrol", "show", "hostnames", nodes], check=True, capture_output=True, text=True)
    return {
        "RANK": variables["SLURM_PROCID"],
        "LOCAL_RANK": variables["SLURM_LOCALID"],
        "WORLD_SIZE": variables.get("SLURM_STEP_NUM_TASKS") or variables["SLURM_NTASKS"],
        "MASTER_ADDR": listed.stdout.split()[0],
        "MASTER_PORT": str(FIRST_PORT + int(variables["SLURM_JOB_ID"]) % PORTS),
    }


def local_rank() -> int:
    """Which of this node's processes, and so which of its GPUs."""
    return int(os.environ.get("LOCAL_RANK", "0"))


@contextlib.contextmanager
def process_group(timeout_minutes: float) -> Iterator[None]:
    """Of the processes that were launched; nothing for a single one."""
    if launched_ranks() == 1:
        yield
        return
    timeout = timedelta(minutes=timeout_minutes)
    store, rank, world_size = next(rendezvous("env://", timeout=timeout))
    # torchrun may keep one store over its restarts, with the addresses of ranks that are no more
    store = PrefixStore(f"attempt {os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    if torch.cuda.is_available():
        torch.cuda.set_device(local_rank())
    dist.init_process_group(backend, store=store, rank=rank, world_size=world_size, timeout=timeout)
    _last_words.append(PrefixStore("last words", store))
    try:
        yield
    except Exception as error:
        if (reason := explained(error)) is not error:
            raise reason from error
        raise
    finally:
        _last_words.clear()
    dist.barrier()  # the first rank keeps the store: it must not be gone while another one still reads
    dist.destroy_process_group()


def explained(error: Exception) -> Exception:
    """Of an exception that ends this rank: leaves word of it, or, where a collective raised it, RankFailed with what
    the other ranks left."""
    if not _last_words or isinstance(error, RankFailed):
        return error
    words, rank = _last_words[0], dist.get_rank()
    collective = isinstance(error, RuntimeError) and any(word in str(error) for word in COLLECTIVE)
    try:
        words.set(str(rank), "" if collective else f"rank {rank} on {socket.gethostname()}: {one_line(error)}")
        return RankFailed(_heard(words) or f"a collective failed on every rank: {error}") if collective else error
    except dist.DistError:
        return RankFailed("no answer from rank 0, which keeps the group's store: killed, or its node is lost")


def one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"


def _heard(words: Store) -> str:
    """Who failed, by the words of those that left one and the silence of the others."""
    heard: dict[int, str] = {}
    deadline = time.monotonic() + GRACE_SECONDS
    while len(heard) < dist.get_world_size() and time.monotonic() < deadline:
        for other in set(range(dist.get_world_size())) - set(heard):
            if words.check([str(other)]):
                heard[other] = words.get(str(other)).decode()
        time.sleep(0.1)
    missing = [f"rank {other}" for other in range(dist.get_world_size()) if other not in heard]
    reasons = [text for text in heard.values() if text]
    if missing:
        reasons.append(f"no answer from {', '.join(missing)}: killed, lost or hanging")
    return "; ".join(reasons)
