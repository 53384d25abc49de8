"""Checkpoints that survive `kill -9`, a full disk and a flipped bit.

`<folder>/step-00000100/` holds `tensors.safetensors`, `state.json` (everything that is not a tensor, and the config)
and `meta.json` (size and SHA-256 of the other two). The folder is written under a temporary name, every file is
fsynced, and only the rename makes it a checkpoint. Reading verifies every byte and never executes code.

A run folder has one writer: whatever temporary folder lies there was left by a process that died. Of several ranks the
first writes whole tensors, put together one at a time, so that the layout is in no file. torch.distributed.checkpoint
would write shares in parallel, but its index is a pickle, and its safetensors form (2.14) holds a second copy of a
rank's share before it writes. Each rank maps the file and takes its share of it.
"""

import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from dinoswap.distributed.sharding import whole

FORMAT = 1
TENSORS, STATE, META = "tensors.safetensors", "state.json", "meta.json"
TENSOR_KEY = "$tensor"  # {"$tensor": name} stands in state.json where the state holds a tensor
RESERVED = (TENSOR_KEY, "__metadata__")  # the second by safetensors

Chunks = Iterator[bytes | memoryview]
_STEP_FOLDER = re.compile(r"step-(\d+)")
_ABSENT = "(absent)"
_DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
_log = logging.getLogger(__name__)


class CheckpointError(RuntimeError):
    """A checkpoint could not be written, or the one asked for is damaged."""


@dataclass(frozen=True)
class Checkpoint:
    """`state` is what `save` was given: tensors on the CPU, tuples as lists. `read` says whose memory they are."""

    path: Path
    step: int
    state: dict[str, Any]
    config: dict[str, Any]


def save(
    folder: Path, step: int, state: Mapping[str, Any], *, config: Mapping[str, Any], keep: int, writes: bool = True
) -> Path:
    """Write the state after `step` steps, then delete all but the last `keep` checkpoints.

    Tensors of which every rank holds a share are put together one by one, so all ranks call it with the state that they
    have, and one of them `writes`. What it writes does not depend on the number of ranks or shares.

    `state` nests mappings (str keys without '/') and lists of tensors, int, float, str, bool and None. Tensors are
    copied to the CPU one at a time; those that share storage are written one by one and load as separate tensors.
    Raises CheckpointError when the file system refuses, TypeError or ValueError for a state that can't be stored.
    """
    if keep < 1:
        raise ValueError(f"keep={keep}: at least one checkpoint must be kept; set it to 1 or more")
    tensors: dict[str, Tensor] = {}
    tree = _split(state, "", tensors)
    described = json.dumps({"config": config, "state": tree}).encode()
    target = folder / f"step-{step:08d}"
    if not writes:
        for tensor in _ordered(tensors).values():
            whole(tensor)
        return target
    contents = _safetensors(tensors)
    temporary = folder / f"{target.name}.tmp-{os.getpid()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for stale in folder.glob("step-*.tmp-*"):
            shutil.rmtree(stale)
        temporary.mkdir()
        parts: dict[str, Iterable[bytes | memoryview]] = {TENSORS: contents, STATE: [described]}
        files = {name: _write(temporary / name, chunks) for name, chunks in parts.items()}
        _write(temporary / META, [json.dumps({"format": FORMAT, "step": step, "files": files}).encode()])
        _sync(temporary)
        if target.exists():  # saved before, or damaged; a crash right here costs this step and no earlier one
            _discard(target)
        temporary.rename(target)
        _sync(folder)
    except OSError as error:
        for _ in contents:  # the other ranks go on with their shares
            pass
        shutil.rmtree(temporary, ignore_errors=True)
        needed = len(described) + sum(t.nbytes for t in tensors.values())
        raise CheckpointError(_failure(target, needed, error)) from error
    _retain(folder, step, keep)
    return target


def newest(folder: Path, report: Callable[[str], None], *, copy: bool = True) -> Checkpoint | None:
    """The newest checkpoint of which every byte verifies; `report` gets a sentence for each one passed over. See
    `read`."""
    for path in reversed(_complete(folder).values()):
        try:
            return read(path, copy=copy)
        except CheckpointError as error:
            report(f"{error}; trying the one before")
    return None


def read(path: Path, *, copy: bool = True) -> Checkpoint:
    """Load one checkpoint folder. Raises CheckpointError, with the reason, unless it is whole and undamaged.

    Without `copy` tensors are maps of the file, which take no memory of this process: for a caller that copies what it
    keeps. They lie at any alignment, at which kernels may round differently, so nothing is to be computed with them.
    """
    try:
        meta = json.loads((path / META).read_bytes())
        if meta["format"] != FORMAT:
            raise ValueError(f"format {meta['format']}, this version reads {FORMAT}")
        if path.name != f"step-{meta['step']:08d}":
            raise ValueError(f"it says that it is step {meta['step']}")
        for name in (TENSORS, STATE):
            _verify(path / name, meta["files"][name])
        described = json.loads((path / STATE).read_bytes())
        with safe_open(path / TENSORS, framework="pt") as file:
            tensor = (lambda name: file.get_tensor(name).clone()) if copy else file.get_tensor
            state = _join(described["state"], tensor)
        return Checkpoint(path, meta["step"], state, described["config"])
    except (OSError, ValueError, LookupError, TypeError, SafetensorError) as error:
        raise CheckpointError(f"checkpoint {path} is damaged ({type(error).__name__}: {error})") from error


