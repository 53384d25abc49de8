"""Image files in folders, found by walking the tree in sorted order.

    path/train/<class>/**, path/{test,val}/<class>/**     training and test part
    path/<class>/**                                       training part only
    path/*                                                unlabelled

A part has labels when all its images lie in sub-folders of it: the first folder names the class.
"""

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from dinoswap.data.decoding import DEFAULT, CorruptImage, Decoding, Pixels, decode
from dinoswap.data.filesystem import PARTS
from dinoswap.data.images import Images, ImageSource, first_labelled, numbered
from dinoswap.rng import numpy_generator

EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")

SAMPLE = 256


class ImageFolderData(ImageSource):
    """The image files below `path`. Raises ValueError for a folder without any, or without a training part."""

    def __init__(self, path: str, decoding: Decoding = DEFAULT) -> None:
        self.decoding = decoding
        self.path = Path(path).expanduser()
        if not self.path.is_dir():
            raise ValueError(f"data.path={path}: no such folder; give one that holds train/<class>/ or images")
        self.parts = _find_parts(self.path)
        self._train = self._open(self.parts.get("train", self.path), None)

    def train(self) -> Images:
        return self._train

    def test(self) -> Images | None:
        present = [self.parts[part] for part in ("test", "validation") if part in self.parts]
        return first_labelled(self._open(root, self._train.classes) for root in present)

    def _open(self, root: Path, classes: Sequence[str] | None) -> "FolderImages":
        files = list_images(root)
        if not files:
            raise ValueError(f"data.path={self.path}: no images below {root}; looked for {' '.join(EXTENSIONS)}")
        return FolderImages(root, files, classes, self.decoding)


def _find_parts(path: Path) -> dict[str, Path]:
    """The folders of the parts; none when the images themselves, or folders of classes, are at `path`."""
    folders = sorted(f for f in path.iterdir() if f.is_dir() and not f.name.startswith("."))
    parts = {PARTS[f.name.lower()]: f for f in folders if f.name.lower() in PARTS}
    if parts and "train" not in parts:
        raise ValueError(f"data.path={path}: holds {sorted(f.name for f in parts.values())} but no folder train")
    if len(parts) == 1 and len(folders) > 1:  # "train" may also be a class of vehicles
        others = [f.name for f in folders if f not in parts.values()]
        raise ValueError(
            f"data.path={path}: holds {parts['train'].name} beside {others[:5]}: is it the training part or a class? "
            f"Give data.path={parts['train']}, add a folder test, or rename the class"
        )
    return parts


def list_images(root: Path) -> list[str]:
    """Paths of the image files below `root`, relative to it, sorted folder by folder; hidden files are left out."""
    found = []
    for folder, folders, names in os.walk(root, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        images = sorted(n for n in names if n.lower().endswith(EXTENSIONS) and not n.startswith("."))
        below = "" if Path(folder) == root else os.path.relpath(folder, root) + os.sep
        found += [below + name for name in images]
    return found


class FolderImages(Images):
    """`files` relative to `root`. `classes`: names by label; None: the sorted first folders of the files."""

    def __init__(
        self, root: Path, files: Sequence[str], classes: Sequence[str] | None, decoding: Decoding = DEFAULT
    ) -> None:
        self.root, self.decoding = root, decoding
        self.files = np.array([os.fsencode(file) for file in files])  # an array: forked workers share its pages
        self.blocks = [len(files)]
        self.labels, self.classes = None, None
        if all(os.sep in file for file in files):
            folders = [file.split(os.sep, 1)[0] for file in files]
            self.labels, self.classes = numbered(folders, classes, str(root))

    def __len__(self) -> int:
        return len(self.files)

    def load(self, row: int) -> Pixels:
        return decode(self.encoded(row), self.name(row), self.decoding)

    def encoded(self, row: int) -> bytes:
        try:
            return self._path(row).read_bytes()
        except (FileNotFoundError, PermissionError) as error:
            raise CorruptImage(self.name(row), str(error.strerror)) from error

    def name(self, row: int) -> str:
        return str(self._path(row))

    def fingerprint(self) -> str:
        """Of names relative to the folder, labels, and the bytes of `SAMPLE` images at most, always the same ones."""
        digest = hashlib.sha256(f"{len(self)}\n".encode())
        for row, file in enumerate(self.files):
            digest.update(file + f" {self.label(row)}\n".encode())
        drawn = numpy_generator(0, "data/fingerprint", len(self)).permutation(len(self))[:SAMPLE]
        for row in sorted(drawn.tolist()):
            try:
                digest.update(hashlib.sha256(self.encoded(row)).digest())
            except CorruptImage as error:
                digest.update(error.reason.encode())
        return digest.hexdigest()

    def _path(self, row: int) -> Path:
        return self.root / os.fsdecode(self.files[row])
