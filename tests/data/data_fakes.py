"""Small stand-ins for images, augmentation and masks, and encoded images."""

import io
from collections.abc import Callable

import numpy as np
import torch
from PIL import Image

from dinoswap.data.images import CorruptImage, Images
from dinoswap.data.steps import Pipeline
from dinoswap.values import Views


def encoded(pixels: np.ndarray | Image.Image, kind: str = "PNG", **options) -> bytes:
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def picture(value: int, height: int = 6, width: int = 8) -> np.ndarray:
    """uint8 [height, width, 3]; its top left pixel is (value % 256, value // 256, 0)."""
    pixels = np.random.default_rng(value).integers(0, 256, (height, width, 3), dtype=np.uint8)
    pixels[0, 0] = value % 256, value // 256, 0
    return pixels


class FakeImages(Images):
    """Rows of `picture(row)`; loading one in `corrupt` fails."""

    def __init__(self, count: int, corrupt: frozenset[int] = frozenset()) -> None:
        self.count, self.corrupt = count, corrupt
        self.labels, self.classes, self.blocks = None, None, [count]

    def __len__(self) -> int:
        return self.count

    def load(self, row: int) -> np.ndarray:
        if row in self.corrupt:
            raise CorruptImage(self.name(row), f"bad {row}")
        return picture(row)

    def name(self, row: int) -> str:
        return f"image {row}"


def augmentation(image: np.ndarray, rng: np.random.Generator) -> Views:
    """Globals that tell the row and the generator, three locals, clean crops of two sizes per global, no extra crop."""

    def crop(size: int) -> torch.Tensor:
        pixels = rng.integers(0, 256, (3, size, size), dtype=np.uint8)
        pixels[:, 0, 0] = image[0, 0]
        return torch.from_numpy(pixels)

    clean = {width: [crop(width), crop(width)] for width in (4, 6)}
    return Views([crop(4), crop(4)], [crop(2) for _ in range(3)], [], clean)


class FakeMasks:
    """bool [2, batch, 9], drawn for the whole step and cut."""

    def __init__(self, batch: int) -> None:
        self.batch = batch

    def __call__(self, step: int, part: slice = slice(None)) -> np.ndarray:
        return np.random.default_rng(step).random((2, self.batch, 9))[:, part] < 0.4


def one_pipeline(batch: int) -> tuple[list[Pipeline], Callable[[int], int]]:
    """The pipelines of a StepDataset of batches of this size, and its choice among them."""
    return [Pipeline(augmentation, FakeMasks(batch))], first


def first(step: int) -> int:
    return 0
