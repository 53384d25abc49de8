"""The folder of a run's checkpoints: which there are, and which of them may be deleted.

Checkpoints hold weeks of computing, and users link, copy and move them. So only real folders are deleted whose
`meta.json` this version reads and which has the step in the folder's name. Anything else in the place of a new
checkpoint is renamed, and everything else is left as it is.
"""

import hashlib
import json
import logging
import os
import re
import shutil
from pathlib import Path
from typing import Any

FORMAT = 1
META = "meta.json"

_STEP_FOLDER = re.compile(r"step-(\d+)")
UNFINISHED, _DISCARDED, _ASIDE = ".tmp-unfinished", ".tmp-discarded", ".damaged"
_LEFT_BEHIND = re.compile(rf"step-\d+({re.escape(UNFINISHED)}|{re.escape(_DISCARDED)})")
_DAMAGE = (FileNotFoundError, NotADirectoryError, IsADirectoryError)
"""OSErrors that mean that a file is missing. All others mean that the disk does not hand it over at the moment."""

_log = logging.getLogger(__name__)


class CheckpointError(RuntimeError):
    """A checkpoint could not be written, or the one asked for could not be read."""


class Damaged(CheckpointError):
    """A checkpoint is not what was written and will never be readable again, so an earlier one may be used."""


def listed(folder: Path) -> dict[int, Path]:
    """Returns all paths in `folder` that are named as a checkpoint, by step, oldest first. Raises CheckpointError where
    the folder cannot be listed."""
    try:
        names = [path.name for path in folder.iterdir()]
    except FileNotFoundError as error:
        if folder.is_symlink():
            raise CheckpointError(f"{folder} is a link to {folder.readlink()}, which is not there") from error
        return {}
    except OSError as error:
        raise CheckpointError(f"the checkpoints in {folder} cannot be listed: {error.strerror or error}") from error
    return dict(sorted((int(match[1]), folder / name) for name in names if (match := _STEP_FOLDER.fullmatch(name))))


def meta_of(path: Path) -> dict[str, Any]:
    """Returns the checkpoint's meta.json: `format`, `step`, `files`. Raises CheckpointError where it is damaged, cannot
    be read, or has another format."""
    try:
        meta: dict[str, Any] = json.loads((path / META).read_bytes())
        if meta["format"] != FORMAT:
            raise CheckpointError(
                f"checkpoint {path} has format {meta['format']!r} and this version reads {FORMAT}. Continue with the "
                f"version that wrote it, or move it out of {path.parent} to go on from the one before"
            )
        if path.name.removesuffix(UNFINISHED) != f"step-{meta['step']:08d}":
            raise ValueError(f"it says that it is step {meta['step']}")
        return meta
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise unreadable(path, error) from error


def checkpoint_at(path: Path) -> Path:
    """Returns the folder of a checkpoint: `path` itself, or the newest one in the run folder `path`. Raises ValueError
    where there is none."""
    if (path / META).is_file():
        return path
    if checkpoints := listed(path / "checkpoints"):
        return list(checkpoints.values())[-1]
    raise ValueError("neither a run with a checkpoint nor a checkpoint; give RUN or RUN/checkpoints/step-...")


def digest(path: Path) -> str:
    """Returns a hexadecimal digest of what a checkpoint holds, from the checksums in its meta.json. Raises
    CheckpointError where they cannot be read."""
    try:
        sums = {name: entry["sha256"] for name, entry in sorted(meta_of(path)["files"].items())}
    except (LookupError, TypeError, AttributeError) as error:
        raise unreadable(path, error) from error
    return hashlib.sha256(json.dumps(sums).encode()).hexdigest()


def unreadable(path: Path, error: Exception) -> CheckpointError:
    """Returns the exception for a checkpoint that could not be read because of `error`: Damaged, or a plain
    CheckpointError where it may be readable again later."""
    reason = f"{type(error).__name__}: {error}"
    unmounted = isinstance(error, FileNotFoundError) and path.is_symlink() and not path.exists()
    if unmounted or (isinstance(error, OSError) and not isinstance(error, _DAMAGE)):
        return CheckpointError(
            f"checkpoint {path} cannot be read ({reason}). Restore access and give the same command again, or move it "
            f"out of {path.parent} to go on from the one before"
        )
    return Damaged(f"checkpoint {path} is damaged ({reason})")


def begin(temporary: Path) -> None:
    """Makes the temporary folder and deletes those that killed processes left behind."""
    temporary.parent.mkdir(parents=True, exist_ok=True)
    for stale in [path for path in temporary.parent.iterdir() if _LEFT_BEHIND.fullmatch(path.name)]:
        if _is_folder(stale):
            shutil.rmtree(stale, onerror=lambda _, path, info: _log.warning("%s is not deleted: %s", path, info[1]))
    if os.path.lexists(temporary):
        set_aside(temporary)
    temporary.mkdir()


def complete(folder: Path) -> None:
    """Renames the checkpoint of a process that was killed when all of it was written, but for its name. Only the
    process that writes to `folder` may call it."""
    for path in folder.glob(f"step-*{UNFINISHED}"):
        if _is_ours(path):
            place(path, path.with_name(path.name.removesuffix(UNFINISHED)))


def place(temporary: Path, target: Path) -> None:
    """Renames the temporary folder, whose last file is meta.json, to `target`, which makes it a checkpoint. What a
    process leaves that is killed in between, `complete` makes one."""
    sync(temporary)
    if _is_ours(target):
        _discard(target)
    elif os.path.lexists(target):
        _log.warning("%s is no checkpoint of this run; it is kept as %s", target, set_aside(target).name)
    temporary.rename(target)
    sync(target.parent)


def set_aside(path: Path) -> Path:
    """Renames a path that stands in the way, or is damaged, and returns its new path."""
    aside = path.with_name(f"{path.name}{_ASIDE}")
    number = 1
    while os.path.lexists(aside):
        number += 1
        aside = path.with_name(f"{path.name}{_ASIDE}-{number}")
    return path.rename(aside)


def set_aside_later(folder: Path, step: int) -> None:
    """Renames all checkpoints of steps after `step`, from which the run continues. They are damaged, and the run will
    need their names."""
    for path in [path for later, path in listed(folder).items() if later > step]:
        try:
            _log.warning("%s is kept as %s", path, set_aside(path).name)
        except OSError as error:
            _log.warning("%s could not be set aside: %s", path, error)


def retain(folder: Path, step: int, keep: int) -> None:
    """Deletes the checkpoints of this run but for the last `keep` up to `step`. A failure is only logged, as the
    checkpoint that was just written is more important."""
    try:
        ours = [path for number, path in listed(folder).items() if number <= step and _is_ours(path)]
        for path in ours[:-keep]:
            _discard(path)
    except (OSError, CheckpointError) as error:
        _log.warning("could not delete old checkpoints in %s: %s", folder, error)


def sync(folder: Path) -> None:
    """Makes the names in `folder` durable, which an fsync of its files does not."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _is_folder(path: Path) -> bool:
    """Tells whether `path` is a folder and no link to one."""
    return path.is_dir() and not path.is_symlink()


def _is_ours(path: Path) -> bool:
    """Tells whether `path` is a checkpoint of this run and no link. What a link leads to is never deleted."""
    try:
        return _is_folder(path) and bool(meta_of(path))
    except CheckpointError:
        return False


def _discard(path: Path) -> None:
    """Deletes a checkpoint. It is renamed first: a process killed halfway must not leave what looks like a damaged
    checkpoint."""
    shutil.rmtree(path.rename(path.with_name(f"{path.name}{_DISCARDED}")))
