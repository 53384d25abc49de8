"""A matplotlib figure as the report needs it: PNG and SVG for files, and an SVG inside the page.

The page's copy takes the page's text colour, so that it is legible on light and on dark ground; its elements have what
they stand for as <title>, which browsers show while the pointer is over them; and its ids begin with the plot's name,
since all plots share one document.
"""

import io
import itertools
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from typing import Any
from xml.etree import ElementTree

import matplotlib as mpl
from cycler import cycler
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.textpath import text_to_path

INK = "#1c1e21"
"""Text and axes; becomes the text colour of the page, as the ground becomes transparent."""
GROUND = "#ffffff"
BEHIND_TEXT = "#fefefe"
"""Covers lines below a text; becomes the colour of the page's ground."""
GREY = "#80868b"
# Okabe and Ito's colours that people with any colour vision tell apart, less the yellow and black that one ground hides
PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
MARKERS = ("o", "s", "D", "^", "v", "P", "X")
DASHES = ("-", "--", ":", "-.")

WIDTH = 4.4
"""Width of a figure in inches, at which text of 9 points is legible where a phone shows the whole width."""
FONT = "DejaVu Sans"  # comes with matplotlib
SIZE = 9.0
DPI = 160
STYLE: dict[Any, Any] = {
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.prop_cycle": cycler(color=PALETTE),
    "axes.spines.right": False,
    "axes.spines.top": False,
    "font.family": FONT,
    "font.size": SIZE,
    "legend.frameon": False,
    "svg.fonttype": "none",
    "svg.hashsalt": "dinoswap",  # the same figure, the same file
    "text.color": INK,
    "text.parse_math": False,  # a name with two $ in it is no formula
    "xtick.color": INK,
    "ytick.color": INK,
}
styled = mpl.rc_context(STYLE)
"""Decorates functions that draw: matplotlib looks its settings up whenever an element is made."""
SIDES = ((1, 1), (1, -1), (-1, 1), (-1, -1), (1, 0), (-1, 0), (0, 1), (0, -1))
"""Where a label may lie beside its point, the first where nothing is in its way: (right, up)."""
Box = tuple[float, float, float, float]
"""Left, bottom, right and top of a rectangle."""
SVG = "{http://www.w3.org/2000/svg}"
ElementTree.register_namespace("", SVG.strip("{}"))
ElementTree.register_namespace("xlink", "http://www.w3.org/1999/xlink")


@dataclass(frozen=True)
class Plot:
    """A finished figure: `name` for files and ids, `title` and `caption` for readers, `alt` for those who cannot see
    it, `svg` for a file and `inline` for the page."""

    name: str
    title: str
    caption: str
    alt: str
    svg: str
    inline: str
    png: bytes


class Canvas:
    """A figure, `height` inches high, whose elements can carry a text that says what they stand for. Only functions
    that are `styled` may draw on it."""

    def __init__(self, height: float) -> None:
        self.figure = Figure(figsize=(WIDTH, height), layout="constrained")
        self._tips: dict[str, str] = {}

    def axes(self, rows: int = 1) -> list[Axes]:
        """Returns so many axes, one below the other."""
        return list(self.figure.subplots(rows, 1, squeeze=False)[:, 0])

    def multiples(self, count: int) -> list[Axes]:
        """Returns so many axes in two columns, or one of them alone, that share their limits. Those at the foot of a
        column have the numbers."""
        columns = min(count, 2)
        grid = self.figure.subplots(
            math.ceil(count / columns), columns, squeeze=False, sharex=True, sharey=True
        ).ravel()
        for axes in grid[count:]:
            axes.remove()
        for axes in grid[max(count - columns, 0) : count]:
            axes.tick_params(labelbottom=True)
        return list(grid[:count])

    def tip(self, artist: Artist, text: str) -> None:
        """Gives an element the text that browsers show while the pointer is over it."""
        gid = f"tip{len(self._tips)}"
        artist.set_gid(gid)
        self._tips[gid] = text

    def finish(self, name: str, *, title: str, caption: str, alt: str) -> Plot:
        """Renders the figure as SVG and PNG, and returns it as a plot."""
        svg, png = io.StringIO(), io.BytesIO()
        self.figure.savefig(svg, format="svg", metadata={"Date": None, "Creator": None})
        self.figure.set_layout_engine("none")  # the PNG has the layout of the SVG
        self.figure.savefig(png, format="png", dpi=DPI, metadata={"Software": None})
        tipped = _with_tips(svg.getvalue(), self._tips)
        return Plot(name, title, caption, alt, tipped, inline(tipped, name, alt), png.getvalue())


def row_axes(canvas: Canvas, rows: int) -> Axes:
    """Returns axes with room for a line of text above each of `rows` rows, which are at y = 0, 1, ... from the top, so
    that names take no width."""
    (axes,) = canvas.axes()
    axes.set_ylim(rows - 0.5, -0.9)
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    for y in range(rows):
        axes.axhline(y, color=GREY, linewidth=0.4, alpha=0.5, zorder=0)
    return axes


def row_height(rows: int) -> float:
    """Returns the height in inches of a figure with so many rows, its axis included."""
    return 0.44 * rows + 0.75


