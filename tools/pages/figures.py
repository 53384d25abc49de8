"""Colours and PNGs of the page. Blue is official, orange is legacy, grey is neither, in every picture."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image, ImageColor

from dinoswap.files.writing import write_atomically

SIDES = {"official": "#0072B2", "legacy": "#D55E00"}
NEITHER = "#666666"
LEARNS = "#009E73"
EXACT = (*SIDES.values(), NEITHER, LEARNS, "white", "black")
WIDTH = 10.0  # inches, of every figure


def colour(sides: Sequence[str]) -> str:
    """Returns the colour of the first of the sides that an option is the default of."""
    return next((SIDES[side] for side in SIDES if side in sides), NEITHER)


def new_figure(height: float, layout: Literal["constrained"] | None = "constrained") -> Figure:
    """Returns a figure as wide as the page, `height` inches high."""
    return Figure(figsize=(WIDTH, height), dpi=110, layout=layout)


def save(figure: Figure, path: Path) -> None:
    """Writes a figure as a PNG of 256 colours, a third of the size; those in EXACT are among them."""
    canvas: Any = FigureCanvasAgg(figure)  # its methods are not annotated
    canvas.draw()
    pixels = np.asarray(canvas.buffer_rgba())[..., :3].copy()
    common = Image.fromarray(pixels).quantize(256 - len(EXACT))
    indices, palette = np.array(common), (common.getpalette() or [])[: 3 * (256 - len(EXACT))]
    first = len(palette) // 3
    for index, rgb in enumerate(map(ImageColor.getrgb, EXACT), start=first):
        indices[(pixels == rgb).all(-1)] = index
        palette += rgb
    picture, buffer = Image.fromarray(indices), io.BytesIO()
    picture.putpalette(palette)
    picture.save(buffer, format="PNG", optimize=True)
    write_atomically(path, buffer.getvalue())


def show(axes: Axes, image: NDArray[Any], title: str = "", **keywords: Any) -> None:
    """Draws an image without ticks."""
    axes.imshow(image, **keywords)
    axes.set(xticks=[], yticks=[])
    axes.set_title(title, fontsize=8)
