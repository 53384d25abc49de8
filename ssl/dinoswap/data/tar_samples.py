"""Finds the samples of a tar shard by reading the headers of its members once.

A sample consists of all members that share a path up to the first dot of the file name (the WebDataset convention). Its
image is the member jpg, jpeg, png or webp, else the first of another kind that Pillow decodes. Its label is the text of
`cls`, the field `label` of `json`, or the text of `txt` when that is a whole number (otherwise it is a caption). A hard
link stands for the member that it points to. Members that belong to no sample are counted.
"""

import functools
import io
import json
import os
import re
import tarfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from dinoswap.data.decoding import extensions
from dinoswap.data.filesystem import Unreadable, damage_named

SECOND_DOT = "image with a second dot in its name"  # and no part of another sample
BAD_JSON = "json member without a label that can be read"

_PREFERRED = ("jpg", "jpeg", "png", "webp")
_LABELS = ("cls", "json", "txt")
_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7z": "xz", b"\x28\xb5\x2f\xfd": "zstandard", b"PK": "zip"}
_REMEDY = "; a shard must be a complete, uncompressed tar: download or pack it again"
_BLOCK = 512
_KINDS_COUNTED = 50


class Sample(NamedTuple):
    """Locates the encoded image of a sample in its shard, and holds its label."""

    key: bytes
    offset: int  # bytes from the start of the shard to the encoded image
    size: int
    label: str  # "": none


class _Place(NamedTuple):
    """Locates the content of a member, by offset and size in bytes."""

    offset: int
    size: int


@functools.cache
def image_kinds() -> frozenset[str]:
    """Returns the suffixes, without their dot, of the formats that the installed Pillow decodes."""
    return frozenset(extension[1:] for extension in extensions())


def read_samples(shard: Path) -> tuple[list[Sample], Counter[str]]:
    """Returns the samples that have an image, in the order of the shard, and the counts of what was left out. Raises
    Unreadable, naming the shard, when it is no plain tar, cut short or damaged."""
    if shard.stat().st_size == 0:
        raise Unreadable(f"{shard}: empty")
    with shard.open("rb", buffering=0) as raw, damage_named(shard, _REMEDY), _Bounded(raw) as file:
        _check_plain(shard, file)
        members = _Members(file)
        with tarfile.open(fileobj=file, mode="r:", errors="surrogateescape") as tar:
            for member in _advancing(tar, shard):
                members.take(member)
            _check_end(shard, file, tar.offset)
        return members.samples()


class _Bounded(io.BufferedReader):
    """Reads no more bytes than the file has, since the header of a damaged member may claim any size."""

    def __init__(self, raw: io.FileIO) -> None:
        super().__init__(raw)
        self.size = os.fstat(raw.fileno()).st_size

    def read(self, size: int | None = -1, /) -> bytes:
        left = max(0, self.size - self.tell())
        return super().read(left if size is None or size < 0 else min(size, left))


def _advancing(tar: tarfile.TarFile, shard: Path) -> Iterator[tarfile.TarInfo]:
    """Yields the members of the archive, without the list of them that tarfile keeps. Raises Unreadable for a member
    that does not begin after the one before it."""
    last_offset = -1
    while (member := tar.next()) is not None:
        vars(tar)["members"].clear()
        if member.size < 0 or member.offset_data <= last_offset:
            raise Unreadable(f"{shard}: damaged at byte {member.offset}: a member of {member.size} bytes")
        last_offset = member.offset_data
        yield member


def _check_plain(shard: Path, file: io.BufferedReader) -> None:
    """Raises Unreadable when the shard is compressed."""
    start = file.read(4)
    file.seek(0)
    for magic, program in _COMPRESSED.items():
        if start.startswith(magic):
            raise Unreadable(f"{shard}: compressed ({program}): it must be a plain tar, which is read at any offset")


def _check_end(shard: Path, file: io.BufferedReader, end: int) -> None:
    """Raises Unreadable unless only zeros follow after `end`, at least one: the blocks that end an archive. tarfile
    stops without an error where a header is cut or damaged, and an archive that is cut between two members has lost
    some, too."""
    file.seek(end)
    block = file.read(_BLOCK)
    if not block:
        raise Unreadable(
            f"{shard}: cut short at byte {end}: no end-of-archive block; download it again, or, if it is known to be "
            "whole, append one: truncate -s +1024"
        )
    if block.strip(b"\0"):
        raise Unreadable(f"{shard}: cut short or damaged at byte {end}, where the header of a member should be")
    while chunk := file.read(1 << 20):
        if chunk.strip(b"\0"):
            raise Unreadable(
                f"{shard}: damaged, or several archives one after another: data follows after its end at byte {end}; "
                "unpack and pack it as one"
            )


