"""augmentation: the views of one photograph under each option, with what was done to them."""

from collections.abc import Sequence
from pathlib import Path
from textwrap import fill
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke
from numpy.typing import NDArray
from sklearn.datasets import load_sample_image
from torch import Tensor

from dinoswap.augmentation.geometry import Crop, resized_crop
from dinoswap.augmentation.photometric import Photometry
from dinoswap.rng import numpy_generator
from pages import words
from pages.figures import colour, new_figure, save, show

Picture = NDArray[np.uint8]

SEED = 0
DRAWS = (5, 13)
"""Two images of a run's sequence, in whose draws every operation occurs."""
PLAIN = 28
"""One whose views keep their colours."""
SIDE, LOCALS, PATCH = 224, 4, 16
GRID = (SIDE // PATCH, SIDE // PATCH)
VIEWS = ["global 1", "global 2", "global 3", *[f"local {index + 1}" for index in range(LOCALS)]]


def photograph() -> Picture:
    """Returns scikit-learn's china.jpg, uint8 [427, 640, 3]."""
    return load_sample_image("china.jpg").copy()


def augmentation_of(name: str, extra_crops: int = 1) -> Any:
    """Returns an option of augmentation for the crops of this page."""
    sizes = {"global_crops_size": SIDE, "local_crops_size": 96, "local_crops_number": LOCALS}
    return words.built("augmentation", name, **sizes, extra_crops=extra_crops)


def pixels(crop: Tensor) -> Picture:
    """Returns a crop [3, H, W] as [H, W, 3]."""
    return crop.permute(1, 2, 0).numpy()


def augmentation(out: Path) -> str:
    """Draws the crops of both options, and returns the section that shows them with a table."""
    draw_augmentation(out / "augmentation.png")
    official, legacy = (words.written("augmentation", option.name) for option in words.options("augmentation"))
    keys = [key for key in {**official, **legacy} if key != "_target_" and official.get(key) != legacy.get(key)]
    rows = [
        (f"`augmentation.{key}`", *(words.value(side.get(key, "-")) for side in (official, legacy))) for key in keys
    ]
    text = """
The same photograph, twice per side. Left: what the crops are cut from, with their outlines (white: global, yellow:
local). Right: the crops as a network gets them, sizes to scale, and below each what was done to it. Both sides use
the same random numbers for draw 1, and for draw 2: what differs there is the augmentation.

Look at the shape of the tower: `legacy` squashes the whole photograph to a square first. Look at the outlines: its
local crops can be larger. And look at the words: `official` often blurs and turns grey; `legacy` rarely turns grey,
its blur is too weak to change a pixel, it solarizes (inverts what is bright) more often, and sometimes flips global 3
upside down. Global 3 exists only with `forward=global_3`.

What differs in the settings (probabilities, shares of the image's area, widths of the jitter; `-`: no such setting):
"""
    section = words.section("Augmentation", "augmentation", text, "augmentation.png")
    return f"{section}\n{words.table(['setting', 'official', 'legacy'], rows)}"


def draw_augmentation(path: Path) -> None:
    """Draws, for each option and draw, the outlines of the crops and the crops themselves."""
    image = photograph()
    rows = [(option, position) for position in DRAWS for option in words.options("augmentation")]
    figure = new_figure(2.13 * len(rows))
    grid = figure.add_gridspec(len(rows), 5, width_ratios=[1.5, 1, 1, 1, 1])
    for row, (option, position) in enumerate(rows):
        augment, source = augmentation_of(option.name), squashed(option.name, image)
        draws = augment.draw(numpy_generator(SEED, "augment", position), *image.shape[:2])
        views = augment.render(image, draws)
        first, *others, last = (figure.add_subplot(grid[row, column]) for column in range(5))
        draw_outlines(first, source, [crop for crop, _ in draws])
        title = f"{option.name}, draw {DRAWS.index(position) + 1}"
        first.set_title(title, fontsize=10, color=colour(option.sides), weight="bold")
        large = [*views.global_crops, *views.extra_crops]
        for axes, crop, draw, name in zip(others, large, draws, VIEWS, strict=False):
            show(axes, pixels(crop), name)
            axes.set_xlabel(done(*draw), fontsize=7)
        show(last, four([pixels(crop) for crop in views.local_crops]), f"local 1 to {LOCALS}")
        last.set_frame_on(False)
    save(figure, path)


def squashed(name: str, image: Picture) -> Picture:
    """Returns what an option cuts its crops from: the image, or the square that it is resized to first."""
    section = words.written("augmentation", name)
    if "resize" not in section:
        return image
    side = section["resize"] or SIDE
    return resized_crop(image, Crop(0, 0, *image.shape[:2]), (side, side))


def draw_outlines(axes: Axes, image: Picture, crops: Sequence[Crop]) -> None:
    """Draws the outlines of crops in an image, numbered where they begin: global crops white, local crops yellow."""
    show(axes, image)
    for crop, view in zip(crops, VIEWS, strict=True):
        edge, width = ("white", 1.5) if view.startswith("global") else ("yellow", 0.9)
        halo = [withStroke(linewidth=width + 1.2, foreground="black")]
        corner = (crop.left, crop.top)
        box = Rectangle(corner, crop.width, crop.height, fill=False, edgecolor=edge, linewidth=width, path_effects=halo)
        axes.add_patch(box)
        axes.annotate(view[-1], corner, (3, -8), textcoords="offset points", color=edge, fontsize=7, path_effects=halo)


def done(crop: Crop, photometry: Photometry) -> str:
    """Returns in words what happened to one view."""
    happened = {
        "jitter": bool(photometry.jitter),
        "grey": photometry.grayscale,
        f"blur {photometry.blur_sigma or 0:.1f}": photometry.blur_sigma is not None,
        f"solarize {photometry.solarize_threshold}": photometry.solarize_threshold is not None,
        "mirrored": crop.horizontal_flip,
        "flipped": crop.vertical_flip,
    }
    return fill(", ".join(word for word, is_so in happened.items() if is_so) or "unchanged", 36)


def four(crops: Sequence[Picture]) -> Picture:
    """Returns four local crops, each in a thin frame, on a square of a global crop's size."""
    canvas = np.full((SIDE, SIDE, 3), 255, dtype=np.uint8)
    for crop, (top, left) in zip(crops, [(8, 8), (8, 120), (120, 8), (120, 120)], strict=True):
        height, width = crop.shape[:2]
        canvas[top - 1 : top + height + 1, left - 1 : left + width + 1] = 90
        canvas[top : top + height, left : left + width] = crop
    return canvas
