"""Finds data files by path, folder or pattern, each once, and determines which part of a data set a path belongs to."""

import errno
import os
import re
import stat
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple, TypeVar

from braceexpand import braceexpand

# As on the hub, where `dev` is a validation part and `eval` a test part
PARTS = {
    "train": "train",
    "training": "train",
    "trainval": "train",
    "test": "test",
    "testing": "test",
    "eval": "test",
    "evaluation": "test",
    "holdout": "test",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
}
_WORD = re.compile(rf"({'|'.join(PARTS)})(set|split|data|images)?")
_CAMEL = re.compile(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")
# Left out without being counted, since nobody would miss them: what tar_index.py keeps beside shards, and what the
# package `datasets` writes beside tables
_DESCRIBING = (".tar.index", ".tar.index.npz", "state.json", "dataset_info.json", "dataset_dict.json")
_NAMED = 5  # unreadable files that a remark names, each with its reason

_ASKED_BY_CONTENT = (None, errno.EINVAL, errno.EOVERFLOW)  # of a seek to where damaged bytes lead

_PIECES, _PIECE_BYTES = 4, 4096  # of a file, for its fingerprint

T = TypeVar("T")


class Unreadable(ValueError):
    """Raised for a data file that is empty, cut short or damaged; the message begins with its path."""


@contextmanager
def damage_named(path: Path, remedy: str = "") -> Iterator[None]:
    """Raises Unreadable with path, reason and remedy in one line for whatever a foreign reader raises for damaged
    content. A failing disk raises OSError with the path: it is no damage, and the next attempt may read the whole
    file."""
    try:
        yield
    except (MemoryError, Unreadable):
        raise
    except Exception as error:  # the reader's own classes, UnicodeDecodeError, OverflowError, ...
        if isinstance(error, OSError) and error.errno not in _ASKED_BY_CONTENT:
            raise OSError(error.errno, error.strerror or str(error), str(path)) from error
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise Unreadable(f"{path}: {reason}{remedy}") from error


class FoundFiles(NamedTuple):
    """Holds the files that were found, and counts those that were left out, by kind."""

    files: list[Path]
    ignored: Counter[str]  # what was left out -> how many


def find_files(path: str, suffixes: Sequence[str], key: str = "data.path") -> FoundFiles:
    """Returns the files at `path`: a file, a folder (searched to any depth for `suffixes`), or a pattern with braces or
    globs.

    They are sorted within each brace alternative. Hidden files, other suffixes and what is no regular file are left out
    and counted. A file or folder that is reached by several links is taken once. Raises ValueError, naming the config
    key, when there are none.
    """
    try:
        patterns = [path] if Path(path).expanduser().exists() else list(braceexpand(path))
    except (ValueError, RuntimeError) as error:  # braces that do not close; no home folder for ~ or ~user
        raise ValueError(f"{key}={path}: {error}") from error
    ignored: Counter[str] = Counter()
    files = [file for pattern in patterns for file in _matching(pattern, suffixes, key, ignored)]
    return FoundFiles(files, ignored)


def _matching(path: str, suffixes: Sequence[str], key: str, ignored: Counter[str]) -> list[Path]:
    """Returns the files at one path or glob pattern. Raises ValueError, naming the config key, when there are none."""
    location = Path(path).expanduser()
    if location.is_file():
        return [location]
    matches = (
        [location] if location.is_dir() else Path(location.anchor).glob(str(location.relative_to(location.anchor)))
    )
    candidates = [
        file for match in sorted(matches) for file in (files_below(match, ignored) if match.is_dir() else [match])
    ]
    files = [file for file in candidates if _is_data(file, suffixes, ignored)]
    if not files:
        left_out = "; ignored: " + ", ".join(f"{count} {kind}" for kind, count in ignored.items()) if ignored else ""
        raise ValueError(
            f"{key}={path}: nothing found; give a file, a folder with {' or '.join(suffixes)} files somewhere below "
            f"it, or a pattern such as data/train-*{suffixes[0]}{left_out}"
        )
    return files


def _is_data(file: Path, suffixes: Sequence[str], ignored: Counter[str]) -> bool:
    """Tells whether a file has one of the suffixes and is not hidden; if not, it is counted."""
    if file.suffix.lower() in suffixes and not file.name.startswith("."):
        return True
    if not file.name.endswith(_DESCRIBING):
        ignored["hidden file" if file.name.startswith(".") else file.suffix.lower() or "file without a suffix"] += 1
    return False


def files_below(folder: Path, ignored: Counter[str]) -> list[Path]:
    """Returns the regular files below `folder`, sorted, each once. Links are followed last, and are left out when they
    lead to a file or folder that was found before. Hidden folders are left out. Raises OSError for a folder that cannot
    be read."""
    seen: set[tuple[int, int]] = set()
    files: list[Path] = []
    waiting = [folder]  # grows by the links that are met
    for start in waiting:
        for path in _walk(start, waiting, seen, ignored):
            status = _status(path)
            if status is None or not stat.S_ISREG(status.st_mode):
                ignored["dangling link" if status is None else "no regular file"] += 1
            elif (status.st_dev, status.st_ino) in seen:
                ignored["link to what was found before"] += 1
            else:
                seen.add((status.st_dev, status.st_ino))
                files.append(path)
    return sorted(files)


def _walk(start: Path, links: list[Path], seen: set[tuple[int, int]], ignored: Counter[str]) -> Iterator[Path]:
    """Yields everything at or below `start` that is no folder and no link, and appends the links to `links`. Raises
    OSError for a folder that cannot be read."""
    if not start.is_dir():
        yield start
        return
    for name, folders, names in os.walk(start, onerror=_refuse):
        status = Path(name).stat()
        if (status.st_dev, status.st_ino) in seen:
            ignored["link to what was found before"] += 1
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        ignored.update(["empty folder"] * (not folders and not names))
        ignored.update("hidden folder" for child in folders if child.startswith("."))
        folders[:] = sorted(child for child in folders if not child.startswith("."))
        paths = [Path(name, child) for child in sorted(names)]
        links += [path for path in (*(Path(name, child) for child in folders), *paths) if path.is_symlink()]
        yield from (path for path in paths if not path.is_symlink())


def _status(path: Path) -> os.stat_result | None:
    """Returns the status of what a path leads to, or None for a link that leads nowhere or to itself. Raises OSError
    when it cannot be read."""
    try:
        return path.stat()
    except OSError:
        if path.is_symlink():
            return None
        raise


def _refuse(error: OSError) -> None:
    raise error


def open_readable(files: Sequence[Path], open_file: Callable[[Path], T], remarks: list[str]) -> dict[Path, T]:
    """Returns `open_file` of each file, without those for which it raises Unreadable: a remark names them, with the
    reasons. Raises ValueError when none can be read."""
    opened: dict[Path, T] = {}
    reasons: list[str] = []
    for file in files:
        try:
            opened[file] = open_file(file)
        except Unreadable as error:
            reasons.append(str(error))
    if len(reasons) == len(files):
        raise ValueError(f"none of {len(files)} files can be read: {reasons[0]}" if len(files) > 1 else reasons[0])
    if reasons:
        named = "; ".join(reasons[:_NAMED]) + f"; and {len(reasons) - _NAMED} more" * (len(reasons) > _NAMED)
        remarks.append(f"{len(reasons)} of {len(files)} files cannot be read and are left out: {named}")
    return opened


def file_key(path: Path) -> tuple[int, int]:
    """Returns device and inode, which are equal for two paths of one file, whether relative, absolute or through
    links."""
    status = path.stat()
    return status.st_dev, status.st_ino


def sampled(path: Path) -> bytes:
    """Returns a few pieces of a file at fixed places, at most 16 KiB. They tell two data sets apart whose files have
    the same sizes and names."""
    size = path.stat().st_size
    with path.open("rb") as file:
        pieces = []
        for piece in range(_PIECES):
            file.seek(max(0, size - _PIECE_BYTES) * piece // (_PIECES - 1))
            pieces.append(file.read(_PIECE_BYTES))
    return b"".join(pieces)


def below_root(files: Sequence[Path]) -> list[Path]:
    """Returns the files relative to the folder that holds them all, links not resolved; a lone file by its name."""
    paths = [Path(os.path.normpath(file.absolute())) for file in files]
    root = os.path.commonpath([path.parent for path in paths])
    return [path.relative_to(root) for path in paths]


def by_part(files: Sequence[Path]) -> dict[str, list[Path]]:
    """Returns the files by the part that they belong to: train, validation, test.

    Every component of a path below the folder that holds all files may name a part (`part_of`), the file's own name
    first and then upwards. "test" in any component makes a test file, so that nothing of a test part is trained on. A
    lone file, and files that name no part, are for training.
    """
    if len(files) == 1:
        return {"train": list(files)}
    parts: dict[str, list[Path]] = {}
    for file, below in zip(files, below_root(files), strict=True):  # folders that hold all say nothing about one file
        named = [part for name in reversed(below.parts) if (part := part_of(name))]
        parts.setdefault("test" if "test" in named else (named or ["train"])[0], []).append(file)
    return parts


def part_of(name: str) -> str | None:
    """Returns the part that one component of a path names, "train", "validation" or "test", or None when it names none.

    Words are separated by characters that are no letters, and by camel case: "train-00000-of-00002.parquet",
    "split=test", "test0.tar", "TestImages", "cats_val", "devset". Of several words the first decides, but "test" takes
    precedence over all others.
    """
    runs = re.findall(r"[^\W\d_]+", name)
    words = [word.lower() for run in runs for word in (run, *_CAMEL.split(run))]
    named = [PARTS[match[1]] for word in words if (match := _WORD.fullmatch(word))]
    return "test" if "test" in named else next(iter(named), None)
