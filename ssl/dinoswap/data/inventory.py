"""Summarises what a data source holds, for the first lines of a run and for run.json."""

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
"""The largest number of images that are opened."""
DIM = 0.1
"""Images of 16 bits are reported as nearly black when their brightest pixels use at most this share of the range. 12
bits are a sixteenth, 0.06."""
_BRIGHT = 99.9  # percentile: single hot pixels of a sensor do not count
_SHOWN = 8
_CHANNELS = {"1": "bilevel", "L": "gray", "P": "palette", "LA": "gray with alpha", "PA": "palette with alpha"}


@dataclass(frozen=True)
class ImageSummary:
    """Describes one image of the sample: its kind, its width and height in pixels, and for 16 bits the share of the
    range that its bright pixels use."""

    kind: str  # "RGB, 8 bit"
    width: int
    height: int
    used: float | None = None


@dataclass(frozen=True)
class Inventory:
    """Holds what a source was found to contain; `of_data` and `of_training` are sentences about what the user may not
    expect."""

    images: int
    test_images: int | None
    classes: int | None
    class_names: Sequence[str]  # the first few
    labels: str | None  # where labels come from, as far as the source says
    summaries: Sequence[ImageSummary]
    ignored: dict[str, int]
    of_data: Sequence[str]
    of_training: Sequence[str]

    @property
    def remarks(self) -> list[str]:
        """Returns the remarks about the data and about training on them."""
        return [*self.of_data, *self.of_training]

    def sentence(self) -> str:
        """Returns the line that a run begins with."""
        kinds = Counter(summary.kind for summary in self.summaries)
        parts = [
            f"{self.images} images" + self._of_classes(),
            "no test images" if self.test_images is None else f"{self.test_images} test images",
            " and ".join(f"{kind} ({count} of {len(self.summaries)} looked at)" for kind, count in kinds.most_common()),
            self._sizes(),
            "ignored: " + counted(self.ignored) if self.ignored else "",
        ]
        return "data: " + "; ".join(part for part in parts if part)

    def record(self) -> dict[str, Any]:
        """Returns the entry of run.json."""
        return {
            "images": self.images,
            "test_images": self.test_images,
            "classes": self.classes,
            "labels": self.labels,
            "kinds": dict(Counter(summary.kind for summary in self.summaries)),
            "ignored": self.ignored,
            "remarks": self.remarks,
        }

    def tell(self, log: logging.Logger) -> None:
        """Logs the sentence, and each remark as a warning."""
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
        if not self.summaries:
            return ""
        small = min(self.summaries, key=lambda summary: summary.width * summary.height)
        large = max(self.summaries, key=lambda summary: summary.width * summary.height)
        sizes = dict.fromkeys(f"{summary.width} x {summary.height}" for summary in (small, large))
        return " to ".join(sizes) + " pixels"


def counted(ignored: dict[str, int]) -> str:
    """Returns a text such as "3 .heic, 1 hidden file", most frequent kind first."""
    frequent = sorted(ignored.items(), key=lambda item: (-item[1], item[0]))
    rest = sum(count for _, count in frequent[_SHOWN:])
    return ", ".join([f"{count} {kind}" for kind, count in frequent[:_SHOWN]] + [f"{rest} others"] * (rest > 0))


def take_inventory(source: ImageSource, batch_size: int, decoding: Decoding) -> Inventory:
    """Returns the inventory of a source. Files are not searched again, and a few training images, always the same ones,
    are opened."""
    train, test = source.train(), source.test()
    summaries = summarise_sample(train, decoding)
    present = [] if train.labels is None else np.unique(train.labels).tolist()
    names = train.classes or ()
    return Inventory(
        images=len(train),
        test_images=None if test is None else len(test),
        classes=len(present) or None,
        class_names=[str(names[label]) for label in present[:_SHOWN] if label < len(names)],
        labels=source.labelled_by if present else None,
        summaries=summaries,
        ignored=dict(source.ignored),
        of_data=[*source.remarks, *dim(summaries, decoding)],
        of_training=too_few(len(train), batch_size),
    )


def summarise_sample(images: Images, decoding: Decoding) -> list[ImageSummary]:
    """Returns the summaries of at most SAMPLE images, always the same ones; images that cannot be decoded are left
    out."""
    summaries = []
    drawn = numpy_generator(0, "data/inventory", len(images)).permutation(len(images))[:SAMPLE]
    for row in sorted(drawn.tolist()):
        try:
            data = images.encoded(row)
            summaries.append(
                summarise_pixels(images.load(row)) if data is None else summarise(data, images.name(row), decoding)
            )
        except CorruptImage:  # counted when it is met
            continue
    return summaries


def summarise_pixels(pixels: Pixels) -> ImageSummary:
    """Returns the summary of an image of which only the pixels, uint8 [H, W, 3], are kept."""
    return ImageSummary("RGB, 8 bit", pixels.shape[1], pixels.shape[0])


def summarise(data: bytes | memoryview, name: str, decoding: Decoding) -> ImageSummary:
    """Returns the summary of an encoded image from its header, and from its pixels if they have 16 bits. Raises
    CorruptImage when it cannot be decoded."""
    with open_image(data, name, decoding) as image:
        gray, wide = image.mode.startswith("I"), has_16_bits(image)
        channels = "gray" if gray else _CHANNELS.get(image.mode, image.mode)
        bits = 16 if wide else 1 if image.mode == "1" else 32 if image.mode == "F" else 8
        used = _share(np.asarray(image), decoding.range_16bit) if gray else None
        summary = ImageSummary(f"{channels}, {bits} bit", *image.size, used=used)
    return replace(summary, used=_share(decode(data, name, decoding), (0, 255))) if wide and not gray else summary


def _share(pixels: NDArray[np.integer], window: tuple[int, int]) -> float:
    """Returns the share of the range `window` that the bright pixels of an image reach. Of a large image only some rows
    and columns are used."""
    height, width = pixels.shape[:2]
    low, high = window
    sampled = pixels[:: max(height // 512, 1), :: max(width // 512, 1)]
    return float((np.percentile(sampled, _BRIGHT) - low) / (high - low))


def dim(summaries: Sequence[ImageSummary], decoding: Decoding) -> list[str]:
    """Returns a remark, with the remedy, when images of 16 bits come out nearly black; else nothing."""
    used = [summary.used for summary in summaries if summary.used is not None]
    brightest = max(used, default=0.0)
    if not 0 < brightest <= DIM:
        return []
    low, high = decoding.range_16bit
    bits = math.ceil(math.log2(max(low + brightest * (high - low), 1) + 1))  # that hold the bright pixels
    return [
        f"{len(used)} of {len(summaries)} images looked at have 16 bits and use {100 * brightest:.1f} % of their "
        f"range: they are nearly black; data.range_16bit=[{low},{2**bits - 1}] spreads it"
    ]


def too_few(images: int, batch_size: int) -> list[str]:
    """Returns a remark when a batch has more images than the data set; else nothing."""
    if batch_size <= images:
        return []
    return [
        f"data.batch_size={batch_size}: more images a step than the {images} there are; each is seen more than once"
    ]
