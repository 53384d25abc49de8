"""Images that need no file: stripes of one of four directions, which is the label, at a width of their own."""

import numpy as np

from dinoswap.data.images import Images, ImageSource, Pixels


class StripesData(ImageSource):
    """`images` to train on, and a quarter as many to test with, of `side` pixels."""

    def __init__(self, *, images: int, side: int) -> None:
        self._train, self._test = Stripes(images, side, first=0), Stripes(max(images // 4, 4), side, first=10**6)

    def train(self) -> Images:
        return self._train

    def test(self) -> Images:
        return self._test


class Stripes(Images):
    def __init__(self, images: int, side: int, first: int) -> None:
        self.side, self.first = side, first
        self.labels = np.arange(images) % 4
        self.classes = ["0", "45", "90", "135"]
        self.blocks = [images]

    def __len__(self) -> int:
        return len(self.labels)

    def load(self, row: int) -> Pixels:
        y, x = np.mgrid[: self.side, : self.side]
        angle, width = np.pi / 4 * (row % 4), 3 + (self.first + row) * 0.618 % 4
        grey = 127.5 * (1 + np.sin((x * np.cos(angle) + y * np.sin(angle)) / width))
        return np.repeat(grey.astype(np.uint8)[..., None], 3, axis=2)

    def name(self, row: int) -> str:
        return f"stripes-{self.first + row}"
