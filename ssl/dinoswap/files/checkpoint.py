"""Reads checkpoints, verifying every byte and never executing code; run/checkpoint.py writes them, and says what is in
the folder of one.

What cannot be read is not deleted. Reading goes back past damaged checkpoints, but not past one that the disk does not
hand over or that another version wrote. Where all are damaged it is an error, and the run does not start over.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from safetensors import SafetensorError
from torch import Tensor

from dinoswap.distributed import on_all, on_main, rank, world_size
from dinoswap.distributed.sharding import read_tensors
from dinoswap.files.checkpoint_folder import CheckpointError, Damaged, listed, meta_of, unreadable

STATE, TENSORS = "state.json", "*.safetensors"
TENSOR_KEY = "$tensor"  # {"$tensor": name} stands in state.json where the state holds a tensor

EVERY_FILE, NO_FILE = slice(None), slice(0)

Entry = dict[str, int | str]


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that was read. `state` is what `save` was given, with tuples as lists and all tensors on the CPU but
    for the sharded ones."""

    path: Path
    step: int
    state: dict[str, Any]
    config: dict[str, Any]


def newest(folder: Path, report: Callable[[str], None]) -> Checkpoint | None:
    """Reads the newest intact checkpoint, with whole tensors. Returns None, or raises CheckpointError, where
    `newest_intact` does."""
    path = newest_intact(folder, report)
    return None if path is None else read(path, verify=False)


def newest_intact(folder: Path, report: Callable[[str], None]) -> Path | None:
    """Returns the newest checkpoint of which every byte verifies, None where there is none at all. `report` is called
    with a sentence for each damaged checkpoint that was passed over. All ranks call it together: each verifies a share
    of the files, and all come to the same result.

    Raises CheckpointError, with the reason for each, where all checkpoints are damaged: the user has to decide to start
    over. Also raises it for the first checkpoint that the disk does not hand over or that another version wrote, which
    is no reason to go back to an older one.
    """
    damaged = []
    for path in reversed(on_main(lambda: listed(folder)).values()):
        try:
            _verify_together(path)
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


def read(
    path: Path,
    *,
    like: Mapping[str, Tensor] = MappingProxyType({}),
    verify: bool = True,
    part: str | None = None,
) -> Checkpoint:
    """Reads one checkpoint folder. Raises CheckpointError, with the reason, unless it is whole and undamaged.

    Where `like` has a sharded tensor under the '/'-joined name, only this rank's shard of it is read. Without `verify`
    no checksum is computed, for what has been verified before. With `part` only that entry of the state is read.
    """
    step, content = _read_verified(path, EVERY_FILE if verify else NO_FILE)
    try:
        state = content["state"] if part is None else {part: content["state"][part]}
        tensors = read_tensors(path, _names(state), like)
        return Checkpoint(path, step, _join(state, tensors), content["config"])
    except (OSError, ValueError, LookupError, SafetensorError) as error:
        raise unreadable(path, error) from error


def _verify_together(path: Path) -> None:
    """Verifies a checkpoint, this rank every n-th file. Raises CheckpointError on all ranks, the same one, where a rank
    finds it damaged or cannot read it; the latter counts more, as it may be intact."""

    def refused() -> CheckpointError | None:
        try:
            _read_verified(path, slice(rank(), None, world_size()))
        except CheckpointError as error:
            return error
        return None

    errors = [error for error in on_all(refused) if error is not None]
    if errors:
        raise min(errors, key=lambda error: isinstance(error, Damaged))


def _read_verified(path: Path, verified: slice) -> tuple[int, dict[str, Any]]:
    """Returns the step and the content of state.json. The `verified` ones among the files are compared with their
    checksums first. Raises CheckpointError where the checkpoint is damaged or cannot be read."""
    meta = meta_of(path)
    try:
        if unknown := {file.name for file in path.glob(TENSORS)} - meta["files"].keys():
            raise ValueError(f"it did not have {', '.join(sorted(unknown))} when it was written")
        for name, entry in list(meta["files"].items())[verified]:
            _verify(path / name, entry)
        content: dict[str, Any] = json.loads((path / STATE).read_bytes())
        return meta["step"], content
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise unreadable(path, error) from error


def _verify(path: Path, entry: Entry) -> None:
    """Raises ValueError where a file has not the size and the checksum of its entry."""
    size = path.stat().st_size
    if size != entry["bytes"]:  # cheap, so it is compared before the checksum
        raise ValueError(f"{path.name} has {size:,} bytes instead of {entry['bytes']:,}")
    with path.open("rb") as file:
        if hashlib.file_digest(file, "sha256").hexdigest() != entry["sha256"]:
            raise ValueError(f"{path.name} does not match its checksum")


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
