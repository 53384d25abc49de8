"""Reads images and depth maps of the same names from two folders:

<path>/images/{train,test}/**/<name>.jpg     or any other format that is decoded
<path>/depth/{train,test}/**/<name>.png      gray, of 16 bits; or .npy, an array [h, w], or .tiff
"""

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from dinoswap.data.images import Pixels, decode, extensions
from dinoswap.depth.stored import StoredDepth, as_map, decoded

SUFFIXES = (".png", ".npy", ".tif", ".tiff")


class FolderDepth(StoredDepth):
    """Reads the images and depth maps below the folder `path`. Raises ValueError when folders are missing or empty, and
    for an image without a depth map, or the reverse."""

    def __init__(
        self, *, path: str, scale: float, valid: tuple[float, float], train: int, test: int, side: int
    ) -> None:
        super().__init__(scale, valid, train, test, side)
        self.pairs = {part: FilePairs.below(Path(path).expanduser(), part) for part in self.limits}


class FilePairs:
    """Reads each image, and its depth map, from files."""

    def __init__(self, images: Sequence[Path], depths: Sequence[Path]) -> None:
        self.images, self.depths = images, depths

    @classmethod
    def below(cls, root: Path, part: str) -> "FilePairs":
        """Returns the pairs of a part, in the order of their names. Raises ValueError when there are none, and when the
        names in both folders are not the same."""
        images = files_by_name(root, f"images/{part}", extensions())
        depths = files_by_name(root, f"depth/{part}", SUFFIXES)
        if alone := sorted(images.keys() ^ depths.keys()):
            present, absent = ("images", "depth") if alone[0] in images else ("depth", "images")
            raise ValueError(
                f"path={root}: {len(alone)} files of the {part} part are in one folder only: "
                f"{present}/{part}/{alone[0]} is not in {absent}/{part}; add it there, or remove it here"
            )
        names = sorted(images)
        return cls([images[name] for name in names], [depths[name] for name in names])

    def __len__(self) -> int:
        return len(self.images)

    def load(self, index: int) -> tuple[Pixels, NDArray[Any]]:
        image, depth = self.images[index], self.depths[index]
        numbers = decoded(depth.read_bytes(), str(depth))
        return decode(image.read_bytes(), str(image)), as_map(numbers, str(depth))

    def name(self, index: int) -> str:
        return str(self.depths[index])


def files_by_name(root: Path, folder: str, suffixes: Collection[str]) -> dict[str, Path]:
    """Returns the files with one of the suffixes in `folder` of `root`, at any depth, by their path below it without
    suffix. Raises ValueError when there are none, or two of one name."""
    if not (root / folder).is_dir():
        raise ValueError(
            f"path={root}: has no folder {folder}; it holds images/train, images/test, depth/train and depth/test"
        )
    files: dict[str, Path] = {}
    for file in sorted((root / folder).rglob("*")):
        if file.suffix.lower() not in suffixes or file.name.startswith("."):
            continue
        name = str(file.relative_to(root / folder).with_suffix(""))
        if name in files:
            raise ValueError(f"path={root}: {folder}/{name} is there twice, as {files[name].name} and {file.name}")
        files[name] = file
    if not files:
        raise ValueError(f"path={root}: {folder} holds no file with one of {', '.join(sorted(suffixes)[:8])}")
    return files
