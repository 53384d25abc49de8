"""Colour jitter, grayscale, blur and solarization of uint8 images, on OpenCV.

With g = gray level of a pixel, m = mean of g over the crop, f = factor; results are clipped to 0..255:

    brightness f * x | contrast m + f * (x - m) | saturation g + f * (x - g) | hue: H + f turns, then
    grayscale g | blur: Gaussian window, border reflected | solarize: 255 - x where x >= threshold

This is what torchvision computes on PIL: the same to 1 level of 255 (hue: 6, where a rounding falls the other way),
and to 0.005 on average, at a fraction of the time.
"""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np
from torch import Tensor

from dinoswap.augmentation.geometry import Pixels
from dinoswap.photometry import numbers_of

cv2.setNumThreads(0)  # data workers are processes: a thread pool in each would compete with the others

UNIFORMS = 10
"""Count of the numbers in [0, 1) that `RandomPhotometry.draw` reads."""

_TRUNCATE = -0.4999
"""Added before OpenCV rounds to nearest: PIL drops the fraction."""


@dataclass(frozen=True)
class Photometry:
    """The changes of one crop, in this order: (operation, factor) of the jitter, gray, blur, solarization."""

    jitter: tuple[tuple[str, float], ...] = ()
    grayscale: bool = False
    blur_sigma: float | None = None
    blur_kernel: int = 9
    solarize_threshold: int | None = None

    def colours(self) -> "Photometry":
        """Returns the jitter and the grayscale alone."""
        return Photometry(self.jitter, self.grayscale)

    def numbers(self) -> Tensor:
        """Returns the row that stands for these changes where they are made to whole batches, see photometry.py."""
        blur = None if self.blur_sigma is None else (self.blur_sigma, self.blur_kernel)
        return numbers_of(self.jitter, self.grayscale, blur, self.solarize_threshold)

    def without_colours(self) -> "Photometry":
        """Returns the blur and the solarization alone."""
        return replace(self, jitter=(), grayscale=False)


@dataclass(frozen=True)
class RandomPhotometry:
    """The distribution of a Photometry: probabilities, half-widths of the jitter's factors, settings of the rest."""

    jitter: float
    brightness: float
    contrast: float
    saturation: float
    hue: float
    grayscale: float
    blur: float = 0.0
    blur_sigma: tuple[float, float] = (0.1, 2.0)
    blur_kernel: int = 9
    solarize: float = 0.0
    solarize_threshold: int = 128

    def draw(self, uniforms: Sequence[float]) -> Photometry:
        """Returns the changes that UNIFORMS numbers in [0, 1) determine. Each number has one use, so that two
        distributions with some settings in common share those draws."""
        jitter, order, *factors, grayscale, blur, sigma, solarize = uniforms
        low, high = self.blur_sigma
        return Photometry(
            jitter=self._jitter(order, factors) if jitter < self.jitter else (),
            grayscale=grayscale < self.grayscale,
            blur_sigma=low + sigma * (high - low) if blur < self.blur else None,
            blur_kernel=self.blur_kernel,
            solarize_threshold=self.solarize_threshold if solarize < self.solarize else None,
        )

    def _jitter(self, order: float, factors: Sequence[float]) -> tuple[tuple[str, float], ...]:
        widths = self.brightness, self.contrast, self.saturation, self.hue
        values = [centre + (2 * u - 1) * width for centre, u, width in zip(_CENTRES, factors, widths, strict=True)]
        permutation = _PERMUTATIONS[int(order * len(_PERMUTATIONS))]
        return tuple((_NAMES[i], values[i]) for i in permutation if widths[i] > 0)


def apply(image: Pixels, photometry: Photometry) -> Pixels:
    """Returns the changed image. `image` is not modified, and is returned itself where nothing changes."""
    for operation, factor in photometry.jitter:
        image = _JITTER[operation](image, factor)
    if photometry.grayscale:
        image = cv2.cvtColor(_gray(image), cv2.COLOR_GRAY2RGB)
    if photometry.blur_sigma is not None:
        image = blur(image, photometry.blur_sigma, photometry.blur_kernel)
    if photometry.solarize_threshold is not None:
        image = solarize(image, photometry.solarize_threshold)
    return image


def adjust_brightness(image: Pixels, factor: float) -> Pixels:
    """Returns the image with its values multiplied by `factor`."""
    return _scale_around(image, 0.0, factor)


def adjust_contrast(image: Pixels, factor: float) -> Pixels:
    """Returns the image with its distance to the mean gray level multiplied by `factor`."""
    return _scale_around(image, int(cv2.mean(_gray(image))[0] + 0.5), factor)


def adjust_saturation(image: Pixels, factor: float) -> Pixels:
    """Returns the image with its distance to its gray version multiplied by `factor`."""
    gray = cv2.cvtColor(_gray(image), cv2.COLOR_GRAY2RGB)
    return cv2.addWeighted(image, factor, gray, 1 - factor, _TRUNCATE)


def adjust_hue(image: Pixels, turns: float) -> Pixels:
    """Returns the image with its hue moved by `turns` of the colour circle. Hue and saturation are cut to whole 255ths
    as in PIL: OpenCV's uint8 HSV would be 0.2 to 1 level off."""
    degrees, share, value = cv2.split(cv2.cvtColor(image.astype(np.float32), cv2.COLOR_RGB2HSV))
    hue = cv2.convertScaleAbs(degrees, alpha=255 / 360, beta=_TRUNCATE)
    hue += np.uint8(int(turns * 255) % 256)  # wraps around
    saturation = cv2.convertScaleAbs(share, alpha=255, beta=_TRUNCATE)
    degrees = np.multiply(hue, 360 / 255, dtype=np.float32)
    share = np.multiply(saturation, 1 / 255, dtype=np.float32)
    return cv2.convertScaleAbs(cv2.cvtColor(cv2.merge([degrees, share, value]), cv2.COLOR_HSV2RGB))


def blur(image: Pixels, sigma: float, kernel: int = 9) -> Pixels:
    """Returns the image under a Gaussian window of `kernel` pixels and a deviation of `sigma` pixels."""
    window = cv2.getGaussianKernel(kernel, sigma)
    # sepFilter2D: float sums, twice as fast as GaussianBlur's fixed point and nearer to the exact result
    return cv2.sepFilter2D(image, -1, window, window)


def solarize(image: Pixels, threshold: int) -> Pixels:
    """Returns the image with values from `threshold` on inverted."""
    levels = np.arange(256, dtype=np.uint8)
    return cv2.LUT(image, np.where(levels < threshold, levels, 255 - levels))


def _gray(image: Pixels) -> Pixels:
    return cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)


def _scale_around(image: Pixels, level: float, factor: float) -> Pixels:
    return cv2.addWeighted(image, factor, image, 0.0, level * (1 - factor) + _TRUNCATE)


_JITTER: dict[str, Callable[[Pixels, float], Pixels]] = {
    "brightness": adjust_brightness,
    "contrast": adjust_contrast,
    "saturation": adjust_saturation,
    "hue": adjust_hue,
}
_NAMES = tuple(_JITTER)
_CENTRES = (1.0, 1.0, 1.0, 0.0)
_PERMUTATIONS = tuple(itertools.permutations(range(4)))
