"""Finding data files by path, folder or pattern, and writing files whole."""

import os
import re
from collections.abc import Sequence
from pathlib import Path

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


def find_files(path: str, suffix: str, key: str = "data.path") -> list[Path]:
    """Files at `path`: a file, a folder (searched to any depth for `suffix`), or a pattern with braces or globs.

    Sorted within each brace alternative. Raises ValueError, naming the config key, when there are none.
    """
    patterns = [path] if Path(path).expanduser().exists() else braceexpand(path)
    return [file for pattern in patterns for file in _matching(pattern, suffix, key)]


def _matching(path: str, suffix: str, key: str) -> list[Path]:
    given = Path(path).expanduser()
    if given.is_file():
        return [given]
    if given.is_dir():
        found = given.rglob(f"*{suffix}")
    else:
        found = Path(given.anchor).glob(str(given.relative_to(given.anchor)))
    files = sorted(file for file in found if file.is_file())
    if not files:
        raise ValueError(
            f"{key}={path}: nothing found; give a file, a folder with {suffix} files somewhere below it, or a "
            f"pattern such as data/train-*{suffix}"
        )
    return files


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
