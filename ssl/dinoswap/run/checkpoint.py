"""Checkpoints that survive `kill -9`, a full disk and a flipped bit, and know nothing of the number of ranks.

`<folder>/step-00000100/` holds the tensors in safetensors files, `state.json` (everything that is not a tensor, and the
config) and `meta.json` (size and SHA-256 of the others). The folder is written under a temporary name, every file is
fsynced, and only the rename makes it a checkpoint. `files/checkpoint.py` reads it.

Each rank writes its part of the tensors. They are read whole, or as shards for any number of ranks. A run folder has
one run at a time, so a temporary folder in it was left by a process that died.
"""

import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dinoswap.distributed import RankFailed, gathered, is_main, together
from dinoswap.distributed.sharding import files_of_rank, whole, write_tensors
from dinoswap.files.checkpoint import STATE, TENSOR_KEY, Checkpoint, Entry, entry_of, newest, newest_intact, read
from dinoswap.files.checkpoint_folder import (
    FORMAT,
    META,
    UNFINISHED,
    CheckpointError,
    begin,
    listed,
    place,
    retain,
    set_aside_later,
)

__all__ = ["Checkpoint", "CheckpointError", "newest", "newest_intact", "read", "save", "set_aside_later"]

RESERVED = (TENSOR_KEY, "__metadata__")  # the second by safetensors

_ABSENT = "(default)"
_DTYPES = {
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16),
    *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool),
}


def save(
    folder: Path, step: int, state: Mapping[str, Any], *, config: Mapping[str, Any], keep: int, shared: bool = False
) -> Path:
    """Writes the state after `step` steps, then delete all but the last `keep` checkpoints. Returns the new folder.

    A `shared` checkpoint is written by all ranks: they call `save` with the same folder, each writes a part of the
    state, and the checkpoint is complete once all have. Otherwise each process writes a whole one into its own folder.

    `state` nests mappings (str keys without '/') and lists of tensors, int, float, str, bool and None. Tensors that
    share storage load as separate ones. Raises CheckpointError, on every rank, when the file system of one refuses,
    TypeError or ValueError for a state that can't be stored.
    """
    if keep < 1:
        raise ValueError(f"keep={keep}: at least one checkpoint must be kept; set it to 1 or more")
    tensors: dict[str, Tensor] = {}
    tree = _split(state, "", tensors)
    content = json.dumps({"config": config, "state": tree}).encode()
    target = folder / f"step-{step:08d}"
    temporary = folder / f"{target.name}{UNFINISHED}"
    first = is_main() or not shared
    collectively: Callable[[Callable[[], Any]], Any] = together if shared else (lambda work: work())
    try:
        collectively(lambda: begin(temporary) if first else None)
        write_tensors(temporary, tensors if shared else {n: whole(t) for n, t in tensors.items()}, alone=not shared)
        entries = collectively(
            lambda: {path.name: entry_of(path) for path in temporary.glob(files_of_rank(alone=not shared))}
        )
        files = {name: entry for part in (gathered(entries) if shared else [entries]) for name, entry in part.items()}
        collectively(lambda: _finish(temporary, target, step, files, content) if first else None)
    except (OSError, RankFailed) as error:
        if first:
            shutil.rmtree(temporary, ignore_errors=True)
        needed = len(content) + sum(tensor.nbytes for tensor in tensors.values())
        raise CheckpointError(_failure(target, needed, error)) from error
    if first:
        retain(folder, step, keep)
    return target


def named_tensors(state: Mapping[str, Any]) -> dict[str, Tensor]:
    """Returns the tensors in nested mappings and lists, by their '/'-joined names."""
    tensors: dict[str, Tensor] = {}
    _split(state, "", tensors)
    return tensors


def config_difference(old: Mapping[str, Any], new: Mapping[str, Any], ignore: Sequence[str] = ()) -> list[str]:
    """Returns 'key: old -> new' for each dotted key that differs. `ignore` names keys, or groups of keys, to leave
    out."""
    before, after = _flat(old), _flat(new)
    pairs = {key: (before.get(key, _ABSENT), after.get(key, _ABSENT)) for key in before | after}
    ignored = {key for key in pairs for name in ignore if key == name or key.startswith(f"{name}.")}
    return [f"{key}: {was} -> {now}" for key, (was, now) in pairs.items() if was != now and key not in ignored]


def require_same_config(checkpoint: Checkpoint, config: Mapping[str, Any], ignore: Sequence[str] = ()) -> None:
    """Raises ValueError, with the difference, when the checkpoint was written under another config."""
    if difference := config_difference(checkpoint.config, config, ignore):
        lines = "\n  ".join(difference)
        raise ValueError(
            f"{checkpoint.path} was written under another config (checkpoint -> now):\n  {lines}\n"
            "Set these keys back to continue that run, or give the new run its own results_dir."
        )


def _split(value: Any, path: str, tensors: dict[str, Tensor]) -> Any:
    """Returns `value` as JSON, and adds its tensors to `tensors` under their '/'-joined path. Raises TypeError or
    ValueError for what a checkpoint cannot hold."""
    if isinstance(value, Tensor):
        if value.dtype not in _DTYPES or value.layout != torch.strided:
            raise TypeError(f"state {path}: no checkpoint format for a {value.layout} tensor of {value.dtype}")
        tensors[path] = value.detach()
        return {TENSOR_KEY: path}
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str) or "/" in key or key in RESERVED:
                raise ValueError(f"state {path}: key {key!r} must be a string without '/', and none of {RESERVED}")
        return {key: _split(item, f"{path}/{key}".lstrip("/"), tensors) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_split(item, f"{path}/{i}", tensors) for i, item in enumerate(value)]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"state {path}: a checkpoint can't hold a {type(value).__name__}; make it a number, string or list")


def _finish(temporary: Path, target: Path, step: int, files: Mapping[str, Entry], content: bytes) -> None:
    """Writes state.json and meta.json beside the tensors and renames the folder, which makes it a checkpoint."""
    meta = {"format": FORMAT, "step": step, "files": {**files, STATE: _write(temporary / STATE, content)}}
    _write(temporary / META, json.dumps(meta).encode())
    place(temporary, target)


def _write(path: Path, content: bytes) -> Entry:
    with path.open("xb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    return entry_of(path)


def _failure(target: Path, needed: int, error: Exception) -> str:
    """Returns the message for a checkpoint that could not be written: why, the space it needs in bytes, what is
    left."""
    try:
        last = list(listed(target.parent).values())[-1:]
        free = f", {shutil.disk_usage(next(p for p in target.parents if p.exists())).free:,} free"
    except (OSError, CheckpointError):  # nothing else can be read from this disk either
        last, free = [], ""
    intact = f"{last[0].name} is the last complete checkpoint and is intact" if last else "there is no earlier one"
    return (
        f"checkpoint {target} could not be written: {error} ({needed:,} bytes needed{free}); {intact}. "
        "Make room or restore access, then give the same command again."
    )


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    """Returns the leaves of a config by dotted key."""
    if isinstance(value, Mapping):
        below = [_flat(item, f"{prefix}.{key}" if prefix else str(key)) for key, item in value.items()]
        return {key: leaf for leaves in below for key, leaf in leaves.items()}
    return {prefix: list(value) if isinstance(value, tuple) else value}  # a list, as JSON gives it back
