"""Tensors of which every rank holds a share (torch's DTensor, as FSDP2 makes them), and ordinary ones alike.

On disk they are safetensors files of torch.distributed.checkpoint: each rank writes its shares, with their place in the
whole, and reads whatever parts of other files make up the shares that it has now.
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
"""Of one file, or of its only tensor: a file is put together in memory before it is written."""


def own_share(tensor: Tensor) -> Tensor:
    """The memory of this rank's part of a sharded tensor; of any other the tensor itself."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(tensor: Tensor) -> Tensor:
    """All of a sharded tensor, on every rank: they call it together."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def norms(tensors: Sequence[Tensor]) -> Tensor:
    """L2 norms [len(tensors)] of whole tensors, from this rank's shares and one collective."""
    own = torch.stack(torch._foreach_norm([own_share(tensor) for tensor in tensors]))
    if not any(isinstance(tensor, DTensor) for tensor in tensors):
        return own
    return all_reduce_sum(own.square()).sqrt()


def write_tensors(folder: Path, tensors: Mapping[str, Tensor], *, alone: bool) -> None:
    """Write `tensors` into safetensors files in `folder`, those of this rank under `files_of_rank`.

    All ranks call it with the same names. Each writes its shares, and of the tensors that all have whole a part of them
    all; `alone`, this process writes everything, and none may be sharded. Raises OSError where the file system of one
    rank refuses, on every rank.
    """
    separate = _separate(tensors)
    writer = HuggingFaceStorageWriter(str(folder), _file_numbers(separate), save_distributed=True)
    warnings.filterwarnings("ignore", message="torch.distributed is disabled")  # that is what no_dist asks for
    try:
        save(dict(separate), storage_writer=writer, no_dist=alone or not torch.distributed.is_initialized())
    except CheckpointException as error:
        raise _cause(error) from None


def files_of_rank(alone: bool) -> str:
    """The pattern of the names."""
    return f"shard-{1 if alone else rank() + 1:05d}-*.safetensors"


def read_tensors(folder: Path, names: Iterable[str], like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of these names from the safetensors files in `folder`, whichever ranks wrote them.

    Where `like` has a sharded tensor of the same shape, this rank's share is read, to that one's device. Others are
    whole and on the CPU. Raises LookupError for a name that is not there, OSError and ValueError for unreadable files.
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
    """Memory for what is stored, of which torch's TensorStorageMetadata tells."""
    if isinstance(like, DTensor) and like.shape == stored.size:
        return torch.empty_like(like, dtype=stored.properties.dtype)
    return torch.empty(stored.size, dtype=stored.properties.dtype)


def _separate(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """As safetensors wants them: contiguous, and no two in the same memory."""
    separate, seen = {}, set()
    for name, tensor in tensors.items():
        tensor = tensor.detach().contiguous()
        memory = own_share(tensor).untyped_storage().data_ptr()
        separate[name] = tensor.clone() if memory in seen else tensor
        seen.add(memory)
    return separate


def _file_numbers(tensors: Mapping[str, Tensor]) -> dict[str, int]:
    """By name, from 1; the first rank's count for all, as its shares are the largest."""
    numbers: dict[str, int] = {}
    number, size = 1, 0
    for name, tensor in tensors.items():
        size += own_share(tensor).nbytes
        if size > FILE_BYTES and numbers:
            number, size = number + 1, own_share(tensor).nbytes
        numbers[name] = number
    return numbers


def _cause(error: CheckpointException) -> OSError | ValueError:
    """What happened on the ranks, without their tracebacks."""
    failures = {number: reason for number, (reason, _) in error.failures.items()}
    text = "; ".join(f"rank {number}: {type(reason).__name__}: {reason}" for number, reason in failures.items())
    return (OSError if all(isinstance(reason, OSError) for reason in failures.values()) else ValueError)(text)
