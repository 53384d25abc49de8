"""Reads image files below a folder or in a zip file. Folders or a CSV file name the part and the class of each image.

See file_tree.py for which files are read, parts.py for what folders mean, label_file.py for `labels`.
"""

import hashlib
import os
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from dinoswap.data.decoding import DEFAULT, CorruptImage, Decoding, Pixels, decode
from dinoswap.data.file_tree import FolderFiles, list_images
from dinoswap.data.images import Images, ImageSource, first_labelled, numbered
from dinoswap.data.label_file import read_labels
from dinoswap.data.parts import Part, arrange, folder_of
from dinoswap.data.zip_file import ZipFiles
from dinoswap.rng import numpy_generator

__all__ = ["FolderImages", "ImageFolderData", "list_images"]

SAMPLE = 256
"""The largest number of images whose bytes are a part of a folder's fingerprint."""
_OF_OTHERS = re.compile(
    "(binary|instance|semantic|panoptic|segmentation)?"
    "(masks?|annotations?|labels?|seg(mentation)?s?(class|object)?|gt|groundtruth)"
)
"""Names of folders whose pictures annotate other images: COCO's masks, VOC's SegmentationClass, MVTec's
ground_truth."""


class Files(Protocol):
    """Stores image files: a folder or a zip file."""

    root: Path
    files: list[str]  # relative to root, in a lasting order
    ignored: Counter[str]

    def name(self, file: str) -> str: ...

    def size(self, file: str) -> int: ...

    def checksum(self, file: str) -> bytes | None: ...

    def read(self, file: str, decoding: Decoding) -> bytes: ...


class ImageFolderData(ImageSource):
    """Reads the image files below the folder, or in the zip file, `path`. `labels` is a CSV file of paths below it and
    labels, in place of folders of classes. Raises ValueError when there are no images or no training part, and when
    folders or labels contradict each other."""

    def __init__(self, path: str, *, labels: str | None = None, decoding: Decoding = DEFAULT) -> None:
        self.path, self.decoding = Path(path).expanduser(), decoding
        files = self._find()
        self.ignored, self.remarks = files.ignored, []
        self.label_file = None if labels is None else Path(labels).expanduser()
        self._labels = None if self.label_file is None else read_labels(self.label_file, files.files)
        self.parts = self._arrange(files)
        self._opened = {"train": self._open(files, "train", None)}
        for part in ("test", "validation"):
            if part in self.parts:
                self._opened[part] = self._open(files, part, self._opened["train"].classes)

    @property
    def labelled_by(self) -> str:
        return "folder" if self.label_file is None else str(self.label_file)

    def train(self) -> "FolderImages":
        return self._opened["train"]

    def test(self) -> Images | None:
        return first_labelled(self._opened[part] for part in ("test", "validation") if part in self._opened)

    def _find(self) -> Files:
        """Returns the image files. Raises ValueError when the path does not exist, is no zip file, or holds no
        images."""
        if not self.path.exists():
            raise ValueError(f"data.path={self.path}: no such folder; give one that holds train/<class>/ or images")
        try:
            store: Files = FolderFiles(self.path) if self.path.is_dir() else ZipFiles(self.path)
        except ValueError as error:
            raise ValueError(f"data.path={self.path}: {error}") from error
        if not store.files:
            counted = ", ".join(f"{count} {kind}" for kind, count in store.ignored.most_common(5)) or "nothing"
            raise ValueError(f"data.path={self.path}: no images of a format that PIL decodes; found {counted}")
        return store

    def _arrange(self, files: Files) -> dict[str, Part]:
        """Returns the images of each part, and adds remarks about images in no part and about folders of masks or
        annotations. Raises ValueError when the folders do not show which images are to be trained on."""
        try:
            parts, left_out = arrange(files.files)
        except ValueError as error:
            raise ValueError(f"data.path={self.path}: {error}") from error
        if left_out:
            self.ignored["image in no part"] += len(left_out)
            self.remarks.append(
                f"{len(left_out)} images, e.g. {left_out[0]}, lie in no part, beside {' and '.join(sorted(parts))}: "
                "they are not used"
            )
        of_others: Counter[str] = Counter()
        for folder, count in Counter(map(folder_of, parts["train"].files)).items():
            of_others.update(dict.fromkeys(_pictures_of_others(folder), count))
        for name, count in of_others.items():
            self.remarks.append(
                f"{count} of {len(parts['train'].files)} images lie in folders called {name} and are trained on: where "
                "they are masks or annotations of the others, move them elsewhere or give the folder of the images"
            )
        return parts

    def _open(self, files: Files, part: str, classes: Sequence[str] | None) -> "FolderImages":
        """Returns the images of a part. A remark says why labels are not used, if some images have one and others do
        not."""
        paths = self.parts[part].files
        names = self.parts[part].classes if self._labels is None else [self._labels.get(path) for path in paths]
        without = [path for path, name in zip(paths, names, strict=True) if name is None]
        if without and (part != "train" or len(without) < len(names) or self._labels):
            reason = "lie in no class folder" if self._labels is None else f"have none in {self.label_file}"
            self.remarks.append(
                f"labels of the {part} part are not used: {len(without)} of its {len(names)} images {reason}, "
                f"e.g. {without[0]}"
            )
        return FolderImages(files, paths, names, classes, self.decoding)


