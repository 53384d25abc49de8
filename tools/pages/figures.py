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

from dinoswap.files import write_atomically

SIDES = {"official": "#0072B2", "legacy": "#D55E00"}
NEITHER = "#666666"
LEARNS = "#009E73"
EXACT = (*SIDES.values(), NEITHER, LEARNS, "white", "black")
WIDTH = 10.0  # inches, of every figure


def colour(sides: Sequence[str]) -> str:
    return next((SIDES[side] for side in SIDES if side in sides), NEITHER)


def new_figure(height: float, layout: Literal["constrained"] | None = "constrained") -> Figure:
    """As wide as the page, `height` inches high."""
    return Figure(figsize=(WIDTH, height), dpi=110, layout=layout)


def save(figure: Figure, path: Path) -> None:
    """With 256 colours, those in EXACT among them: a third of the size."""
    canvas: Any = FigureCanvasAgg(figure)  # its methods are not annotated
    canvas.draw()
    picture = Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3].copy())
    exact = [channel for name in EXACT for channel in ImageColor.getrgb(name)]
    palette = Image.new("P", (1, 1))
    palette.putpalette([*(picture.quantize(256 - len(exact) // 3).getpalette() or []), *exact])
    buffer = io.BytesIO()
    picture.quantize(palette=palette, dither=Image.Dither.NONE).save(buffer, format="PNG", optimize=True)
    write_atomically(path, buffer.getvalue())


def show(axes: Axes, image: NDArray[Any], title: str = "", **keywords: Any) -> None:
    """An image without ticks."""
    axes.imshow(image, **keywords)
    axes.set(xticks=[], yticks=[])
    axes.set_title(title, fontsize=8)
