"""The multi-crop augmentation of DINOv2, as it effectively behaves. Follows facebookresearch/dinov2 @ b8931f7.

Every view: random resized crop, horizontal flip 0.5, colour jitter (0.4, 0.4, 0.2, 0.1) at 0.8, grayscale 0.2.

            size  scale      blur 9x9, sigma U(0.1, 2)   solarize 128
  global 1  224   0.32-1     0                           0
  global 2  224   0.32-1     0.9                         0.2, after the blur
  local      96   0.05-0.32  0.5                         0

The official code passes the probability to *keep* the image where that to *blur* is expected: its "1.0" and "0.1" for
the global crops mean 0 and 0.9. Its models were trained so, and these are the values here.

DINOv3 (facebookresearch/dinov3 @ 6876159) has the same views, and by a key one jitter and grayscale for all of them
(share_jitter). Clean crops of any size are cut from the untouched image as the views are. There, the clean crops of a
Gram teacher have the shared jitter too, and where they are larger, the student's crops are resized from them: a second
resampling, which moves 0.4 levels of 255 on average.
"""

from collections.abc import Sequence
from functools import partial

from dinoswap.augmentation.geometry import RandomCrop
from dinoswap.augmentation.multicrop import MultiCrop, Recipe, check_scales, check_within, height_and_width
from dinoswap.augmentation.photometric import RandomPhotometry


class OfficialAugmentation(MultiCrop):
    """Sizes: pixels, a number or (height, width). Scales: shares of the image's area. `horizontal_flip`, `jitter`,
    `grayscale`, `*_blur` and `global2_solarize` are probabilities; `brightness`, `contrast`, `saturation` are the
    largest relative changes and `hue` the largest turn (1 = the full colour circle) of the jitter. With `share_jitter`
    jitter and grayscale are drawn once for the whole image, before it is cropped, with the numbers that global 1 has
    without. `photometry_on_device`: see `MultiCrop`. The extra crop follows global 1. Raises ValueError for a value out
    of range."""

    def __init__(
        self,
        *,
        global_crops_size: int | tuple[int, int],
        local_crops_size: int | tuple[int, int],
        local_crops_number: int,
        global_crops_scale: tuple[float, float],
        local_crops_scale: tuple[float, float],
        horizontal_flip: float,
        jitter: float,
        brightness: float,
        contrast: float,
        saturation: float,
        hue: float,
        grayscale: float,
        global1_blur: float,
        global2_blur: float,
        local_blur: float,
        global2_solarize: float,
        share_jitter: bool,
        photometry_on_device: bool,
        extra_crops: int = 0,
        clean_sizes: Sequence[int] = (),
    ) -> None:
        check_scales(global_crops_scale=global_crops_scale, local_crops_scale=local_crops_scale)
        check_within(0, 1, horizontal_flip=horizontal_flip, jitter=jitter, grayscale=grayscale)
        check_within(0, 1, brightness=brightness, contrast=contrast, saturation=saturation)
        check_within(0, 0.5, hue=hue)
        check_within(0, 1, global1_blur=global1_blur, global2_blur=global2_blur, local_blur=local_blur)
        check_within(0, 1, global2_solarize=global2_solarize)
        crop = partial(RandomCrop, horizontal_flip=horizontal_flip)
        photometry = partial(
            RandomPhotometry,
            jitter=jitter,
            brightness=brightness,
            contrast=contrast,
            saturation=saturation,
            hue=hue,
            grayscale=grayscale,
        )
        large = height_and_width(global_crops_size=global_crops_size)
        small = height_and_width(local_crops_size=local_crops_size)
        global1 = Recipe(large, crop(global_crops_scale), photometry(blur=global1_blur))
        global2 = Recipe(large, crop(global_crops_scale), photometry(blur=global2_blur, solarize=global2_solarize))
        local = Recipe(small, crop(local_crops_scale), photometry(blur=local_blur))
        super().__init__(
            (global1, global2),
            global1,
            local,
            extra_crops,
            local_crops_number,
            clean_sizes,
            share_jitter=share_jitter,
            photometry_on_device=photometry_on_device,
        )