class _Members:
    """Gathers the members of a shard into samples, and counts the members that belong to none."""

    def __init__(self, file: io.BufferedReader) -> None:
        self.file = file
        self.places: dict[str, _Place] = {}  # of every regular file, for the hard links to it
        self.images: dict[str, dict[str, _Place]] = {}  # key -> kind -> place
        self.labels: dict[str, dict[str, str]] = {}  # key -> kind -> text
        self.dotted: list[tuple[str, str]] = []  # key and suffix of images with a second dot
        self.ignored: Counter[str] = Counter()

    def take(self, member: tarfile.TarInfo) -> None:
        """Adds a member to the images or labels of its sample, or counts it as ignored."""
        place = self._place(member)
        if place is None:
            return
        folder, _, name = member.name.rpartition("/")
        stem, _, kind = name.partition(".")
        key, kind, suffix = f"{folder}/{stem}" if folder else stem, kind.lower(), name.rpartition(".")[2].lower()
        if not stem:
            self.ignored["hidden file"] += 1
        elif kind in image_kinds():
            images = self.images.setdefault(key, {})
            self.ignored.update(["second member of the same name"] * (kind in images))
            images[kind] = place
        elif kind in _LABELS:
            self.labels.setdefault(key, {})[kind] = self._label(kind, place)
        elif suffix in image_kinds():
            self.dotted.append((key, suffix))
        else:
            category = f".{suffix}" if kind and len(suffix) < 16 else "member without a suffix"
            self.ignored[category if len(self.ignored) < _KINDS_COUNTED else "member of another kind"] += 1

    def samples(self) -> tuple[list[Sample], Counter[str]]:
        """Returns the samples that have an image, and the counts of what was left out. It is called once, after all
        members."""
        for key, suffix in self.dotted:
            self.ignored[f"second .{suffix} of a sample" if key in self.images else SECOND_DOT] += 1
        without = sum(key not in self.images for key in self.labels)
        self.ignored.update({"sample without an image": without} if without else {})
        return [self._sample(key, places) for key, places in self.images.items()], self.ignored

    def _sample(self, key: str, places: dict[str, _Place]) -> Sample:
        """Returns the sample of a key: the preferred one of its images, which are at `places` by kind, and its
        label."""
        kind = next((kind for kind in _PREFERRED if kind in places), next(iter(places)))
        self.ignored.update(f"second .{other} of a sample" for other in places if other != kind)
        labels = self.labels.get(key, {})
        label = next((labels[label_kind] for label_kind in _LABELS if labels.get(label_kind)), "")
        return Sample(key.encode(errors="surrogateescape"), *places[kind], label)

    def _place(self, member: tarfile.TarInfo) -> _Place | None:
        """Returns the place of a member's content, or None, which is counted, when it has none in this shard."""
        if member.islnk():
            place = self.places.get(member.linkname)
            self.ignored.update(["hard link to no member"] * (place is None))
            return place
        if member.isreg() and not member.issparse():
            place = _Place(member.offset_data, member.size)
            self.places[member.name] = place
            return place
        if not member.isdir():
            self.ignored["symbolic link" if member.issym() else "member that is no regular file"] += 1
        return None

    def _label(self, kind: str, place: _Place) -> str:
        """Returns the label that a member holds, "" when it holds none. Undecodable json is counted."""
        self.file.seek(place.offset)
        data = self.file.read(place.size)
        if kind != "json":
            text = data.decode(errors="backslashreplace").strip()
            return _text_label(text) if kind == "cls" or re.fullmatch(r"[0-9]+", text) else ""
        try:
            value = json.loads(data)
            label = value.get("label") if isinstance(value, dict) else None
            return "" if label is None else _json_label(label)
        except (ValueError, RecursionError):  # ValueError: no JSON, no UTF-8, or a number of thousands of digits
            self.ignored[BAD_JSON] += 1
            return ""


def _json_label(value: object) -> str:
    """Returns the label of a JSON value as text. Raises ValueError for a value that is neither a whole number nor
    text."""
    if isinstance(value, bool | int) or (isinstance(value, float) and value.is_integer()):
        return _text_label(str(int(value)))
    if isinstance(value, str):
        return _text_label(value.strip().encode(errors="backslashreplace").decode())
    raise ValueError(f"a label of type {type(value).__name__}")


def _text_label(text: str) -> str:
    """Returns the label of a text. A negative whole number means that there is no label, as on the hub; leading zeros
    are removed."""
    if re.fullmatch(r"-[0-9]+", text):
        return "" if text.strip("-0") else "0"
    return (text.lstrip("0") or "0") if re.fullmatch(r"[0-9]+", text) else text