def row_text(canvas: Canvas, axes: Axes, y: int, name: str, right: str = "", spare: str = "") -> None:
    """Writes the text of a row: `name` on the left, shortened where it must be, and on the right `right`, followed by
    `spare` if all of it fits."""
    room = 72 * WIDTH - 2 * SIZE
    if text_width(f"{name}   {right} {spare}") <= room:
        right = f"{right} {spare}".strip()
    place = axes.get_yaxis_transform()
    fitted = shortened(name, room - text_width(f"   {right}"))
    cover = {"boxstyle": "square,pad=0.05", "facecolor": BEHIND_TEXT, "edgecolor": "none"}
    label = axes.text(0, y - 0.2, fitted, transform=place, ha="left", va="bottom", bbox=cover)
    label.set_in_layout(False)
    canvas.tip(label, name)
    if right:
        axes.text(1, y - 0.2, right, transform=place, ha="right", va="bottom", bbox=cover).set_in_layout(False)


def place_labels(
    axes: Axes,
    labels: Mapping[str, tuple[float, float]],
    *,
    texts: Sequence[Box] = (),
    lines: Sequence[Box] = (),
) -> None:
    """Writes each label beside its point, which is given in data, near it, on the first side where it lies on no other
    label, on no point, on none of the texts and, if there is such a side, on no line. Texts and lines are given in
    pixels. The limits of the axes have to be final."""
    pixels = {label: axes.transData.transform(point) for label, point in labels.items()}
    em = 8 * axes.figure.dpi / 72
    taken = [*texts, *((x - em / 3, y - em / 3, x + em / 3, y + em / 3) for x, y in pixels.values())]
    for label, (x, y) in pixels.items():
        width, height = text_width(label) / SIZE * em, em
        costs: dict[Box, float] = {}
        for distance, (right, up) in itertools.product((0.45, 1.2, 2.2), SIDES):
            left = x + right * distance * em + (min(right, 0) - (right == 0) / 2) * width
            bottom = y + up * distance * em + (min(up, 0) - (up == 0) / 2) * height
            box = (left, bottom, left + width, bottom + height)
            hidden = 10 * sum(_overlap(box, other) for other in taken)
            costs[box] = hidden + sum(_overlap(box, line) for line in lines) + distance * em * em / 4
        box = min(costs, key=costs.__getitem__)
        taken.append(box)
        offset = ((box[0] - x) * 8 / em, (box[1] - y) * 8 / em)  # in points, as a figure is saved at another resolution
        axes.annotate(label, labels[label], xytext=offset, textcoords="offset points", fontsize=8)


def _overlap(a: Box, b: Box) -> float:
    """Returns the area that two boxes share."""
    return max(min(a[2], b[2]) - max(a[0], b[0]), 0.0) * max(min(a[3], b[3]) - max(a[1], b[1]), 0.0)


def text_width(text: str) -> float:
    """Returns the width of a text in points."""
    font = FontProperties(family=FONT, size=SIZE)
    return float(text_to_path.get_text_width_height_descent(printable(text), font, ismath=False)[0])


def shortened(text: str, room: float) -> str:
    """Shortens a text to a width in points. The beginning and the end are kept: they tell more of a name than its
    middle."""
    kept = text = printable(text)
    for length in range(len(text) - 1, 1, -1):
        if text_width(kept) <= room:
            break
        head = length // 2
        kept = f"{text[:head]}\N{HORIZONTAL ELLIPSIS}{text[len(text) - (length - head) + 1 :]}"
    return kept


def styles(count: int) -> list[tuple[str, str, str]]:
    """Returns the colour, marker and dash of so many series, of which no two differ by colour alone."""
    dashes = [dash for dash in DASHES for _ in PALETTE]
    return list(islice(zip(cycle(PALETTE), cycle(MARKERS), cycle(dashes), strict=False), count))


def printable(text: str) -> str:
    """Returns the text without the control characters that XML does not allow."""
    return re.sub(r"[\x00-\x08\x0b\x0c\x0e-\x1f]", "\N{REPLACEMENT CHARACTER}", text)


def _with_tips(svg: str, tips: Mapping[str, str]) -> str:
    """Returns the SVG without metadata, in which each element of `tips` (id -> text) has its text as <title>."""
    root = ElementTree.fromstring(printable(svg))
    for unneeded in root.findall(f"{SVG}metadata"):
        root.remove(unneeded)
    for group in root.iter(f"{SVG}g"):
        text = tips.get(group.get("id", ""))
        if text is not None:
            title = ElementTree.Element(f"{SVG}title")
            title.text = printable(text)
            group.insert(0, title)
            group.set("class", "tip")
    return ElementTree.tostring(root, encoding="unicode")


def inline(svg: str, name: str, alt: str) -> str:
    """Returns an SVG as an element of a page: without size, and with ids that begin with `name`."""
    root = ElementTree.fromstring(svg)
    for definitions in root.findall(f"{SVG}defs"):
        for sheet in definitions.findall(f"{SVG}style"):
            definitions.remove(sheet)  # it would hold for the whole page
    for element in root.iter():
        for key, value in element.attrib.items():
            value = _renamed(key, value, name).replace(INK, "currentColor").replace(GROUND, "none")
            element.set(key, value.replace(BEHIND_TEXT, "var(--ground)"))
    for size in ("width", "height"):
        root.attrib.pop(size, None)
    root.attrib |= {"id": name, "role": "img", "aria-label": printable(alt), "class": "plot"}
    return ElementTree.tostring(root, encoding="unicode")


def _renamed(key: str, value: str, name: str) -> str:
    """Returns the value of an attribute in which ids, and references to them, begin with `name`."""
    if key == "id":
        return f"{name}-{value}"
    return value.replace("#", f"#{name}-") if key.endswith("href") else value.replace("url(#", f"url(#{name}-")
