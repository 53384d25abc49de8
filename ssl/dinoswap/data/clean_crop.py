"""The crop that images are evaluated by, and scenes are made of."""

import numpy as np
from numpy.typing import NDArray
from PIL import Image


def clean_crop(pixels: NDArray[np.uint8], size: int, resize: int) -> NDArray[np.uint8]:
    """Returns the centre crop of an image, uint8 [H, W, 3] to [size, size, 3]: the shorter side is resized to `resize`
    and the centre is cut out, in one resampling."""
    height, width = pixels.shape[:2]
    side = min(height, width) * size / resize
    left, top = (width - side) / 2, (height - side) / 2
    box = (left, top, left + side, top + side)
    return np.asarray(Image.fromarray(pixels).resize((size, size), Image.Resampling.BICUBIC, box=box))
