"""Random resized crop and flips: where a view lies in the image, and cutting it out.

A crop has area a * H * W with a ~ U(scale) and aspect r with log r ~ U(log ratio), at a uniform position. After ten
draws that do not fit, it is the largest central crop whose aspect lies within `ratio`. This is the distribution of
torchvision's RandomResizedCrop. The resize (bicubic, antialiased, width first) is torch's uint8 kernel: within 2 levels
of 255 of PIL's, 0.02 on average. (Pillow 13 begins with the height of tall crops, which moves sharp edges further.)
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import torch
from torch.nn.functional import interpolate

Pixels = npt.NDArray[Any]
"""uint8 [H, W, 3], RGB."""

ATTEMPTS = 10
UNIFORMS = 4 + 2 * ATTEMPTS
"""Count of the numbers in [0, 1) that `RandomCrop.draw` reads."""


@dataclass(frozen=True)
class Crop:
    """A rectangle of the image in pixels, mirrored after it is cut out."""

    top: int
    left: int
    height: int
    width: int
    horizontal_flip: bool = False
    vertical_flip: bool = False


@dataclass(frozen=True)
class RandomCrop:
    """The distribution of a crop: intervals of relative area and of width / height, probabilities of the flips."""

    scale: tuple[float, float]
    horizontal_flip: float
    vertical_flip: float = 0.0
    ratio: tuple[float, float] = (3 / 4, 4 / 3)

    def draw(self, uniforms: Sequence[float], height: int, width: int) -> Crop:
        """Returns the crop of a height x width image that UNIFORMS numbers in [0, 1) determine."""
        top, left, horizontal, vertical, *attempts = uniforms
        flips = horizontal < self.horizontal_flip, vertical < self.vertical_flip
        extent = self._random_extent(attempts, height, width)
        if extent is None:
            crop_height, crop_width = self._central_extent(height, width)
            return Crop((height - crop_height) // 2, (width - crop_width) // 2, crop_height, crop_width, *flips)
        crop_height, crop_width = extent
        return Crop(
            int(top * (height - crop_height + 1)), int(left * (width - crop_width + 1)), crop_height, crop_width, *flips
        )

    def _random_extent(self, attempts: Sequence[float], height: int, width: int) -> tuple[int, int] | None:
        low, high = math.log(self.ratio[0]), math.log(self.ratio[1])
        for area, aspect in zip(attempts[::2], attempts[1::2], strict=True):
            target = height * width * (self.scale[0] + area * (self.scale[1] - self.scale[0]))
            ratio = math.exp(low + aspect * (high - low))
            crop_height, crop_width = round(math.sqrt(target / ratio)), round(math.sqrt(target * ratio))
            if 0 < crop_height <= height and 0 < crop_width <= width:
                return crop_height, crop_width
        return None

    def _central_extent(self, height: int, width: int) -> tuple[int, int]:
        if width < self.ratio[0] * height:
            return round(width / self.ratio[0]), width
        if width > self.ratio[1] * height:
            return height, round(height * self.ratio[1])
        return height, width


def resized_crop(image: Pixels, crop: Crop, size: tuple[int, int]) -> Pixels:
    """Returns the `crop` of `image`, resized to `size` = (height, width) and then mirrored."""
    # the copy is a dense, writable block; pixels outside the crop must not reach its border through the filter
    cut = image[crop.top : crop.top + crop.height, crop.left : crop.left + crop.width].copy()
    channels_first = torch.from_numpy(cut).permute(2, 0, 1)[None]  # [h, w, 3] -> [1, 3, h, w]
    resized = interpolate(channels_first, size, mode="bicubic", antialias=True)[0]
    pixels = np.ascontiguousarray(resized.permute(1, 2, 0).numpy())  # [3, H, W] -> [H, W, 3]
    if crop.horizontal_flip:
        pixels = cv2.flip(pixels, 1)
    return cv2.flip(pixels, 0) if crop.vertical_flip else pixels
