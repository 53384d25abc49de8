"""Determines from the folders of an image to which part of a data set and to which class it belongs.

    train/<class>/**, {test,val}/<class>/**                  the part, then the class
    images/train/<class>/**, images/test/<class>/**          the same, wherever the folder of the part is
    <object>/train/**, <object>/test/**                      part folders in several places: the class is above them
    <class>/**                                               no part: all are for training
    *                                                        no class

The first folder of a path, from the top, that names a part decides (`filesystem.part_of`). Words for parts are also
used in names of classes (train station, test tube): below the folder of a part they are read as names of classes,
unless the word stands alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

from dinoswap.data.filesystem import part_of


@dataclass(frozen=True)
class Place:
    """Holds the part that the folders of an image name, and the other folders of the path."""

    part: str | None
    folder: str  # of the part, "" where there is none
    above: tuple[str, ...]  # the folders above the part's
    below: tuple[str, ...]  # the folders below it


@dataclass(frozen=True)
class Part:
    """Holds the files of a part, and for each of them the class that its folders name."""

    files: Sequence[str]
    classes: Sequence[str | None]


@cache
def place_of(folder: str) -> Place:
    """Returns the part that a folder names, and the folders around it. Raises ValueError when two folders of the path
    name different parts."""
    names = _names(folder)
    for depth, name in enumerate(names):
        if (part := part_of(name)) is None:
            continue
        below = names[depth + 1 :]
        other = next((word for word in below if word.isalpha() and part_of(word) not in (None, part)), None)
        if other:
            raise ValueError(f"{folder}: says both {name} and {other}: rename the one that is no part of the data set")
        return Place(part, "/".join(names[: depth + 1]), names[:depth], below)
    return Place(None, "", (), names)


def arrange(files: Sequence[str]) -> tuple[dict[str, Part], list[str]]:
    """Returns the images of each part, in the order given, and the images that are in no part although others are;
    these are left out. Raises ValueError, with the remedy, when the folders do not show which images are to be trained
    on."""
    places = [place_of(folder_of(file)) for file in files]
    if _only_sounds_like_a_part(places):
        places = [Place(None, "", (), _names(folder_of(file))) for file in files]
    part_names = {place.part for place in places}
    if part_names == {None}:
        return {"train": Part(files, [_first(place.below) for place in places])}, []
    _require_training_part(places)
    classes = _classes(places)
    parts = {}
    for part in sorted(part_names - {None}, key=str):
        rows = [row for row, place in enumerate(places) if place.part == part]
        parts[str(part)] = Part([files[row] for row in rows], [classes[row] for row in rows])
    return parts, [file for file, place in zip(files, places, strict=True) if place.part is None]


def _only_sounds_like_a_part(places: Sequence[Place]) -> bool:
    """Tells whether the folders that name the training part are classes, such as "bullet_train" beside others. Where
    the word stands alone, `_require_training_part` asks the user."""
    folders = {place.folder for place in places if place.part}
    alone = any(folder.rpartition("/")[2].isalpha() for folder in folders)
    return {place.part for place in places} == {"train", None} and not alone


def _require_training_part(places: Sequence[Place]) -> None:
    """Raises ValueError when there are test images but no training images, and when it is unclear whether a folder is
    the training part or a class."""
    folders = sorted({place.folder for place in places if place.part})
    others = sorted({place.below[0] for place in places if place.part is None and place.below})
    part_names = {place.part for place in places}
    if "train" not in part_names:
        beside = f" beside {others[:5]}" if others else ""
        raise ValueError(f"holds {folders[:5]}{beside} but no folder train: add one, or rename what is not for testing")
    if part_names == {"train", None}:
        raise ValueError(
            f"holds {folders[0]} beside {others[:5] or 'images'}: is it the training part or a class? "
            f"Give the path of {folders[0]}, add a folder test, or rename the class"
        )


def _classes(places: Sequence[Place]) -> list[str | None]:
    """Returns the class of each image: the folder below that of the part or, when there are part folders in several
    places, the first folder above them in which these places differ."""
    tops = {place.above for place in places if place.part}
    if len(tops) == 1:
        return [_first(place.below) for place in places]
    first, last = min(tops), max(tops)
    pairs = enumerate(zip(first, last, strict=False))
    shared = next((depth for depth, (one, other) in pairs if one != other), len(first))
    return [_first(place.above[shared:]) for place in places]


def _first(names: Sequence[str]) -> str | None:
    return names[0] if names else None


def folder_of(file: str) -> str:
    """Returns the folder of a file, "" when there is none."""
    return file.rpartition("/")[0]


def _names(folder: str) -> tuple[str, ...]:
    return tuple(folder.split("/")) if folder else ()
