"""Makes the views of an image: a recipe for each role, drawn first and applied afterwards.

Every view has its own row of uniforms (global 1, global 2, extra, then the locals), so its draws do not depend on
the number of local crops, nor on whether extra or clean crops are asked for. A number of a row means the same in every
augmentation: with the same seed two of them share each draw whose distribution they share.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np
import torch
from torch import Tensor

from dinoswap.augmentation import geometry, photometric
from dinoswap.augmentation.geometry import Crop, Pixels, RandomCrop
from dinoswap.augmentation.photometric import Photometry, RandomPhotometry
from dinoswap.photometry import RADIUS
from dinoswap.values import Views

Draw = tuple[Crop, Photometry]


@dataclass(frozen=True)
class Recipe:
    """The size (height, width) of a view in pixels, and the distributions of its crop and its photometry."""

    size: tuple[int, int]
    crop: RandomCrop
    photometry: RandomPhotometry


class MultiCrop:
    """Makes two global views, `extra_crops` (0 or 1) third global views and `local_crops_number` local ones. The
    mask-carrying views (the extra one, or else the two globals) are also returned without photometric changes, once for
    each of `clean_sizes`: widths in pixels, in ascending order, at the aspect of the view. With `resize` = (height,
    width) the image is first resized to this size, whatever its aspect. With `share_jitter` the whole image gets the
    jitter and grayscale of global 1, and all views but the clean ones are cut from that, without any of their own.
    With `photometry_on_device` views are cut out only, and the numbers of their photometric changes go along. Raises
    ValueError for a number out of range."""

    def __init__(
        self,
        global_recipes: tuple[Recipe, Recipe],
        extra_recipe: Recipe,
        local_recipe: Recipe,
        extra_crops: int,
        local_crops_number: int,
        clean_sizes: Sequence[int],
        resize: tuple[int, int] | None = None,
        share_jitter: bool = False,
        photometry_on_device: bool = False,
    ) -> None:
        if share_jitter and photometry_on_device:
            raise ValueError(
                "photometry_on_device=true: only crops get to the device, and share_jitter=true changes the whole "
                "image; set one of them to false"
            )
        if extra_crops not in (0, 1):
            raise ValueError(f"extra_crops={extra_crops}: use 1 for a third global crop, 0 for none")
        if local_crops_number < 0:
            raise ValueError(f"local_crops_number={local_crops_number}: use 0 or more")
        if list(clean_sizes) != sorted({size for size in clean_sizes if size >= 1}):
            raise ValueError(f"clean_sizes={list(clean_sizes)}: use different numbers of pixels in ascending order")
        self._recipes = [*global_recipes, *[extra_recipe] * extra_crops, *[local_recipe] * local_crops_number]
        smallest = min(min(recipe.size) for recipe in self._recipes)
        if photometry_on_device and smallest <= RADIUS:
            raise ValueError(
                f"photometry_on_device=true: crops of {smallest} pixels are too small for its blur, which reads "
                f"{RADIUS} pixels to each side; set it to false"
            )
        self._extra_crops = extra_crops
        self._resize = resize
        self._share_jitter = share_jitter
        self._on_device = photometry_on_device
        self._carriers = range(2, 3) if extra_crops else range(2)
        self._clean_sizes = tuple(clean_sizes)

    def __call__(self, image: Pixels, rng: np.random.Generator) -> Views:
        """Returns the views of `image`, uint8 RGB [H, W, 3] of any size. Raises ValueError for any other input."""
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or image.size == 0:
            raise ValueError(f"image={image.dtype}{list(image.shape)}: needs uint8 [H, W, 3]; convert it to RGB first")
        return self.render(image, self.draw(rng, *image.shape[:2]))

    def draw(self, rng: np.random.Generator, height: int, width: int) -> list[Draw]:
        """Draws (crop, photometry) for each global, extra and local view of a height x width image, in this order."""
        height, width = self._resize or (height, width)
        views = len(self._recipes) + 1 - self._extra_crops  # the extra view's row is drawn in any case
        rows = rng.random((views, geometry.UNIFORMS + photometric.UNIFORMS)).tolist()
        if not self._extra_crops:
            del rows[2]
        draws = [
            (
                recipe.crop.draw(row[: geometry.UNIFORMS], height, width),
                recipe.photometry.draw(row[geometry.UNIFORMS :]),
            )
            for recipe, row in zip(self._recipes, rows, strict=True)
        ]
        if self._share_jitter:
            _, first = draws[0]
            draws = [(crop, replace(own, jitter=first.jitter, grayscale=first.grayscale)) for crop, own in draws]
        return draws

    def render(self, image: Pixels, draws: list[Draw]) -> Views:
        """Returns the views that `draws` make of `image`."""
        if self._resize is not None:
            image = geometry.resized_crop(image, Crop(0, 0, *image.shape[:2]), self._resize)
        source, photometries = image, [photometry for _, photometry in draws]
        if self._share_jitter:
            source = photometric.apply(image, photometries[0].colours())
            photometries = [photometry.without_colours() for photometry in photometries]
        cuts = [
            geometry.resized_crop(source, crop, recipe.size)
            for recipe, (crop, _) in zip(self._recipes, draws, strict=True)
        ]

        def clean(view: int, width: int) -> Pixels:
            """Returns what a view shows, at a width and without photometric changes."""
            height, own_width = self._recipes[view].size
            if width == own_width and source is image:
                return cuts[view]
            return geometry.resized_crop(image, draws[view][0], (round(height * width / own_width), width))

        if self._on_device:
            views, numbers = cuts, self._by_role([own.numbers() for own in photometries])
        else:
            views, numbers = [photometric.apply(cut, own) for cut, own in zip(cuts, photometries, strict=True)], {}
        return Views(
            **self._by_role([_planes(view) for view in views]),
            clean_crops={
                width: [_planes(clean(view, width)) for view in self._carriers] for width in self._clean_sizes
            },
            photometry=numbers,
        )

    def _by_role(self, views: list[Tensor]) -> dict[str, list[Tensor]]:
        """Returns what each view has, by the field of `Views` that the view is in."""
        end = 2 + self._extra_crops
        return {"global_crops": views[:2], "extra_crops": views[2:end], "local_crops": views[end:]}


def _planes(pixels: Pixels) -> Tensor:
    """Returns a copy [3, H, W] of pixels [H, W, 3]. OpenCV splits channels several times faster than a strided copy."""
    planes = np.empty((3, *pixels.shape[:2]), np.uint8)
    cv2.split(pixels, list(planes))
    return torch.from_numpy(planes)


def height_and_width(**size: int | tuple[int, int]) -> tuple[int, int]:
    """Returns the one size given by name: `height_and_width(local_crops_size=96)` is (96, 96). Raises ValueError for a
    size below 1 pixel."""
    ((name, value),) = size.items()
    height, width = (value, value) if isinstance(value, int) else value
    if min(height, width) < 1:
        raise ValueError(f"{name}={value}: use at least 1 pixel")
    return height, width


def check_scales(**scales: tuple[float, float]) -> None:
    """Raises ValueError unless each scale is an interval within (0, 1]."""
    for name, (smallest, largest) in scales.items():
        if not 0 < smallest <= largest <= 1:
            raise ValueError(f"{name}={smallest, largest}: shares of the image's area, 0 < smallest <= largest <= 1")


def check_within(low: float, high: float, **values: float) -> None:
    """Raises ValueError unless each value lies from `low` to `high`."""
    for name, value in values.items():
        if not low <= value <= high:
            raise ValueError(f"{name}={value}: use a number from {low} to {high}")
