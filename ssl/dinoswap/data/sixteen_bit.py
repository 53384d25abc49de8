"""Converts images of 16 bits a channel to 8 bits: a window of their values, (black, white), becomes 0..255.

PIL keeps 16 bits of gray, but only the upper eight bits of colours. For another window OpenCV reads the colours.
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
    """Tells whether an image has 16 bits a channel. Its pixels must not have been decoded: only before that PIL says
    how they are stored, e.g. "RGB;16B"."""
    stored = [str(tile[3]) for tile in getattr(image, "tile", ())][:1]  # "BGR;16" is a pixel of 16 bits
    return image.mode.startswith("I") or any(re.search(r"(?<!BGR);16[BLN]?\b", name) for name in stored)


def spread(values: NDArray[np.integer], window: Window) -> NDArray[np.uint8]:
    """Returns integers of any shape as uint8: `window` is mapped linearly to 0..255 and rounded, values outside of it
    are clipped. Raises ValueError for values beyond 16 bits, unless a window has been chosen."""
    if values.dtype.kind == "u" and values.dtype.itemsize == 2:
        looked_up: NDArray[np.uint8] = _table(window)[values]
        return looked_up
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
    """Returns the uint8 level of every value of 16 bits, [65536]."""
    return spread(np.arange(65536, dtype=np.int64), window)


def spread_colours(data: bytes, window: Window) -> Image.Image:
    """Returns an encoded image of 16-bit colours as PIL's RGB or RGBA, in the orientation in which it is stored. Raises
    ValueError when OpenCV does not read it as such."""
    import cv2  # takes a moment, and is seldom needed

    stored: Any = cv2.imdecode(np.frombuffer(data, dtype=np.uint8), cv2.IMREAD_UNCHANGED)  # [h, w, 3 or 4], BGR or BGRA
    if stored is None or stored.dtype != np.uint16 or stored.ndim != 3:
        raise ValueError("data.range_16bit is not the whole range, and OpenCV does not read these 16-bit colours")
    levels = spread(stored[:, :, 2::-1], window)
    if stored.shape[2] == 4:
        levels = np.concatenate([levels, spread(stored[:, :, 3:], FULL_RANGE)], axis=2)
    return Image.fromarray(np.ascontiguousarray(levels))