def _pictures_of_others(folder: str) -> set[str]:
    """Returns the names in a path that are usual for folders of masks or annotations."""
    return {name for name in folder.split("/") if _OF_OTHERS.fullmatch("".join(re.findall("[a-z]", name.lower())))}


class FolderImages(Images):
    """Holds `files` of `store`, each with its class name or None. `classes` are the class names by label; when it is
    None they are the names that occur. There are labels only if every file has a class."""

    def __init__(
        self,
        store: Files,
        files: Sequence[str],
        names: Sequence[str | None],
        classes: Sequence[str] | None = None,
        decoding: Decoding = DEFAULT,
    ) -> None:
        self.store, self.decoding = store, decoding
        self.files = np.array([os.fsencode(file) for file in files])  # an array: forked workers share its pages
        self.blocks = [len(files)]
        self.labels, self.classes = None, None
        class_names = [name for name in names if name is not None]
        if len(class_names) == len(names):
            self.labels, self.classes = numbered(class_names, classes or _sorted(class_names), str(store.root))

    def __len__(self) -> int:
        return len(self.files)

    def load(self, row: int) -> Pixels:
        return decode(self.encoded(row), self.name(row), self.decoding)

    def encoded(self, row: int) -> bytes:
        return self.store.read(self._file(row), self.decoding)

    def size(self, row: int) -> int:
        return self.store.size(self._file(row))

    def name(self, row: int) -> str:
        return self.store.name(self._file(row))

    def fingerprint(self) -> str:
        """Returns a hexadecimal digest of names relative to the folder, labels, and content: the checksums where they
        are known, else the bytes of at most `SAMPLE` images, always the same ones."""
        digest = hashlib.sha256(f"{len(self)}\n".encode())
        for row, file in enumerate(self.files):
            checksum = self.store.checksum(self._file(row)) or b""
            digest.update(b"%b %d %b\n" % (file, -1 if self.labels is None else self.labels[row], checksum))
        digest.update(repr(self.classes and list(self.classes)).encode(errors="surrogateescape"))
        drawn = numpy_generator(0, "data/fingerprint", len(self)).permutation(len(self))[:SAMPLE]
        for row in sorted(drawn.tolist()):
            if self.store.checksum(self._file(row)) is None:
                digest.update(self._digest(row))
        return digest.hexdigest()

    def _digest(self, row: int) -> bytes:
        """Returns the SHA-256 of an encoded image, or the reason why it cannot be read."""
        try:
            return hashlib.sha256(self.encoded(row)).digest()
        except CorruptImage as error:
            return error.reason.encode()

    def _file(self, row: int) -> str:
        return os.fsdecode(self.files[row])


def _sorted(names: Sequence[str]) -> Sequence[str]:
    """Returns the distinct class names in the order of their labels: by value if all are numbers, else as text."""
    distinct = set(names)
    return sorted(distinct, key=int) if all(name.isdecimal() for name in distinct) else sorted(distinct)
