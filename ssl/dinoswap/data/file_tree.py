"""Lists the image files below a folder: regular files whose extension PIL decodes, each once, in a fixed order.

Files come folder by folder, sorted by name, those of a folder before those of its sub-folders. Links are followed once:
a folder is entered once for each part of the data set (parts.py), and never from inside itself, so that loops end. When
several paths lead to one file, by links or hard links, one is kept, and a test part's is kept before a training part's.
Whatever is left out is counted.
"""

import errno
import os
import stat
from array import array
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from dinoswap.data.decoding import CorruptImage, Decoding, extensions
from dinoswap.data.filesystem import part_of

_RANK = {"test": 0, "validation": 1, "train": 2, None: 3}
"""The part with the lowest rank keeps a file that several parts hold."""
_GONE = (errno.ENOENT, errno.EACCES, errno.EPERM, errno.ELOOP, errno.EISDIR, errno.ENOTDIR)
"""Errors that are about one file. Any other (an I/O error, a stale handle) is about the disk and ends the run."""

Key = tuple[int, int]
"""Device and inode of a folder."""


@dataclass(frozen=True)
class _Folder:
    """Identifies a folder that is to be entered."""

    below: str  # its path relative to the root with a slash at the end, "" for the root itself
    part: str | None
    above: tuple[Key, ...]  # the folders that it lies in, including those of the links that lead to it

    def child(self, name: str, key: Key) -> "_Folder":
        """Returns the sub-folder `name`; `key` is that of this folder."""
        return _Folder(f"{self.below}{name}/", self.part or part_of(name), (*self.above, key))


@dataclass
class _Walk:
    """Holds the state of a walk through the folders below `root`: the image files in the order found, and what was
    ignored."""

    root: Path
    files: list[str] = field(default_factory=list)
    inodes: "array[int]" = field(default_factory=lambda: array("Q"))
    ranks: list[tuple[int, bool]] = field(default_factory=list)  # of its part, and whether it is a link
    ignored: Counter[str] = field(default_factory=Counter)
    extensions: frozenset[str] = field(default_factory=extensions)
    linked: list[_Folder] = field(default_factory=list)  # entered when all folders have been
    entered: set[tuple[str | None, Key]] = field(default_factory=set)

    def run(self) -> None:
        """Enters every folder: first those that are no links, then those that links lead to. Raises OSError when the
        root, or the disk, cannot be read."""
        above = tuple(_key(folder.stat()) for folder in self.root.resolve().parents)
        stack = [_Folder("", None, above)]
        followed = False
        while stack or self.linked:
            if not stack:
                stack, followed = [self.linked.pop(0)], True
            stack += reversed(self.enter(stack.pop()))
        if followed:
            self.sort()

    def enter(self, folder: _Folder) -> list[_Folder]:
        """Adds the files of a folder and returns its sub-folders that are no links."""
        path = Path(self.root, folder.below)
        try:
            key = _key(path.stat())
            if key in folder.above or (folder.part, key) in self.entered:
                self.ignored["linked folder"] += 1
                return []
            self.entered.add((folder.part, key))
            with os.scandir(path) as listing:
                entries = sorted(listing, key=lambda entry: entry.name)
        except OSError as error:
            if not folder.below or error.errno not in _GONE:
                raise
            self.ignored["unreadable folder"] += 1
            return []
        folders = []
        for entry in entries:
            if entry.name.startswith("."):
                self.ignored["hidden folder" if entry.is_dir(follow_symlinks=False) else "hidden file"] += 1
            elif entry.is_symlink():
                self.follow(folder, entry, key)
            elif entry.is_dir():
                folders.append(folder.child(entry.name, key))
            elif entry.is_file():
                self.take(folder, entry.name, entry.inode(), linked=False)
            else:
                self.ignored["special file"] += 1  # a pipe, a socket, a device
        return folders

    def follow(self, folder: _Folder, entry: os.DirEntry[str], key: Key) -> None:
        """Adds the file, or notes the folder, that a link leads to."""
        try:
            target = entry.stat()
        except OSError as error:
            if error.errno not in _GONE:
                raise
            self.ignored["broken link"] += 1
            return
        if stat.S_ISDIR(target.st_mode):
            self.linked.append(folder.child(entry.name, key))
        elif stat.S_ISREG(target.st_mode):
            self.take(folder, entry.name, target.st_ino, linked=True)
        else:
            self.ignored["special file"] += 1

    def take(self, folder: _Folder, name: str, inode: int, linked: bool) -> None:
        """Adds a file if its extension is one of an image, and counts it as ignored if not."""
        if (suffix := suffix_of(name)) not in self.extensions:
            self.ignored[suffix or "file without extension"] += 1
            return
        self.files.append(folder.below + name)
        self.inodes.append(inode)
        self.ranks.append((_RANK[folder.part], linked))

    def sort(self) -> None:
        """Sorts the files as if linked folders had been entered at their names."""

        def key(row: int) -> tuple[tuple[bool, str], ...]:
            *folders, name = self.files[row].split("/")
            return (*((True, folder) for folder in folders), (False, name))

        order = sorted(range(len(self.files)), key=key)
        self.files = [self.files[row] for row in order]
        self.inodes = array("Q", (self.inodes[row] for row in order))
        self.ranks = [self.ranks[row] for row in order]

    def drop_repeated(self) -> None:
        """Keeps one of the paths that lead to the same file, and counts the others."""
        inodes, counts = np.unique(np.frombuffer(self.inodes, dtype=np.uint64), return_counts=True)
        shared = set(inodes[(counts > 1) & (inodes > 0)].tolist())  # 0: of file systems that have none
        kept_files: dict[int, str] = {}
        dropped = set()
        rows = [row for row, inode in enumerate(self.inodes) if inode in shared] if shared else []
        for row in sorted(rows, key=lambda row: (self.ranks[row], row)):
            kept_file = kept_files.setdefault(self.inodes[row], self.files[row])
            if kept_file != self.files[row] and (self.root / kept_file).samefile(self.root / self.files[row]):
                dropped.add(row)
        if dropped:
            self.ignored["repeated link"] += len(dropped)
            self.files = [file for row, file in enumerate(self.files) if row not in dropped]


