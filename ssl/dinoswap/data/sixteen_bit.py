"""Images of 16 bits a channel: a window of their values, (black, white), becomes 0..255.

PIL keeps 16 bits of gray, and of colours the upper eight: where another window is asked for, OpenCV reads them.
"""

import re
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

FULL_RANGE = (0, 65535)

Window = tuple[int, int]


def has_16_bits(image: Image.Image) -> bool:
    """Of an image whose pixels have not been decoded: PIL says then how they are stored, "RGB;16B"."""
    stored = [str(tile[3]) for tile in getattr(image, "tile", ())][:1]  # "BGR;16" is a pixel of 16 bits
    return image.mode.startswith("I") or any(re.search(r"(?<!BGR);16[BLN]?\b", name) for name in stored)


def spread(values: NDArray[np.integer], window: Window) -> NDArray[np.uint8]:
    """Integers of any shape to uint8: `window` linearly to 0..255 and rounded, clipped outside of it.

    Raises ValueError for values beyond 16 bits, unless a window has been chosen.
    """
    if values.dtype.kind == "u" and values.dtype.itemsize == 2:
        known: NDArray[np.uint8] = _table(window)[values]
        return known
    low, high = window
    darkest, brightest = int(values.min()), int(values.max())
    if window == FULL_RANGE and (darkest < low or brightest > high):
        raise ValueError(
            f"integer pixels in {darkest}..{brightest}: only {low}..{high} is defined; data.range_16bit sets what is"
        )
    doubled = 2 * 255 * (values.astype(np.int64).clip(low, high) - low)
    levels: NDArray[np.uint8] = ((doubled + (high - low)) // (2 * (high - low))).astype(np.uint8)
    return levels


@lru_cache
def _table(window: Window) -> NDArray[np.uint8]:
    """The level of every value of 16 bits."""
    return spread(np.arange(65536, dtype=np.int64), window)


def spread_colours(data: bytes, window: Window) -> Image.Image:
    """An encoded image of 16-bit colours as PIL's RGB or RGBA, as it is stored. Raises ValueError where OpenCV does not
    read it as such."""
    import cv2  # takes a moment, and is seldom needed

    stored: Any = cv2.imdecode(np.frombuffer(data, dtype=np.uint8), cv2.IMREAD_UNCHANGED)  # [h, w, 3 or 4], BGR or BGRA
    if stored is None or stored.dtype != np.uint16 or stored.ndim != 3:
        raise ValueError("data.range_16bit is not the whole range, and OpenCV does not read these 16-bit colours")
    levels = spread(stored[:, :, 2::-1], window)
    if stored.shape[2] == 4:
        levels = np.concatenate([levels, spread(stored[:, :, 3:], FULL_RANGE)], axis=2)
    return Image.fromarray(np.ascontiguousarray(levels))
