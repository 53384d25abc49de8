"""The multi-crop augmentation of the legacy trainer. Follows data/transforms.py of the legacy trainer @ 67f6a87.

The image is first squashed to a square, its aspect lost, and the views are cut from this square: two resamplings where
`official` has one. Every view: random resized crop, horizontal flip 0.5, colour jitter at 0.8, blur 3x3.

            size  scale     vertical flip  jitter                 grayscale  blur sigma    solarize 64
  global 1  224   0.4-1     0              0.4, 0.4, 0.2, 0.1     0.01       U(0.1, 0.15)  0
  global 2  224   0.4-1     0              0.4, 0.4, 0.2, 0.1     0.01       U(0.1, 0.15)  0.5, after the blur
  extra     224   0.4-1     0.3            0.3, 0.3, 0.15, 0.05   0          U(0.1, 0.2)   0
  local      96   0.05-0.4  0              0.4, 0.4, 0.2, 0.1     0.01       U(0.1, 0.15)  0

A neighbour weighs at most 4e-6 in this blur, so it changes no pixel; it is kept for fidelity.

With the same seed `official` makes the same horizontal flips and the same jitter (in the extra crop by the same share
of other widths). Crops that are gray here are gray there, crops that are solarized there are solarized here, and the
same random numbers place the crops, whose areas differ.
"""

from collections.abc import Sequence
from functools import partial

from dinoswap.augmentation.geometry import RandomCrop
from dinoswap.augmentation.multicrop import MultiCrop, Recipe, check_scales, check_within, height_and_width
from dinoswap.augmentation.photometric import RandomPhotometry


class LegacyAugmentation(MultiCrop):
    """Sizes: pixels, a number or (height, width). `resize`: the side of the square, None for the size of the global
    crops, as the legacy trainer has it. Scales: shares of its area. Flips, `jitter`, `grayscale`, `global2_solarize`
    are probabilities; `brightness`, `contrast`, `saturation` are the largest relative changes and `hue` the largest
    turn (1 = the full colour circle) of the jitter. Arguments that begin with `extra_` apply to the extra crop
    alone. `photometry_on_device`: see `MultiCrop`. Raises ValueError for a value out of range."""

    def __init__(
        self,
        *,
        global_crops_size: int | tuple[int, int],
        local_crops_size: int | tuple[int, int],
        local_crops_number: int,
        resize: int | None,
        global_crops_scale: tuple[float, float],
        local_crops_scale: tuple[float, float],
        horizontal_flip: float,
        jitter: float,
        brightness: float,
        contrast: float,
        saturation: float,
        hue: float,
        grayscale: float,
        global2_solarize: float,
        extra_vertical_flip: float,
        extra_brightness: float,
        extra_contrast: float,
        extra_saturation: float,
        extra_hue: float,
        extra_grayscale: float,
        photometry_on_device: bool,
        extra_crops: int = 0,
        clean_sizes: Sequence[int] = (),
    ) -> None:
        check_scales(global_crops_scale=global_crops_scale, local_crops_scale=local_crops_scale)
        check_within(0, 1, horizontal_flip=horizontal_flip, extra_vertical_flip=extra_vertical_flip)
        check_within(0, 1, jitter=jitter, global2_solarize=global2_solarize)
        check_within(0, 1, brightness=brightness, contrast=contrast, saturation=saturation, grayscale=grayscale)
        check_within(0, 1, extra_brightness=extra_brightness, extra_contrast=extra_contrast)
        check_within(0, 1, extra_saturation=extra_saturation, extra_grayscale=extra_grayscale)
        check_within(0, 0.5, hue=hue, extra_hue=extra_hue)
        large = height_and_width(global_crops_size=global_crops_size)
        small = height_and_width(local_crops_size=local_crops_size)
        square = large if resize is None else height_and_width(resize=resize)
        crop = partial(RandomCrop, horizontal_flip=horizontal_flip)
        blurred = partial(RandomPhotometry, jitter=jitter, blur=1.0, blur_kernel=3)
        photometry = partial(
            blurred,
            brightness=brightness,
            contrast=contrast,
            saturation=saturation,
            hue=hue,
            grayscale=grayscale,
            blur_sigma=(0.1, 0.15),
        )
        extra_photometry = blurred(
            brightness=extra_brightness,
            contrast=extra_contrast,
            saturation=extra_saturation,
            hue=extra_hue,
            grayscale=extra_grayscale,
            blur_sigma=(0.1, 0.2),
        )
        global1 = Recipe(large, crop(global_crops_scale), photometry())
        global2 = Recipe(large, crop(global_crops_scale), photometry(solarize=global2_solarize, solarize_threshold=64))
        extra = Recipe(large, crop(global_crops_scale, vertical_flip=extra_vertical_flip), extra_photometry)
        local = Recipe(small, crop(local_crops_scale), photometry())
        super().__init__(
            (global1, global2),
            extra,
            local,
            extra_crops,
            local_crops_number,
            clean_sizes,
            square,
            photometry_on_device=photometry_on_device,
        )