def suffix_of(name: str) -> str:
    """Returns the extension of a file's name in small letters, with its dot; "" when it has none."""
    stem, dot, suffix = name.rpartition(".")
    return (dot + suffix).lower() if stem else ""


def _key(status: os.stat_result) -> Key:
    return status.st_dev, status.st_ino


class FolderFiles:
    """Lists the image files below `root`: `files` are relative to it; `ignored` counts the other files, by kind. Raises
    OSError when the folder cannot be read."""

    def __init__(self, root: Path) -> None:
        walk = _Walk(root)
        walk.run()
        walk.drop_repeated()
        self.root = root
        self.files, self.ignored = walk.files, walk.ignored

    def name(self, file: str) -> str:
        return str(self.root / file)

    def size(self, file: str) -> int:
        return (self.root / file).stat().st_size

    def read(self, file: str, decoding: Decoding) -> bytes:
        return read_image(self.root / file, decoding)

    def checksum(self, file: str) -> bytes | None:
        """Returns None: the content of a file in a folder is not known without reading it."""
        return None


def read_image(path: Path, decoding: Decoding) -> bytes:
    """Returns the bytes of a file. Raises CorruptImage when the file is gone or too large to be an image, and OSError
    when the disk fails."""
    try:
        with path.open("rb") as opened:
            if (size := os.fstat(opened.fileno()).st_size) > decoding.most_bytes:
                raise CorruptImage(str(path), f"{size} bytes; data.max_pixels sets the limit")
            return opened.read()
    except OSError as error:
        if error.errno not in _GONE:
            raise
        raise CorruptImage(str(path), str(error.strerror)) from error


def list_images(root: Path) -> list[str]:
    """Returns the paths of the image files below `root`, relative to it."""
    return FolderFiles(root).files
