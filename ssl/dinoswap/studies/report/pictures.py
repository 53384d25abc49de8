"""The pictures that runs draw of patch tokens at their end, one below the other for a reader to compare.

A figure has a row for each cell, the first row of the picture of its run: all are of one seed, and show the same scene.
"""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from dinoswap.data.decoding import CorruptImage, decode
from dinoswap.files.pictures import Picture, first_row, resized
from dinoswap.files.reading import read_small
from dinoswap.run.run_folder import followed
from dinoswap.studies.report.canvas import WIDTH, Canvas, Plot, shortened, styled
from dinoswap.studies.report.collect import Collected
from dinoswap.studies.report.words import listed

OF_NO_TOKENS = ("accuracy", "crops", "curves")
"""Pictures of runs that are charts, or show what the network is given."""
MOST = 12
"""Figures of a report."""
PICTURE_BYTES = 2**24
"""The largest size of a picture, which has some hundred kilobytes."""
PIXELS = 640
"""The width of a row, at most."""
PREFIX = "picture-"
"""The beginning of the names of these figures."""


def pictures(collected: Collected, chosen: Collection[str]) -> list[Plot]:
    """Returns a figure of the chosen cells for each kind of picture that any of their runs has drawn."""
    cells = [cell.name for cell in collected.design.cells if cell.name in chosen]
    drawn: dict[str, dict[int, dict[str, Path]]] = {}  # kind -> seed -> cell
    for run in collected.runs:
        for path in sorted((followed(run.folder) / "pictures").glob("*.png")) if run.entry.cell in cells else ():
            drawn.setdefault(path.stem, {}).setdefault(run.entry.seed, {})[run.entry.cell] = path
    kinds = [kind for kind in sorted(drawn) if kind not in OF_NO_TOKENS and kind.replace("_", "").isalnum()]
    plots = [_figure(kind, *_of_one_seed(drawn[kind]), cells) for kind in kinds[:MOST]]
    return [plot for plot in plots if plot is not None]


def is_picture(name: str) -> bool:
    """Tells whether a figure of this name is one of these."""
    return name.startswith(PREFIX)


def title(name: str) -> str:
    """Returns the title of the figure of this name."""
    return name.removeprefix(PREFIX).replace("_", " ")


def _of_one_seed(paths: Mapping[int, Mapping[str, Path]]) -> tuple[int, Mapping[str, Picture]]:
    """Returns the seed of which most cells have a picture, the smallest of several, and the first row of each."""
    seed = max(sorted(paths), key=lambda seed: len(paths[seed]))
    rows = {cell: _row(path) for cell, path in paths[seed].items()}
    return seed, {cell: row for cell, row in rows.items() if row is not None}


def _row(path: Path) -> Picture | None:
    """Returns the first row of a picture, None where there is none that can be read."""
    try:
        row = first_row(decode(read_small(path, PICTURE_BYTES), str(path)))
    except (OSError, CorruptImage):
        return None
    height, width = row.shape[:2]
    return row if width <= PIXELS else resized(row, round(height * PIXELS / width), PIXELS)


@styled
def _figure(kind: str, seed: int, rows: Mapping[str, Picture], cells: Sequence[str]) -> Plot | None:
    """Returns a plot of the pictures of one kind, side by side for the cells that have one; None where none has."""
    shown, without = [cell for cell in cells if cell in rows], [cell for cell in cells if cell not in rows]
    if not shown:
        return None
    canvas = Canvas(sum(0.3 + WIDTH * rows[cell].shape[0] / rows[cell].shape[1] for cell in shown))
    for axes, cell in zip(canvas.axes(len(shown)), shown, strict=True):
        axes.imshow(rows[cell], interpolation="none")
        axes.set_axis_off()
        canvas.tip(axes.set_title(shortened(cell, 72 * WIDTH), loc="left", fontsize="medium"), cell)
    caption = f"The same scene, by the run of seed {seed} of each cell."
    return canvas.finish(
        f"{PREFIX}{kind}",
        title=title(f"{PREFIX}{kind}"),
        caption=caption + (f" Without such a picture: {listed(without)}." if without else ""),
        alt=f"The picture {kind} of seed {seed}, a row for each cell: {listed(shown)}",
    )
