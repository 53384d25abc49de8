"""Annotated images in folders, as ADE20K, Pascal VOC and Cityscapes ship them, or as one's own in the simplest way.

    ADE20K      images/{training,validation}/*.jpg, annotations/...: values 1 to 150 are classes, 0 is not judged
    VOC         JPEGImages, SegmentationClass, ImageSets/Segmentation/{train,val}.txt: 0 to 20, 255 is not judged
    Cityscapes  leftImg8bit/{train,val}/<city>, gtFine/...: the 19 classes that are judged
    own         images/{train,val}/..., annotations/...: equal names but for the suffix; values from 0 on

What has test images, "test" in place of "val" included, is trained on the official training part.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dinoswap.data.images import CorruptImage, Images
from dinoswap.dense.annotated import AnnotatedImages, checked_side, classes_by_value
from dinoswap.dense.base import AnnotatedParts, AnnotatedSource

Pairs = Sequence[tuple[Path, Path]]
"""Images and their annotations."""
IMAGES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")
VOC_CLASSES = (
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable",
    "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip
CITYSCAPES = {
    7: "road", 8: "sidewalk", 11: "building", 12: "wall", 13: "fence", 17: "pole", 19: "traffic light",
    20: "traffic sign", 21: "vegetation", 22: "terrain", 23: "sky", 24: "person", 25: "rider", 26: "car", 27: "truck",
    28: "bus", 31: "train", 32: "motorcycle", 33: "bicycle",
}  # fmt: skip
"""Value in a map of labelIds -> name of a class that is judged (mcordts/cityscapesScripts, helpers/labels.py)."""


@dataclass(frozen=True)
class Layout:
    """How a data set is stored: its pairs by part, and which values of a map are which classes."""

    train: Pairs
    test: Pairs
    names: Sequence[str] | None = None
    first: int = 0
    values: Mapping[int, int] | None = None


class AnnotatedFolder(AnnotatedSource):
    """Reads annotated images below `path`, `size` pixels square, None for the side that whole images are evaluated
    at. `classes` is their number, where the layout does not tell it; `train` and `test` limit how many images are read,
    None for all."""

    def __init__(
        self, *, path: str, size: int | None, classes: int | None, train: int | None, test: int | None
    ) -> None:
        if classes is not None and not 2 <= classes <= 2**15:
            raise ValueError(f"classes={classes}: from two on there is something to tell apart, and at most {2**15}")
        self.path, self.size, self.classes, self.limits = Path(path).expanduser(), size, classes, (train, test)

    def parts(self, train: Images, test: Images | None, size: int, patch: int) -> AnnotatedParts:
        side = checked_side(self.size, size, patch, *self.limits)
        layout = layout_of(self.path)
        if layout.names is None and self.classes is None:
            raise ValueError(f"evaluation.dense.classes=null: {self.path} does not tell how many classes there are")
        names = layout.names if self.classes is None else [str(number) for number in range(self.classes)]
        names = names or ()
        table = classes_by_value(layout.first, len(names), layout.values if self.classes is None else None)
        scenes = (
            FolderScenes(pairs, limit, side, table)
            for pairs, limit in zip((layout.train, layout.test), self.limits, strict=True)
        )
        return AnnotatedParts(next(scenes), next(scenes), names)


class FolderScenes(AnnotatedImages):
    """Scenes of pairs of files."""

    def __init__(self, pairs: Pairs, limit: int | None, size: int, table: NDArray[np.int16]) -> None:
        super().__init__(len(pairs), limit, size, table)
        self.pairs = pairs

    def read(self, row: int) -> tuple[str, bytes, bytes]:
        image, annotation = self.pairs[row]
        try:
            return str(image), image.read_bytes(), annotation.read_bytes()
        except OSError as error:
            raise CorruptImage(str(image), str(error)) from error


def layout_of(root: Path) -> Layout:
    """Returns the layout of the data set at `root`. Raises ValueError where there is none, and where a part has no
    pair."""
    for folders, read in LAYOUTS.items():
        if all((root / folder).is_dir() for folder in folders):
            layout = read(root)
            for part, pairs in (("train", layout.train), ("test", layout.test)):
                if not pairs:
                    raise ValueError(f"evaluation.dense.path={root}: has no annotated images of its {part} part")
            return layout
    known = "; ".join(" and ".join(folders) for folders in LAYOUTS)
    state = "is no folder" if not root.is_dir() else "has none of the folders of a layout that is known"
    raise ValueError(f"evaluation.dense.path={root}: {state}: {known}")


def _voc(root: Path) -> Layout:
    """Returns the layout of Pascal VOC below `root`, whose files list the images of each part."""

    def pairs(part: str) -> Pairs:
        file = root / "ImageSets" / "Segmentation" / f"{part}.txt"
        names = file.read_text().split() if file.is_file() else []
        return [(root / "JPEGImages" / f"{name}.jpg", root / "SegmentationClass" / f"{name}.png") for name in names]

    return Layout(pairs("train"), pairs("val"), VOC_CLASSES)


def _cityscapes(root: Path) -> Layout:
    """Returns the layout of Cityscapes below `root`, with the classes of CITYSCAPES."""

    def pairs(part: str) -> Pairs:
        annotated = []
        for image in sorted((root / "leftImg8bit" / part).glob("*/*_leftImg8bit.png")):
            name = image.name.replace("_leftImg8bit", "_gtFine_labelIds")
            annotated.append((image, root / "gtFine" / part / image.parent.name / name))
        return annotated

    values = {value: number for number, value in enumerate(CITYSCAPES)}
    return Layout(pairs("train"), pairs("val"), list(CITYSCAPES.values()), values=values)


def _images_and_annotations(root: Path) -> Layout:
    """Returns the layout of a folder with images and annotations of the same names. Where it has images/training, as
    ADE20K has, its classes are numbered from 1."""

    def pairs(*parts: str) -> Pairs:
        part = next((part for part in parts if (root / "images" / part).is_dir()), parts[0])
        images, annotations = root / "images" / part, root / "annotations" / part
        files = sorted(file for file in images.rglob("*") if file.suffix.lower() in IMAGES)
        return [(file, annotations / file.relative_to(images).with_suffix(".png")) for file in files]

    train, test = pairs("training", "train"), pairs("validation", "val", "test")
    if not (root / "images" / "training").is_dir():
        return Layout(train, test)
    listed = root / "objectInfo150.txt"  # of the scene parsing benchmark: a table with the names in its last column
    lines = listed.read_text().splitlines()[1:151] if listed.is_file() else []
    names = [line.split("\t")[-1].split(",")[0].strip() for line in lines] or [str(number) for number in range(1, 151)]
    return Layout(train, test, names, first=1)


LAYOUTS: Mapping[tuple[str, ...], Callable[[Path], Layout]] = {
    ("images", "annotations"): _images_and_annotations,
    ("JPEGImages", "SegmentationClass"): _voc,
    ("leftImg8bit", "gtFine"): _cityscapes,
}
"""The folders by which a layout is recognised, and what reads it."""
