"""Finding data files by path, folder or pattern, and writing files whole."""

import os
import re
from pathlib import Path

from braceexpand import braceexpand

PARTS = {
    "train": "train",
    "training": "train",
    "test": "test",
    "testing": "test",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
}


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


def by_part(files: list[Path]) -> dict[str, list[Path]]:
    """Files by the part that their name, or else their folder's, says: train, validation, test.

    Words are split at anything but letters: "train-00000-of-00002.parquet", "imagenet_val_003.tar",
    "test/0000.parquet". A lone file and files that say nothing are for training.
    """
    if len(files) == 1:
        return {"train": files}
    above = Path(os.path.commonpath(files))  # folders that hold everything say nothing about one file
    parts: dict[str, list[Path]] = {}
    for file in files:
        parts.setdefault(_part(file.relative_to(above)), []).append(file)
    return parts


def _part(file: Path) -> str:
    words = [word for name in (file.name, file.parent.name) for word in re.findall("[a-z]+", name.lower())]
    return next((PARTS[word] for word in words if word in PARTS), "train")
