"""Handles tensors that are sharded over the ranks (torch's DTensor, as FSDP2 makes them) and ordinary tensors alike.

On disk they are safetensors files of torch.distributed.checkpoint: each rank writes its shards, with their offsets in
the whole tensor, and reads the parts of any files that make up its current shards.
"""

import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.tensor import DTensor

from dinoswap.distributed import all_reduce_sum, rank

FILE_BYTES = 2**30
"""The largest size of a file in bytes, unless its only tensor is larger. A file is assembled in memory before it is
written."""


def own_share(tensor: Tensor) -> Tensor:
    """Returns this rank's shard of a sharded tensor, without a copy; any other tensor is returned as it is."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(tensor: Tensor) -> Tensor:
    """Returns the full tensor of a sharded one, on every rank; all ranks call it together."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def norms(tensors: Sequence[Tensor]) -> Tensor:
    """Returns the L2 norms [len(tensors)] of the full tensors, computed from this rank's shards and one collective."""
    local_norms = torch.stack(torch._foreach_norm([own_share(tensor) for tensor in tensors]))
    if not any(isinstance(tensor, DTensor) for tensor in tensors):
        return local_norms
    return all_reduce_sum(local_norms.square()).sqrt()


def write_tensors(folder: Path, tensors: Mapping[str, Tensor], *, alone: bool) -> None:
    """Writes `tensors` to safetensors files in `folder`, those of this rank under `files_of_rank`.

    All ranks call it with the same names. Each writes its shards, and of the tensors that every rank holds in full each
    writes some; with `alone` this process writes everything, and no tensor may be sharded. Raises OSError on every rank
    when the file system of one rank refuses.
    """
    separate = _separate(tensors)
    writer = HuggingFaceStorageWriter(str(folder), _file_numbers(separate), save_distributed=True)
    warnings.filterwarnings("ignore", message="torch.distributed is disabled")  # that is what no_dist asks for
    try:
        save(dict(separate), storage_writer=writer, no_dist=alone or not torch.distributed.is_initialized())
    except CheckpointException as error:
        raise _cause(error) from None


def files_of_rank(alone: bool) -> str:
    """Returns the glob pattern of the names of the files that this rank writes."""
    return f"shard-{1 if alone else rank() + 1:05d}-*.safetensors"


def read_tensors(folder: Path, names: Iterable[str], like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns the tensors of these names from the safetensors files in `folder`, whichever ranks wrote them.

    If `like` has a sharded tensor of the same name and shape, this rank's shard is read to the device of that one.
    Other tensors are read in full, on the CPU. Raises LookupError for a name that is not there, OSError and ValueError
    for unreadable files.
    """
    reader = HuggingFaceStorageReader(str(folder))
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


def _separate(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns the tensors as safetensors requires them: contiguous, and no two in the same memory."""
    separate, seen = {}, set()
    for name, tensor in tensors.items():
        tensor = tensor.detach().contiguous()
        memory = own_share(tensor).untyped_storage().data_ptr()
        separate[name] = tensor.clone() if memory in seen else tensor
        seen.add(memory)
    return separate


def _file_numbers(tensors: Mapping[str, Tensor]) -> dict[str, int]:
    """Returns the number of the file of each tensor, from 1. The first rank's numbers hold for all, as its shards are
    the largest."""
    numbers: dict[str, int] = {}
    number, size = 1, 0
    for name, tensor in tensors.items():
        size += own_share(tensor).nbytes
        if size > FILE_BYTES and numbers:
            number, size = number + 1, own_share(tensor).nbytes
        numbers[name] = number
    return numbers


def _cause(error: CheckpointException) -> OSError | ValueError:
    """Returns an exception that says what happened on each rank, without the tracebacks."""
    failures = {number: reason for number, (reason, _) in error.failures.items()}
    text = "; ".join(f"rank {number}: {type(reason).__name__}: {reason}" for number, reason in failures.items())
    return (OSError if all(isinstance(reason, OSError) for reason in failures.values()) else ValueError)(text)