def config_difference(old: Mapping[str, Any], new: Mapping[str, Any], ignore: Sequence[str] = ()) -> list[str]:
    """'key: old -> new' for each dotted key that differs; `ignore` names keys, or groups of keys, to leave out."""
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
    """`value` as JSON, its tensors moved to `tensors` under their '/'-joined path."""
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


def _join(tree: Any, tensor: Callable[[str], Tensor]) -> Any:
    if isinstance(tree, list):
        return [_join(item, tensor) for item in tree]
    if not isinstance(tree, dict):
        return tree
    if TENSOR_KEY in tree:
        return tensor(tree[TENSOR_KEY])
    return {key: _join(item, tensor) for key, item in tree.items()}


def _ordered(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """As they stand in the file: each tensor aligned to its own dtype."""
    return dict(sorted(tensors.items(), key=lambda item: -item[1].itemsize))


def _safetensors(tensors: Mapping[str, Tensor]) -> Chunks:
    """The bytes of a safetensors file: length of the header, JSON header, data. Never two copies of all the data,
    as the library's own writer makes for tensors on a GPU, and a full disk is an OSError."""
    header, end = {}, 0
    for name, tensor in _ordered(tensors).items():
        start, end = end, end + tensor.nbytes
        header[name] = {"dtype": _DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    yield len(text).to_bytes(8, "little") + text
    for tensor in _ordered(tensors).values():
        yield whole(tensor).cpu().contiguous().flatten().view(torch.uint8).numpy().data


def _write(path: Path, chunks: Iterable[bytes | memoryview]) -> dict[str, int | str]:
    """Write and fsync one file. Returns its size and SHA-256, for `_verify`."""
    digest = hashlib.sha256()
    with path.open("xb") as file:
        for chunk in chunks:
            file.write(chunk)
            digest.update(chunk)
        size = file.tell()
        file.flush()
        os.fsync(file.fileno())
    return {"bytes": size, "sha256": digest.hexdigest()}


def _verify(path: Path, entry: Mapping[str, int | str]) -> None:
    size = path.stat().st_size
    if size != entry["bytes"]:
        raise ValueError(f"{path.name} has {size:,} bytes instead of {entry['bytes']:,}")
    with path.open("rb") as file:
        if hashlib.file_digest(file, "sha256").hexdigest() != entry["sha256"]:
            raise ValueError(f"{path.name} does not match its checksum")


def _discard(path: Path) -> None:
    """Renamed first: killed halfway, it must not leave what looks like a damaged checkpoint."""
    shutil.rmtree(path.rename(path.with_name(f"{path.name}.tmp-discarded")))


def _sync(folder: Path) -> None:
    """Make the names in `folder` durable, not only the contents of its files."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _retain(folder: Path, step: int, keep: int) -> None:
    """Later steps than the one just written are damaged (`newest` passed them over) or another run's: they go too."""
    steps = _complete(folder)
    kept = [s for s in steps if s <= step][-keep:]
    for path in [steps[s] for s in steps if s not in kept]:
        try:
            _discard(path)
        except OSError as error:
            _log.warning("could not delete the old checkpoint %s: %s", path, error)


def _complete(folder: Path) -> dict[int, Path]:
    """Checkpoint folders by step, oldest first."""
    return dict(sorted((int(m[1]), p) for p in folder.glob("step-*") if (m := _STEP_FOLDER.fullmatch(p.name))))


def _failure(target: Path, needed: int, error: OSError) -> str:
    disk = next(p for p in target.parents if p.exists())
    last = list(_complete(target.parent).values())[-1:]
    intact = f"{last[0].name} is the last complete checkpoint and is intact" if last else "there is no earlier one"
    return (
        f"checkpoint {target} could not be written: {error} "
        f"({needed:,} bytes needed, {shutil.disk_usage(disk).free:,} free); {intact}. "
        "Make room or restore access, then give the same command again."
    )


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    """The leaves of a config by dotted key."""
    if isinstance(value, Mapping):
        below = [_flat(item, f"{prefix}.{key}" if prefix else str(key)) for key, item in value.items()]
        return {key: leaf for leaves in below for key, leaf in leaves.items()}
    return {prefix: list(value) if isinstance(value, tuple) else value}  # a list, as JSON gives it back
