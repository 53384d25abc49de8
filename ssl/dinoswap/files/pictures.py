"""Writes pictures, uint8 [H, W, 3], as PNG files, and lays several out in one."""

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from dinoswap.files.writing import write_atomically

Picture = NDArray[np.uint8]
GAP = 4
HEADER = 16


def save_png(path: Path, picture: Picture) -> None:
    """Writes a PNG at `path`, whole or not at all. Its folder must exist."""
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, format="PNG")
    write_atomically(path, buffer.getvalue())


def resized(image: Picture, height: int, width: int) -> Picture:
    """Returns an image enlarged with its pixels visible, or reduced smoothly: [h, w, 3] to [height, width, 3]."""
    method = Image.Resampling.NEAREST if height >= image.shape[0] else Image.Resampling.LANCZOS
    return np.asarray(Image.fromarray(image).resize((width, height), method))


def captioned(image: Picture, lines: Sequence[str]) -> Picture:
    """Returns an image with lines of text below it, as wide as it is."""
    height, width = image.shape[:2]
    canvas = Image.new("RGB", (width, height + HEADER * len(lines)), "white")
    canvas.paste(Image.fromarray(image), (0, 0))
    draw = ImageDraw.Draw(canvas)
    for place, line in enumerate(lines):
        shown = line
        while draw.textlength(shown) > width:
            shown = f"..{shown.removeprefix('..')[1:]}"
        draw.text((0, height + place * HEADER + 2), shown, fill="black")
    return np.asarray(canvas)


def laid_out(columns: Sequence[Sequence[Picture]], titles: Sequence[str]) -> Picture:
    """Returns columns of pictures, with equal heights in each row, under their titles on white."""
    row_height = max(picture.shape[0] for column in columns for picture in column) + GAP
    widths = [max(max(picture.shape[1] for picture in column), 52) + GAP for column in columns]
    canvas = Image.new("RGB", (sum(widths) + GAP, row_height * len(columns[0]) + HEADER + GAP), "white")
    draw = ImageDraw.Draw(canvas)
    left = GAP
    for column, title, width in zip(columns, titles, widths, strict=True):
        draw.text((left, 2), title, fill="black")
        for index, picture in enumerate(column):
            canvas.paste(Image.fromarray(picture), (left, HEADER + index * row_height))
        left += width
    return np.asarray(canvas)


def first_row(picture: Picture) -> Picture:
    """Returns the first row of pictures that were laid out, below their titles where they have some: up to the first
    lines, as many as a gap has, that are white below more lines than titles take."""
    drawn = (picture != 255).any((1, 2))
    ends = (
        row for row in range(HEADER + 1, len(picture) - GAP + 1) if drawn[row - 1] and not drawn[row : row + GAP].any()
    )
    return picture[: next(ends, len(picture))]
