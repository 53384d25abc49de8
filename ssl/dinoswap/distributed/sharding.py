"""Handles tensors that are sharded over the ranks (torch's DTensor, as FSDP2 makes them) and ordinary tensors alike.

On disk they are safetensors files: each rank writes its shards, with their places in the whole tensors, and reads the
parts of any files that make up its current shards, by torch.distributed.checkpoint.
"""

import heapq
import warnings
from collections.abc import Iterable, Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from dinoswap.distributed import all_reduce_sum, rank, world_size


class _Reader(HuggingFaceStorageReader):
    """A reader that lists its folder once. torch's `load` asks for the metadata again, and of an error of the disk at
    that moment it logs a traceback and raises AssertionError."""

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self._known: Metadata | None = None

    def read_metadata(self) -> Metadata:
        if self._known is None:
            self._known = super().read_metadata()
        return self._known


class Part(NamedTuple):
    """A tensor, or a box cut out of one. `begin` is the index in the whole tensor of its first number."""

    tensor: Tensor
    begin: tuple[int, ...]


def own_share(tensor: Tensor) -> Tensor:
    """Returns this rank's shard of a sharded tensor, without a copy; any other tensor is returned as it is."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def norms(tensors: Sequence[Tensor]) -> Tensor:
    """Returns the L2 norms [len(tensors)] of the full tensors, computed from this rank's shards and one collective."""
    local_norms = torch.stack(torch._foreach_norm([own_share(tensor) for tensor in tensors]))
    sharded = next((tensor for tensor in tensors if isinstance(tensor, DTensor)), None)
    if sharded is None:
        return local_norms
    sizes = zip(sharded.device_mesh.shape, sharded.placements, strict=True)
    copies = prod(size for size, placement in sizes if placement.is_replicate())  # of each shard
    return (all_reduce_sum(local_norms.square()) / copies).sqrt()


def sharded_modules(model: nn.Module) -> list[FSDPModule]:
    """Returns the modules of a model whose weights are gathered when they are called."""
    return [module for module in model.modules() if isinstance(module, FSDPModule)]


def own_parts(tensors: Mapping[str, Tensor]) -> dict[str, Part]:
    """Returns what this rank stores of `tensors`, which have the same names and shapes on all ranks: its shards, and
    some of those that every rank holds in full. Together the ranks store each number once, and each about as many."""
    parts = {}
    loads = [(0, number) for number in range(world_size())]
    for name, tensor in sorted(tensors.items(), key=lambda named: -named[1].nbytes):
        if isinstance(tensor, DTensor):
            if _of_first_replica(tensor):
                (chunk,) = tensor.__create_chunk_list__()  # type: ignore[no-untyped-call]
                parts[name] = Part(tensor.to_local(), tuple(chunk.offsets))
            continue
        load, number = loads[0]
        heapq.heapreplace(loads, (load + tensor.nbytes, number))
        if number == rank():
            parts[name] = Part(tensor, (0,) * tensor.ndim)
    return parts


def _of_first_replica(tensor: DTensor) -> bool:
    """Tells whether this rank's shard is the first of its copies."""
    places = zip(tensor.device_mesh.get_coordinate() or (), tensor.placements, strict=True)
    return all(place == 0 for place, placement in places if placement.is_replicate())


def read_tensors(folder: Path, names: Iterable[str], like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns the tensors of these names from the safetensors files in `folder`, whichever ranks wrote them.

    If `like` has a sharded tensor of the same name and shape, this rank's shard is read to the device of that one.
    Other tensors are read in full, on the CPU. Raises LookupError for a name that is not there, OSError and ValueError
    for unreadable files.
    """
    reader = _Reader(str(folder))
    stored = reader.read_metadata().state_dict_metadata
    tensors = {name: _room(stored[name], like.get(name)) for name in names}
    warnings.filterwarnings("ignore", message="torch.distributed is disabled")
    try:
        load(tensors, storage_reader=reader, no_dist=True)
    except CheckpointException as error:
        raise _cause(error) from None
    return tensors


def _room(stored: Any, like: Tensor | None) -> Tensor:
    """Returns an empty tensor to read into; `stored` is torch's TensorStorageMetadata."""
    if isinstance(like, DTensor) and like.shape == stored.size:
        return torch.empty_like(like, dtype=stored.properties.dtype)
    return torch.empty(stored.size, dtype=stored.properties.dtype)


def _cause(error: CheckpointException) -> OSError | ValueError:
    """Returns an exception that says what happened on each rank, without the tracebacks."""
    failures = {number: reason for number, (reason, _) in error.failures.items()}
    text = "; ".join(f"rank {number}: {type(reason).__name__}: {reason}" for number, reason in failures.items())
    return (OSError if all(isinstance(reason, OSError) for reason in failures.values()) else ValueError)(text)
