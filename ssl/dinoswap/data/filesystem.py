"""Finding data files by path, folder or pattern, each once, and telling which part of a data set a path belongs to."""

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
# Nothing that could be missed: what tar_index.py keeps beside shards, and what `datasets` writes beside tables
_DESCRIBING = (".tar.index", ".tar.index.npz", "state.json", "dataset_info.json", "dataset_dict.json")
_NAMED = 5  # unreadable files that a remark names, each with its reason

_ASKED_BY_CONTENT = (None, errno.EINVAL, errno.EOVERFLOW)  # of a seek to where damaged bytes lead

_PIECES, _PIECE_BYTES = 4, 4096  # of a file, for its fingerprint

T = TypeVar("T")


class Unreadable(ValueError):
    """A data file that is empty, cut short or damaged; the message begins with its path."""


@contextmanager
def damage_named(path: Path, remedy: str = "") -> Iterator[None]:
    """Whatever a foreign reader raises for damaged content, as Unreadable with path, reason and remedy in a line. A
    disk that fails stays an OSError, with the path: it is no damage, and the next attempt may find the file whole."""
    try:
        yield
    except (MemoryError, Unreadable):
        raise
    except Exception as error:  # the reader's own classes, UnicodeDecodeError, OverflowError, ...
        if isinstance(error, OSError) and error.errno not in _ASKED_BY_CONTENT:
            raise OSError(error.errno, error.strerror or str(error), str(path)) from error
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise Unreadable(f"{path}: {reason}{remedy}") from error


class Found(NamedTuple):
    files: list[Path]
    ignored: Counter[str]  # what was left out -> how many


def find_files(path: str, suffixes: Sequence[str], key: str = "data.path") -> Found:
    """Files at `path`: a file, a folder (searched to any depth for `suffixes`), or a pattern with braces or globs.

    Sorted within each brace alternative. Hidden files, other suffixes and what is no regular file are left out and
    counted. A file or folder that is reached by several links is taken once. Raises ValueError, naming the config
    key, when there are none.
    """
    try:
        patterns = [path] if Path(path).expanduser().exists() else list(braceexpand(path))
    except (ValueError, RuntimeError) as error:  # braces that do not close; no home folder for ~ or ~user
        raise ValueError(f"{key}={path}: {error}") from error
    ignored: Counter[str] = Counter()
    files = [file for pattern in patterns for file in _matching(pattern, suffixes, key, ignored)]
    return Found(files, ignored)


def _matching(path: str, suffixes: Sequence[str], key: str, ignored: Counter[str]) -> list[Path]:
    given = Path(path).expanduser()
    if given.is_file():
        return [given]
    matches = [given] if given.is_dir() else Path(given.anchor).glob(str(given.relative_to(given.anchor)))
    found = [file for match in sorted(matches) for file in (files_below(match, ignored) if match.is_dir() else [match])]
    files = [file for file in found if _is_data(file, suffixes, ignored)]
    if not files:
        left_out = "; ignored: " + ", ".join(f"{n} {what}" for what, n in ignored.items()) if ignored else ""
        raise ValueError(
            f"{key}={path}: nothing found; give a file, a folder with {' or '.join(suffixes)} files somewhere below "
            f"it, or a pattern such as data/train-*{suffixes[0]}{left_out}"
        )
    return files


def _is_data(file: Path, suffixes: Sequence[str], ignored: Counter[str]) -> bool:
    if file.suffix.lower() in suffixes and not file.name.startswith("."):
        return True
    if not file.name.endswith(_DESCRIBING):
        ignored["hidden file" if file.name.startswith(".") else file.suffix.lower() or "file without a suffix"] += 1
    return False


def files_below(folder: Path, ignored: Counter[str]) -> list[Path]:
    """The regular files below `folder`, sorted, each once: what is a link is looked at last, and is left out when it
    leads to what was found before. Hidden folders are left out. Raises OSError for a folder that cannot be read."""
    seen: set[tuple[int, int]] = set()
    found: list[Path] = []
    waiting = [folder]  # grows by the links that are met
    for start in waiting:
        for path in _walk(start, waiting, seen, ignored):
            state = _state(path)
            if state is None or not stat.S_ISREG(state.st_mode):
                ignored["dangling link" if state is None else "no regular file"] += 1
            elif (state.st_dev, state.st_ino) in seen:
                ignored["link to what was found before"] += 1
            else:
                seen.add((state.st_dev, state.st_ino))
                found.append(path)
    return sorted(found)


