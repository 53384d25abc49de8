"""What a data source was found to hold: told in the first lines of a run, kept in run.json."""

import logging
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dinoswap.data.decoding import CorruptImage, Decoding, Pixels, decode, open_image
from dinoswap.data.images import Images, ImageSource
from dinoswap.data.sixteen_bit import has_16_bits
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
    """What was found; `of_data` and `of_training` are sentences about what the user may not expect."""

    images: int
    test_images: int | None
    classes: int | None
    class_names: Sequence[str]  # the first few
    labels: str | None  # where labels come from, as far as the source says
    looks: Sequence[Look]
    ignored: dict[str, int]
    of_data: Sequence[str]
    of_training: Sequence[str]

    @property
    def remarks(self) -> list[str]:
        return [*self.of_data, *self.of_training]

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
            "remarks": self.remarks,
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
        of_data=[*source.remarks, *dim(looks, decoding)],
        of_training=too_few(len(train), batch_size),
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
        gray, wide = image.mode.startswith("I"), has_16_bits(image)
        channels = "gray" if gray else _CHANNELS.get(image.mode, image.mode)
        bits = 16 if wide else 1 if image.mode == "1" else 32 if image.mode == "F" else 8
        used = _share(np.asarray(image), decoding.range_16bit) if gray else None
        look = Look(f"{channels}, {bits} bit", *image.size, used=used)
    return replace(look, used=_share(decode(data, name, decoding), (0, 255))) if wide and not gray else look


def _share(pixels: NDArray[np.integer], window: tuple[int, int]) -> float:
    """Of the window, that the bright pixels of an image reach; a part of a large one is enough."""
    height, width = pixels.shape[:2]
    low, high = window
    some = pixels[:: max(height // 512, 1), :: max(width // 512, 1)]
    return float((np.percentile(some, _BRIGHT) - low) / (high - low))


def dim(looks: Sequence[Look], decoding: Decoding) -> list[str]:
    """Whether images of 16 bits come out nearly black, and what to do."""
    used = [look.used for look in looks if look.used is not None]
    brightest = max(used, default=0.0)
    if not 0 < brightest <= DIM:
        return []
    low, high = decoding.range_16bit
    bits = math.ceil(math.log2(max(low + brightest * (high - low), 1) + 1))  # that hold the bright pixels
    return [
        f"{len(used)} of {len(looks)} images looked at have 16 bits and use {100 * brightest:.1f} % of their range: "
        f"they are nearly black; data.range_16bit=[{low},{2**bits - 1}] spreads it"
    ]


def too_few(images: int, batch_size: int) -> list[str]:
    if batch_size <= images:
        return []
    return [
        f"data.batch_size={batch_size}: more images a step than the {images} there are; each is seen more than once"
    ]
