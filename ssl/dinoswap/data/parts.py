"""Which part of a data set an image belongs to, and which class, by the folders that it lies in.

    train/<class>/**, {test,val}/<class>/**                  the part, then the class
    images/train/<class>/**, images/test/<class>/**          the same, wherever the folder of the part is
    <object>/train/**, <object>/test/**                      part folders in several places: the class is above them
    <class>/**                                               no part: all are for training
    *                                                        no class

The first folder of a path, from the top, that says a part decides (`filesystem.part_of`). Words of parts are also names
of classes (train station, test tube): below the folder of a part they are taken for those, unless one stands alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

from dinoswap.data.filesystem import part_of


@dataclass(frozen=True)
class Place:
    """What the folders of an image say."""

    part: str | None
    folder: str  # of the part, "" where there is none
    above: tuple[str, ...]  # the folders above the part's
    below: tuple[str, ...]  # the folders below it


@dataclass(frozen=True)
class Part:
    """The images of a part, with the class that the folders of each say."""

    files: Sequence[str]
    classes: Sequence[str | None]


@cache
def place(folder: str) -> Place:
    """Raises ValueError where two folders of the path say different parts."""
    names = _names(folder)
    for depth, name in enumerate(names):
        if (part := part_of(name)) is None:
            continue
        other = next((n for n in names[depth + 1 :] if n.isalpha() and part_of(n) not in (None, part)), None)
        if other:
            raise ValueError(f"{folder}: says both {name} and {other}: rename the one that is no part of the data set")
        return Place(part, "/".join(names[: depth + 1]), names[:depth], names[depth + 1 :])
    return Place(None, "", (), names)


def arrange(files: Sequence[str]) -> tuple[dict[str, Part], list[str]]:
    """The images of each part, in the order given, and those in none of several parts: they are left out.

    Raises ValueError, with the remedy, where folders do not say what is to be trained on.
    """
    places = [place(folder_of(file)) for file in files]
    if _only_sounds_like_a_part(places):
        places = [Place(None, "", (), _names(folder_of(file))) for file in files]
    found = {p.part for p in places}
    if found == {None}:
        return {"train": Part(files, [_first(p.below) for p in places])}, []
    _require_training_part(places)
    classes = _classes(places)
    parts = {}
    for part in sorted(found - {None}, key=str):
        rows = [row for row, p in enumerate(places) if p.part == part]
        parts[str(part)] = Part([files[row] for row in rows], [classes[row] for row in rows])
    return parts, [file for file, p in zip(files, places, strict=True) if p.part is None]


def _only_sounds_like_a_part(places: Sequence[Place]) -> bool:
    """A class, "bullet_train", beside others. Where the word stands alone it is asked (`_require_training_part`)."""
    folders = {p.folder for p in places if p.part}
    alone = any(folder.rpartition("/")[2].isalpha() for folder in folders)
    return {p.part for p in places} == {"train", None} and not alone


def _require_training_part(places: Sequence[Place]) -> None:
    folders = sorted({p.folder for p in places if p.part})
    others = sorted({p.below[0] for p in places if p.part is None and p.below})
    found = {p.part for p in places}
    if "train" not in found:
        beside = f" beside {others[:5]}" if others else ""
        raise ValueError(f"holds {folders[:5]}{beside} but no folder train: add one, or rename what is not for testing")
    if found == {"train", None}:
        raise ValueError(
            f"holds {folders[0]} beside {others[:5] or 'images'}: is it the training part or a class? "
            f"Give the path of {folders[0]}, add a folder test, or rename the class"
        )


def _classes(places: Sequence[Place]) -> list[str | None]:
    """The folder below the part's, or, where parts are in several places, the first one above that tells them apart."""
    tops = {p.above for p in places if p.part}
    if len(tops) == 1:
        return [_first(p.below) for p in places]
    first, last = min(tops), max(tops)
    shared = next((n for n, names in enumerate(zip(first, last, strict=False)) if len(set(names)) > 1), len(first))
    return [_first(p.above[shared:]) for p in places]


def _first(names: Sequence[str]) -> str | None:
    return names[0] if names else None


def folder_of(file: str) -> str:
    return file.rpartition("/")[0]


def _names(folder: str) -> tuple[str, ...]:
    return tuple(folder.split("/")) if folder else ()
