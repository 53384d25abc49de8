"""What a data source was found to hold: told in the first lines of a run, kept in run.json."""

import logging
import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from dinoswap.data.decoding import CorruptImage, Decoding, Pixels, open_image
from dinoswap.data.images import Images, ImageSource
from dinoswap.rng import numpy_generator

SAMPLE = 32
"""Images that are looked at, at most."""
DIM = 0.1
"""A range of 16 bits of which brighter pixels use no more than this share: 12 bits are a sixteenth, 0.06."""
_BRIGHT = 99.9  # percentile: single hot pixels of a sensor do not count
_SHOWN = 8
_CHANNELS = {"1": "bilevel", "L": "gray", "P": "palette", "LA": "gray with alpha", "PA": "palette with alpha"}


@dataclass(frozen=True)
class Look:
    """One image of the sample: what it is, its size, and, of 16 bits, how much of their range its bright pixels use."""

    kind: str  # "RGB, 8 bit"
    width: int
    height: int
    used: float | None = None


@dataclass(frozen=True)
class Inventory:
    """What was found; `remarks` are sentences about what the user may not expect."""

    images: int
    test_images: int | None
    classes: int | None
    class_names: Sequence[str]  # the first few
    labels: str | None  # where labels come from, as far as the source says
    looks: Sequence[Look]
    ignored: dict[str, int]
    remarks: Sequence[str]

    def sentence(self) -> str:
        """The line that a run begins with."""
        kinds = Counter(look.kind for look in self.looks)
        parts = [
            f"{self.images} images" + self._of_classes(),
            "no test images" if self.test_images is None else f"{self.test_images} test images",
            " and ".join(f"{kind} ({count} of {len(self.looks)} looked at)" for kind, count in kinds.most_common()),
            self._sizes(),
            "ignored: " + counted(self.ignored) if self.ignored else "",
        ]
        return "data: " + "; ".join(part for part in parts if part)

    def record(self) -> dict[str, Any]:
        """For run.json."""
        return {
            "images": self.images,
            "test_images": self.test_images,
            "classes": self.classes,
            "labels": self.labels,
            "kinds": dict(Counter(look.kind for look in self.looks)),
            "ignored": self.ignored,
            "remarks": list(self.remarks),
        }

    def tell(self, log: logging.Logger) -> None:
        log.info(self.sentence())
        for remark in self.remarks:
            log.warning("data: %s", remark)

    def _of_classes(self) -> str:
        if self.classes is None:
            return " without labels"
        more = ", ..." if self.classes > len(self.class_names) else ""
        names = f" ({', '.join(self.class_names)}{more})" if self.class_names else ""
        return f" of {self.classes} class{'es' * (self.classes != 1)}{names}" + (
            f" by {self.labels}" if self.labels else ""
        )

    def _sizes(self) -> str:
        if not self.looks:
            return ""
        small = min(self.looks, key=lambda look: look.width * look.height)
        large = max(self.looks, key=lambda look: look.width * look.height)
        sizes = dict.fromkeys(f"{look.width} x {look.height}" for look in (small, large))
        return " to ".join(sizes) + " pixels"


def counted(ignored: dict[str, int]) -> str:
    """ "3 .heic, 1 hidden file", most frequent first."""
    frequent = sorted(ignored.items(), key=lambda item: (-item[1], item[0]))
    rest = sum(count for _, count in frequent[_SHOWN:])
    return ", ".join([f"{count} {kind}" for kind, count in frequent[:_SHOWN]] + [f"{rest} others"] * (rest > 0))


def take_inventory(source: ImageSource, batch_size: int, decoding: Decoding) -> Inventory:
    """Of the source as it is: files are not searched again, and a few training images, always the same, are opened."""
    train, test = source.train(), source.test()
    looks = look_at_some(train, decoding)
    present = [] if train.labels is None else np.unique(train.labels).tolist()
    names = train.classes or ()
    return Inventory(
        images=len(train),
        test_images=None if test is None else len(test),
        classes=len(present) or None,
        class_names=[str(names[label]) for label in present[:_SHOWN] if label < len(names)],
        labels=source.labelled_by if present else None,
        looks=looks,
        ignored=dict(source.ignored),
        remarks=[*source.remarks, *dim(looks, decoding), *too_few(len(train), batch_size)],
    )


def look_at_some(images: Images, decoding: Decoding) -> list[Look]:
    looks = []
    drawn = numpy_generator(0, "data/inventory", len(images)).permutation(len(images))[:SAMPLE]
    for row in sorted(drawn.tolist()):
        try:
            data = images.encoded(row)
            looks.append(
                look_at_pixels(images.load(row)) if data is None else look_at(data, images.name(row), decoding)
            )
        except CorruptImage:  # counted when it is met
            continue
    return looks


def look_at_pixels(pixels: Pixels) -> Look:
    return Look("RGB, 8 bit", pixels.shape[1], pixels.shape[0])


def look_at(data: bytes | memoryview, name: str, decoding: Decoding) -> Look:
    """Of the header, and of the pixels where they are of 16 bits. Raises CorruptImage."""
    with open_image(data, name, decoding) as image:
        wide = image.mode.startswith("I") or bool(re.search(r";16[BLN]?\b", _stored_as(image)))
        channels = "gray" if image.mode.startswith("I") else _CHANNELS.get(image.mode, image.mode)
        bits = 16 if wide else 1 if image.mode == "1" else 32 if image.mode == "F" else 8
        return Look(f"{channels}, {bits} bit", *image.size, used=_used(image, decoding) if wide else None)


def _stored_as(image: Image.Image) -> str:
    """PIL's name of how pixels are stored, "RGB;16B", where it keeps one."""
    names = [str(tile[3]) for tile in getattr(image, "tile", ())]
    return "" if not names or names[0].startswith("BGR") else names[0]  # "BGR;16": a pixel of 16 bits


def _used(image: Image.Image, decoding: Decoding) -> float:
    """The share of its range that the bright pixels of a 16-bit image reach; of colours PIL has the upper 8 bits."""
    pixels = np.asarray(image)[:: max(image.height // 512, 1), :: max(image.width // 512, 1)]
    low, high = decoding.range_16bit if image.mode.startswith("I") else (0, 255)
    return float((np.percentile(pixels, _BRIGHT) - low) / (high - low))


def dim(looks: Sequence[Look], decoding: Decoding) -> list[str]:
    """Whether images of 16 bits come out nearly black, and what to do."""
    used = [look for look in looks if look.used is not None]
    brightest = max((look.used or 0.0 for look in used), default=0.0)
    if not 0 < brightest <= DIM:
        return []
    low, high = decoding.range_16bit
    bits = math.ceil(math.log2(max(low + brightest * (high - low), 1) + 1))  # that hold the bright pixels
    gray = any(look.kind.startswith("gray") for look in used)
    remedy = f"data.range_16bit=[{low},{2**bits - 1}] spreads it" if gray else "store them in 8 bits"
    return [
        f"{len(used)} of {len(looks)} images looked at have 16 bits and use {100 * brightest:.1f} % of their range: "
        f"they are nearly black; {remedy}"
    ]


def too_few(images: int, batch_size: int) -> list[str]:
    if batch_size <= images:
        return []
    return [
        f"data.batch_size={batch_size}: more images a step than the {images} there are; each is seen more than once"
    ]
