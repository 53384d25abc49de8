"""Work on several ranks: processes that form a gloo group."""

import multiprocessing
import os
import socket
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed
from torch.distributed.tensor import DTensor

from compositions import remember_compositions

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["dinoswap.run.job", "torch._dynamo"])  # once, in a server that forks the ranks


def on_ranks(work: Callable[[int], Any], folder: Path, world_size: int = 2, seconds: float = 200) -> list[Any]:
    """What `work(rank)`, a function of a module, returns on each rank of a group. A rank that waits for ever fails the
    test."""
    return _returned(partial(_in_a_group, work, world_size, folder), folder, world_size, seconds)


def launched(work: Callable[[int], Any], folder: Path, world_size: int = 2, seconds: float = 200) -> list[Any]:
    """The same of processes that have been told what torchrun tells its own, and form no group yet."""
    shared = {"WORLD_SIZE": str(world_size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    return _returned(partial(_told, work, shared), folder, world_size, seconds)


def _returned(work: Callable[[int], Any], folder: Path, world_size: int, seconds: float) -> list[Any]:
    ranks = [_context.Process(target=_rank, args=(work, r, folder)) for r in range(world_size)]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join(timeout=seconds)
    hanging = [rank for rank in ranks if rank.is_alive()]
    for rank in hanging:
        rank.kill()
    assert not hanging, "a rank hangs"
    assert [rank.exitcode for rank in ranks] == [0] * world_size
    return [torch.load(folder / f"{r}.pt") for r in range(world_size)]


def _rank(work: Callable[[int], Any], rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    remember_compositions()
    torch.save(work(rank), folder / f"{rank}.pt")


def _in_a_group(work: Callable[[int], Any], world_size: int, folder: Path, rank: int) -> Any:
    distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world_size)
    try:
        return work(rank)
    finally:
        distributed.destroy_process_group()


def _told(work: Callable[[int], Any], variables: dict[str, str], rank: int) -> Any:
    os.environ.update(variables, RANK=str(rank), LOCAL_RANK=str(rank))
    return work(rank)


def whole(tensor: Tensor) -> Tensor:
    """The full tensor of a sharded one; all ranks ask for it together."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
