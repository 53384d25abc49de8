"""Work on several ranks: processes that form a gloo group."""

import multiprocessing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import distributed

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["dinoswap.job", "torch._dynamo"])  # imported once, in a server that forks the ranks


def on_ranks(work: Callable[[int], Any], folder: Path, world_size: int = 2, seconds: float = 60) -> list[Any]:
    """What `work(rank)`, a function of a module, returns on each rank. A rank that waits for ever fails the test."""
    ranks = [_context.Process(target=_rank, args=(work, r, world_size, folder)) for r in range(world_size)]
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


def _rank(work: Callable[[int], Any], rank: int, world_size: int, folder: Path) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world_size)
    torch.save(work(rank), folder / f"{rank}.pt")
    distributed.destroy_process_group()
