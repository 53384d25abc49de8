"""Checkpoints that survive `kill -9`, a full disk and a flipped bit, and know nothing of the number of ranks.

`<folder>/step-00000100/` holds the tensors in safetensors files, `state.json` (everything that is not a tensor, and the
config) and `meta.json` (size and SHA-256 of the others). The folder is written under a temporary name, every file is
fsynced, and only the rename makes it a checkpoint. Reading verifies every byte and never executes code.

What cannot be read is not deleted. Reading goes back past damaged checkpoints, but not past one that the disk does not
hand over or that another version wrote. Where all are damaged it is an error, and the run does not start over.

Each rank writes its part of the tensors. They are read whole, or as shards for any number of ranks. A run folder has
one run at a time, so a temporary folder in it was left by a process that died.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from dinoswap.distributed import RankFailed, gathered, is_main, together
from dinoswap.distributed.sharding import files_of_rank, read_tensors, whole, write_tensors
from dinoswap.run.checkpoint_folder import (
    FORMAT,
    META,
    UNFINISHED,
    CheckpointError,
    Damaged,
    begin,
    listed,
    meta_of,
    place,
    retain,
    set_aside_later,
    unreadable,
)

__all__ = ["Checkpoint", "CheckpointError", "newest", "newest_intact", "read", "save", "set_aside_later"]

STATE, TENSORS = "state.json", "*.safetensors"
TENSOR_KEY = "$tensor"  # {"$tensor": name} stands in state.json where the state holds a tensor
RESERVED = (TENSOR_KEY, "__metadata__")  # the second by safetensors

_ABSENT = "(default)"
_DTYPES = {
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16),
    *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool),
}
Entry = dict[str, int | str]


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that was read. `state` is what `save` was given, with tuples as lists and all tensors on the CPU but
    for the sharded ones."""

    path: Path
    step: int
    state: dict[str, Any]
    config: dict[str, Any]


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
            lambda: {path.name: _entry(path) for path in temporary.glob(files_of_rank(alone=not shared))}
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


def newest(folder: Path, report: Callable[[str], None]) -> Checkpoint | None:
    """Reads the newest intact checkpoint, with whole tensors. Returns None, or raises CheckpointError, where
    `newest_intact` does."""
    path = newest_intact(folder, report)
    return None if path is None else read(path, verify=False)


def newest_intact(folder: Path, report: Callable[[str], None]) -> Path | None:
    """Returns the newest checkpoint of which every byte verifies, None where there is none at all. `report` is called
    with a sentence for each damaged checkpoint that was passed over.

    Raises CheckpointError, with the reason for each, where all checkpoints are damaged: the user has to decide to start
    over. Also raises it for the first checkpoint that the disk does not hand over or that another version wrote, which
    is no reason to go back to an older one.
    """
    damaged = []
    for path in reversed(listed(folder).values()):
        try:
            _read_verified(path, verify=True)
        except Damaged as error:
            damaged.append(str(error))
        else:
            for reason in damaged:
                report(f"{reason}; going on from {path.name}")
            return path
    if damaged:
        raise CheckpointError(
            f"{'; '.join(damaged)}. There is no other checkpoint, and nothing was deleted: restore one of them, or "
            f"move {folder} away to begin at step 0"
        )
    return None


def read(path: Path, *, like: Mapping[str, Tensor] = MappingProxyType({}), verify: bool = True) -> Checkpoint:
    """Reads one checkpoint folder. Raises CheckpointError, with the reason, unless it is whole and undamaged.

    Where `like` has a sharded tensor under the '/'-joined name, only this rank's shard of it is read. Without `verify`
    no checksum is computed: for ranks that read what the first one has verified.
    """
    step, content = _read_verified(path, verify)
    try:
        tensors = read_tensors(path, _names(content["state"]), like)
        return Checkpoint(path, step, _join(content["state"], tensors), content["config"])
    except (OSError, ValueError, LookupError, SafetensorError) as error:
        raise unreadable(path, error) from error


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


def _names(tree: Any) -> list[str]:
    """Returns the names of all tensors that the state `tree` of a state.json refers to."""
    if isinstance(tree, dict) and TENSOR_KEY in tree:
        return [tree[TENSOR_KEY]]
    inside = tree.values() if isinstance(tree, dict) else tree if isinstance(tree, list) else ()
    return [name for item in inside for name in _names(item)]


def _join(tree: Any, tensors: Mapping[str, Tensor]) -> Any:
    """Returns the state that `_split` was given, with the `tensors` back in their places."""
    if isinstance(tree, list):
        return [_join(item, tensors) for item in tree]
    if not isinstance(tree, dict):
        return tree
    if TENSOR_KEY in tree:
        return tensors[tree[TENSOR_KEY]]
    return {key: _join(item, tensors) for key, item in tree.items()}


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
    return _entry(path)


def _entry(path: Path) -> Entry:
    """Returns the size in bytes and the SHA-256 of a file, as meta.json has them."""
    with path.open("rb") as file:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def _read_verified(path: Path, verify: bool) -> tuple[int, dict[str, Any]]:
    """Returns the step and the content of state.json. With `verify` every file is compared with its checksum first.
    Raises CheckpointError where the checkpoint is damaged or cannot be read."""
    meta = meta_of(path)
    try:
        if unknown := {file.name for file in path.glob(TENSORS)} - meta["files"].keys():
            raise ValueError(f"it did not have {', '.join(sorted(unknown))} when it was written")
        for name, entry in meta["files"].items() if verify else ():
            _verify(path / name, entry)
        content: dict[str, Any] = json.loads((path / STATE).read_bytes())
        return meta["step"], content
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise unreadable(path, error) from error


def _verify(path: Path, entry: Entry) -> None:
    size = path.stat().st_size
    if size != entry["bytes"]:  # cheap, so it is compared before the checksum
        raise ValueError(f"{path.name} has {size:,} bytes instead of {entry['bytes']:,}")
    if _entry(path) != entry:
        raise ValueError(f"{path.name} does not match its checksum")


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
