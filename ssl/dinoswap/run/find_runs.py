"""Finds the run folders below a root, whatever else lies there.

A folder that holds run.json is a run, and nothing below it is looked at. Links are followed, and a folder is looked at
once, however many lead to it. What cannot be read is passed over, with the reason.
"""

import os
from dataclasses import dataclass
from pathlib import Path

from dinoswap.files.reading import clean, one_line
from dinoswap.run.run_folder import POINTER

DEEPEST = 4
"""Folders from the root to a run: results/ has runs/<study>/<run_id>/seed<k>."""
Stamp = tuple[int, int]
"""Time of the last change, in ns, and size of a run.json."""
SETTLED_NS = 2 * 10**9
"""A run.json that is younger when it is looked at is in no cache: some file systems count time in steps of two seconds,
and another version may get the same time."""


@dataclass(frozen=True)
class PassedOver:
    """A file or folder that was not read, or not wholly."""

    path: Path
    reason: str

    @property
    def line(self) -> str:
        """The path and the reason on one line."""
        return one_line(f"{self.path}: {self.reason}")


def find_run_folders(root: Path) -> tuple[dict[str, Stamp], list[PassedOver]]:
    """Returns the stamps of the folders with a run.json, by path from the root, and the innermost folders without
    one."""
    stamps: dict[str, Stamp] = {}
    passed_over: list[PassedOver] = []
    pending, links = [(root, 0)], list[tuple[Path, int]]()
    visited: dict[tuple[int, int], Path] = {}
    while pending or links:
        folder, depth = pending.pop() if pending else links.pop()  # links last: a run is where it lies
        try:
            stat, entries = folder.stat(), sorted(os.scandir(folder), key=lambda entry: entry.name)
            first = visited.setdefault((stat.st_dev, stat.st_ino), folder)
            if first != folder:
                passed_over.append(PassedOver(folder, f"is {first} again"))
                continue
            stamp = _stamp(folder, entries)
        except (OSError, ValueError) as error:
            passed_over.append(PassedOver(folder, reason_of(error)))
            continue
        if stamp is not None:
            stamps[str(folder.relative_to(root))] = stamp
            continue
        if any(entry.name == POINTER for entry in entries):  # what was asked for here has a folder of its own
            continue
        below = [Path(entry) for entry in entries if _is_folder(entry) and not entry.name.startswith(".")]
        if depth == DEEPEST or not below:
            passed_over.append(PassedOver(folder, "no run.json" if entries else "empty"))
        else:
            for path in below:
                (links if path.is_symlink() else pending).append((path, depth + 1))
    return dict(sorted(stamps.items())), sorted(passed_over, key=lambda skipped: skipped.path)


def _stamp(folder: Path, entries: list["os.DirEntry[str]"]) -> Stamp | None:
    """Returns the stamp of the run.json, or None without one. Raises ValueError for a run whose path no table can
    hold."""
    record = next((entry for entry in entries if entry.name == "run.json"), None)
    if record is None:
        return None
    if str(folder) != clean(str(folder)):
        raise ValueError("its name is not UTF-8; rename the folder")
    stat = record.stat()
    return stat.st_mtime_ns, stat.st_size


def _is_folder(entry: "os.DirEntry[str]") -> bool:
    """Tells whether an entry is a folder or leads to one; what cannot be followed is none."""
    try:
        return entry.is_dir()
    except OSError:  # of what a link leads to
        return False


def reason_of(error: Exception) -> str:
    """Returns why a file or folder could not be read."""
    if isinstance(error, RecursionError):
        return "nested too deep"
    return (error.strerror if isinstance(error, OSError) else None) or " ".join(str(error).split())