def _walk(start: Path, links: list[Path], seen: set[tuple[int, int]], ignored: Counter[str]) -> Iterator[Path]:
    """What is no folder at or below `start`, and appends the links that it meets to `links`."""
    if not start.is_dir():
        yield start
        return
    for name, folders, names in os.walk(start, onerror=_refuse):
        state = Path(name).stat()
        if (state.st_dev, state.st_ino) in seen:
            ignored["link to what was found before"] += 1
            folders.clear()
            continue
        seen.add((state.st_dev, state.st_ino))
        ignored.update(["empty folder"] * (not folders and not names))
        ignored.update("hidden folder" for child in folders if child.startswith("."))
        folders[:] = sorted(child for child in folders if not child.startswith("."))
        paths = [Path(name, child) for child in sorted(names)]
        links += [path for path in (*(Path(name, child) for child in folders), *paths) if path.is_symlink()]
        yield from (path for path in paths if not path.is_symlink())


def _state(path: Path) -> os.stat_result | None:
    """None for a link that leads nowhere or to itself."""
    try:
        return path.stat()
    except OSError:
        if path.is_symlink():
            return None
        raise


def _refuse(error: OSError) -> None:
    raise error


def open_readable(files: Sequence[Path], open_file: Callable[[Path], T], remarks: list[str]) -> dict[Path, T]:
    """`open_file` of each file, without those that it finds Unreadable: a remark names them, with the reasons."""
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
    """Device and inode: equal for two paths of one file, relative, absolute or through links."""
    state = path.stat()
    return state.st_dev, state.st_ino


def sampled(path: Path) -> bytes:
    """A few pieces of a file at fixed places: sizes and names alone do not tell two sets made alike apart."""
    size = path.stat().st_size
    with path.open("rb") as file:
        pieces = []
        for at in range(_PIECES):
            file.seek(max(0, size - _PIECE_BYTES) * at // (_PIECES - 1))
            pieces.append(file.read(_PIECE_BYTES))
    return b"".join(pieces)


def below_root(files: Sequence[Path]) -> list[Path]:
    """The files relative to the folder that holds them all, links not resolved; a lone file by its name."""
    paths = [Path(os.path.normpath(file.absolute())) for file in files]
    root = os.path.commonpath([path.parent for path in paths])
    return [path.relative_to(root) for path in paths]


def by_part(files: Sequence[Path]) -> dict[str, list[Path]]:
    """Files by the part that they belong to: train, validation, test.

    Every component of a path below the folder that holds all files is asked (`part_of`), the file's own name first and
    then upwards. "test" in any of them makes a test file, so that nothing of a test part is trained on. A lone file and
    files that say nothing are for training.
    """
    if len(files) == 1:
        return {"train": list(files)}
    parts: dict[str, list[Path]] = {}
    for file, below in zip(files, below_root(files), strict=True):  # folders that hold all say nothing about one file
        said = [part for name in reversed(below.parts) if (part := part_of(name))]
        parts.setdefault("test" if "test" in said else (said or ["train"])[0], []).append(file)
    return parts


def part_of(name: str) -> str | None:
    """The part that one component of a path says: "train", "validation", "test", or None when it says nothing.

    Words are what is left between other characters than letters, and between the words of camel case:
    "train-00000-of-00002.parquet", "split=test", "test0.tar", "TestImages", "cats_val", "devset". Of several words the
    first decides, but "test" before all others.
    """
    runs = re.findall(r"[^\W\d_]+", name)
    words = [word.lower() for run in runs for word in (run, *_CAMEL.split(run))]
    said = [PARTS[match[1]] for word in words if (match := _WORD.fullmatch(word))]
    return "test" if "test" in said else next(iter(said), None)
