"""Checkpoints that survive `kill -9`, a full disk and a flipped bit, and know nothing of the number of ranks.

`<folder>/step-00000100/` holds the tensors in safetensors files, `state.json` (everything that is not a tensor, and the
config) and `meta.json` (size and SHA-256 of the others). The folder is written under a temporary name, every file is
fsynced, and only the rename makes it a checkpoint. `files/checkpoint.py` reads it.

The state is copied to the memory of the host, each rank its part of the tensors, and written from there while the
training goes on. It is read whole, or as shards for any number of ranks. A run folder has one run at a time, so a
temporary folder in it was left by a process that died.
"""

import json
import logging
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from dinoswap.distributed import RankFailed, is_main, rank
from dinoswap.distributed.background import Background, OnAll
from dinoswap.distributed.sharding import Part, own_parts
from dinoswap.files.checkpoint import STATE, TENSOR_KEY, Checkpoint, Entry, newest, newest_intact, read
from dinoswap.files.checkpoint_folder import (
    FORMAT,
    META,
    UNFINISHED,
    CheckpointError,
    begin,
    complete,
    listed,
    place,
    retain,
    set_aside_later,
)
from dinoswap.files.tensor_file import DTYPES, tensor_file
from dinoswap.files.writing import write_new
from dinoswap.run.host_copies import HostCopies

__all__ = [
    "Checkpoint", "CheckpointError", "Writer", "complete", "newest", "newest_intact", "read", "save", "set_aside_later",
]  # fmt: skip

RESERVED = (TENSOR_KEY, "__metadata__")  # the second by safetensors

_ABSENT = "(default)"

_log = logging.getLogger(__name__)


class Writer:
    """Writes checkpoints in the background, one at a time; a context manager, which waits for the last one.

    Its memory on the host, of the size of this rank's part of the state, is used again for every checkpoint.
    """

    def __init__(self) -> None:
        self._copies, self._background = HostCopies(), Background()

    def save(self, folder: Path, step: int, state: Mapping[str, Any], *, config: Mapping[str, Any], keep: int) -> Path:
        """Copies the state after `step` steps and begins to write it. Once it is written, all but the last `keep`
        checkpoints are deleted. Returns the new folder, which is a checkpoint when `wait` returns.

        All ranks call it together with the same folder, and each writes a part. `state` nests mappings (str keys
        without '/') and lists of tensors, int, float, str, bool and None. Tensors that share storage load as separate
        ones. Raises TypeError or ValueError for a state that can't be stored, and what `wait` raises.
        """
        if keep < 1:
            raise ValueError(f"keep={keep}: at least one checkpoint must be kept; set it to 1 or more")
        tensors: dict[str, Tensor] = {}
        tree = _split(state, "", tensors)
        content = json.dumps({"config": config, "state": tree}).encode()
        needed = len(content) + sum(tensor.nbytes for tensor in tensors.values())
        self.wait()  # for what is in the memory of the copies
        own = own_parts(tensors)
        copies = self._copies.take({name: part.tensor for name, part in own.items()})
        parts = {name: Part(copies[name], part.begin) for name, part in own.items()}
        saved = _Saved(folder / f"step-{step:08d}", step, parts, content, needed)

        def write(on_all: OnAll) -> None:
            self._copies.wait()
            saved.write(on_all, keep)

        self._background.start(write)
        return saved.target

    def wait(self) -> None:
        """Waits until the checkpoint that was begun last is complete. Raises CheckpointError, on every rank and once,
        where the file system of one refused it."""
        self._background.wait()

    def __enter__(self) -> "Writer":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Waits, but not after Ctrl-C. What `wait` raises is only logged where another error ends the context."""
        if error is None:
            self.wait()
        elif not isinstance(error, KeyboardInterrupt):
            try:
                self.wait()
            except Exception as refused:
                _log.warning("%s", refused)


def save(folder: Path, step: int, state: Mapping[str, Any], *, config: Mapping[str, Any], keep: int) -> Path:
    """Writes a checkpoint and returns its folder once it is complete, see `Writer`."""
    with Writer() as writer:
        return writer.save(folder, step, state, config=config, keep=keep)


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
        if value.dtype not in DTYPES or value.layout != torch.strided:
            raise TypeError(f"state {path}: no checkpoint format for a {value.layout} tensor of {value.dtype}")
        tensors[path] = value.detach()
        return {TENSOR_KEY: path}
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str) or "/" in key or key in RESERVED:
                raise ValueError(f"state {path}: key {key!r} must be a string without '/', and none of {RESERVED}")
        return {key: _split(item, f"{path}/{key}".lstrip("/"), tensors) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_split(item, f"{path}/{index}", tensors) for index, item in enumerate(value)]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"state {path}: a checkpoint can't hold a {type(value).__name__}; make it a number, string or list")


@dataclass(frozen=True)
class _Saved:
    """A state that is written as a checkpoint: this rank's parts of its tensors, and the content of state.json.
    `needed`: the bytes that all of it takes."""

    target: Path
    step: int
    parts: Mapping[str, Part]
    content: bytes
    needed: int

    def write(self, on_all: OnAll, keep: int) -> None:
        """Writes the checkpoint, each rank a file of tensors, and deletes all but the last `keep`. Raises
        CheckpointError on every rank when the file system of one refuses."""
        temporary = self.target.with_name(f"{self.target.name}{UNFINISHED}")
        try:
            on_all(lambda: begin(temporary) if is_main() else None)
            entries = on_all(lambda: write_new(temporary / _file_of(rank()), tensor_file(self.parts)))
            files = {_file_of(number): entry for number, entry in enumerate(entries)}
            on_all(lambda: self._finish(temporary, files) if is_main() else None)
        except (OSError, RankFailed) as error:
            if is_main():
                shutil.rmtree(temporary, ignore_errors=True)
            raise CheckpointError(_failure(self.target, self.needed, error)) from error
        if is_main():
            retain(self.target.parent, self.step, keep)

    def _finish(self, temporary: Path, files: Mapping[str, Entry]) -> None:
        """Writes state.json and meta.json beside the tensors and renames the folder, which makes it a checkpoint."""
        state = write_new(temporary / STATE, [self.content])
        meta = {"format": FORMAT, "step": self.step, "files": {**files, STATE: state}}
        write_new(temporary / META, [json.dumps(meta).encode()])
        place(temporary, self.target)


def _file_of(rank: int) -> str:
    """Returns the name of the file of a rank's tensors."""
    return f"shard-{rank + 1:05d}-model-00001-of-00001.safetensors"


def _failure(target: Path, needed: int, error: Exception) -> str:
    """Returns the message for a checkpoint that could not be written: why, the space it needs in bytes, what is
    left."""
    try:
        last = list(listed(target.parent).values())[-1:]
        free = f", {shutil.disk_usage(next(parent for parent in target.parents if parent.exists())).free:,} free"
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
