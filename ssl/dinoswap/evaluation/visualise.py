"""Pictures: of the crops that the network reads, of its patch tokens, and of the curves and accuracies of a run.

Every function returns uint8 [H, W, 3], the same for the same arguments, for TensorBoard or for `save_png`. Photographs
are laid out by hand; charts are drawn on a canvas of their own, without pyplot and its global state.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from torch import Tensor
from torch.nn import functional

from dinoswap.evaluation.summary import Columns, Results, cell
from dinoswap.files.pictures import Picture, captioned, laid_out, resized
from dinoswap.values import Batch

Pixel = Sequence[float] | Tensor
"""One value per channel, [3], for pixels in 0..1."""


def to_uint8(crops: Tensor, mean: Pixel, std: Pixel) -> Tensor:
    """Returns normalised crops [..., 3, H, W] as uint8, and uint8 crops unchanged."""
    if crops.dtype == torch.uint8:
        return crops
    centre, scale = (
        torch.as_tensor(values, dtype=torch.float32, device=crops.device).view(3, 1, 1) for values in (mean, std)
    )
    return ((crops.float() * scale + centre) * 255).round().clamp(0, 255).to(torch.uint8)


def crops_figure(
    batch: Batch, grid: tuple[int, int], mean: Pixel, std: Pixel, images: int = 4, cell_size: int = 96
) -> Picture:
    """Returns a picture with a row per image and a column per crop: globals, extra, locals, to scale. Masked patches
    are grey and hatched.

    `batch` holds uint8 or normalised crops, on any device; `grid` is (rows, columns) of patches of a mask-carrying
    crop, which is the extra crop where there is one and each global otherwise.
    """
    images = min(images, batch.images)
    masks = batch.mask[:, :images].cpu().numpy().reshape(-1, images, *grid)  # [P, n, N] -> [P, n, rows, columns]
    scale = cell_size / batch.global_crops.shape[-1]
    carriers = "extra" if len(batch.extra_crops) else "global"
    columns: list[list[Picture]] = []
    titles: list[str] = []
    for role in ("global", "extra", "local"):
        stack: Tensor = getattr(batch, f"{role}_crops")[:, :images]
        for index, crops in enumerate(to_uint8(stack, mean, std).permute(0, 1, 3, 4, 2).cpu().numpy()):
            column = [resized(crop, round(crop.shape[0] * scale), round(crop.shape[1] * scale)) for crop in crops]
            if role == carriers:
                column = [mask_drawn(*pair) for pair in zip(column, masks[index], strict=True)]
            columns.append(column)
            titles.append(f"{role} {index + 1}")
    return laid_out(columns, titles)


def mask_drawn(image: Picture, mask: NDArray[np.bool_]) -> Picture:
    """Returns the image [H, W, 3] with the patches of `mask` [rows, columns] grey and hatched."""
    height, width = image.shape[:2]
    y, x = np.arange(height), np.arange(width)
    hidden = mask[(y * mask.shape[0] // height)[:, None], x * mask.shape[1] // width]  # [H, W]
    line = (y[:, None] + x) % 8 < 2
    cover = np.where(line, 70, 150)[..., None]
    return np.where(hidden[..., None], (image + 3 * cover) // 4, image).astype(np.uint8)


def pca_rgb(tokens: Tensor, grid: tuple[int, int]) -> NDArray[np.float32]:
    """Returns three principal components of all images' patch tokens: [n, N, D] to [n, rows, columns, 3], 0..1.

    Each component runs from its 1st to its 99th percentile. Its largest loading is positive, so that colours do not
    flip between runs of the same network. A component without variance is 0.5.
    """
    flat = tokens.detach().cpu().double().flatten(0, 1)  # [n, N, D] -> [n * N, D]
    flat = flat - flat.mean(0)
    axes = torch.linalg.eigh(flat.T @ flat).eigenvectors.flip(1)[:, :3]  # [D, 3], largest variance first
    axes = axes * axes.gather(0, axes.abs().argmax(0, keepdim=True)).sign()
    scores = flat @ axes
    low, high = np.percentile(scores.numpy(), [1, 99], axis=0)
    span = high - low
    varies = span > 1e-6 * span.max()
    unit = np.full((len(flat), 3), 0.5)
    unit[:, varies] = ((scores.numpy() - low) / np.where(varies, span, 1)).clip(0, 1)[:, varies]
    return unit.reshape(len(tokens), *grid, 3).astype(np.float32)  # [n * N, 3] -> [n, rows, columns, 3]


def pca_figure(images: Tensor, tokens: Tensor, cell_size: int = 96, pairs: int = 4) -> Picture:
    """Returns a picture of uint8 images [n, 3, H, W], each beside the `pca_rgb` of its tokens [n, rows, columns, D],
    with `pairs` of them in a row."""
    grid = tokens.shape[1], tokens.shape[2]
    colours = (pca_rgb(tokens.flatten(1, 2), grid) * 255).round().astype(np.uint8)
    shown = images.permute(0, 2, 3, 1).cpu().numpy()
    size = cell_size, round(cell_size * shown.shape[2] / shown.shape[1])
    pictures = [resized(picture, *size) for pair in zip(shown, colours, strict=True) for picture in pair]
    blank = np.full((*size, 3), 255, dtype=np.uint8)
    width = 2 * min(pairs, len(shown))
    pictures += [blank] * (-len(pictures) % width)
    return laid_out([pictures[column::width] for column in range(width)], ["image", "PCA"] * (width // 2))


def similarity_figure(images: Tensor, tokens: Tensor, queries: int = 4, cell_size: int = 96) -> Picture:
    """Returns a picture with a row for each of uint8 images [n, 3, H, W]: the image with some patches framed in red,
    evenly spread over it, and for each of them the cosines of its token with all tokens of the image, from 0 or less
    (dark) to 1 (bright), the patch itself framed. Tokens are [n, rows, columns, D]."""
    rows, columns = grid = tokens.shape[1], tokens.shape[2]
    shown = images.permute(0, 2, 3, 1).cpu().numpy()
    size = cell_size, round(cell_size * shown.shape[2] / shown.shape[1])
    places = [divmod(int((place + 0.5) * rows * columns / queries), columns) for place in range(queries)]
    unit = functional.normalize(tokens.float().cpu().flatten(1, 2), dim=-1)  # [n, N, D]
    viridis = colormaps["viridis"]
    pictures: list[list[Picture]] = [[] for _ in range(queries + 1)]
    for image, vectors in zip(shown, unit, strict=True):
        pictures[0].append(_framed(resized(image, *size), places, grid))
        for column, (row, place) in zip(pictures[1:], places, strict=True):
            cosines = (vectors @ vectors[row * columns + place]).clamp(0, 1).reshape(grid).numpy()
            coloured = (255 * viridis(cosines)[..., :3]).round().astype(np.uint8)
            column.append(_framed(resized(coloured, *size), [(row, place)], grid))
    return laid_out(pictures, ["image", *(f"patch {row},{place}" for row, place in places)])


def _framed(image: Picture, places: Sequence[tuple[int, int]], grid: tuple[int, int]) -> Picture:
    """Returns an image with the patches at these (row, column) of the grid framed in red."""
    canvas = Image.fromarray(image)
    draw = ImageDraw.Draw(canvas)
    high, wide = image.shape[0] / grid[0], image.shape[1] / grid[1]
    for row, column in places:
        draw.rectangle((column * wide, row * high, (column + 1) * wide - 1, (row + 1) * high - 1), outline=(255, 0, 0))
    return np.asarray(canvas)


def neighbours_figure(rows: Sequence[Sequence[tuple[Picture, Sequence[str]]]], cell_size: int = 112) -> Picture:
    """Returns a picture with a row for each query: its image, then those of its neighbours, most similar first. Each
    has lines of text below it, of which the end is shown where they are too long."""
    columns = [
        [captioned(resized(image, cell_size, cell_size), lines) for image, lines in column]
        for column in zip(*rows, strict=True)
    ]
    return laid_out(columns, ["query", *(str(place) for place in range(1, len(columns)))])


def curves_figure(
    rows: Sequence[Mapping[str, float]],
    terms: Sequence[str],
    evaluations: Sequence[str],
    baselines: Mapping[str, float],
) -> Picture:
    """Returns a chart of loss terms and accuracies over steps. `rows` are those of metrics.jsonl, each with "step" and
    some of the names.

    `baselines` (name -> per cent) are drawn as levels beside the accuracies.
    """
    figure = Figure(figsize=(10, 4), layout="constrained")
    losses, accuracies = figure.subplots(1, 2)
    _curves(losses, rows, terms)
    losses.set(title="loss terms (unweighted)", xlabel="step")
    _curves(accuracies, rows, evaluations, marker=".")
    for index, (name, level) in enumerate(baselines.items()):
        accuracies.axhline(level, color=f"C{index + len(evaluations)}", linestyle="--", linewidth=1, label=name)
    accuracies.set(title="accuracy, %", xlabel="step")
    for axes in (losses, accuracies):
        axes.grid(alpha=0.3)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(fontsize=8)
    return _rendered(figure)


def accuracy_bars(results: Results, columns: Columns) -> Picture:
    """Returns columns of the summary table, all in per cent, as a bar chart: a group per column, a bar per row."""
    figure = Figure(figsize=(9, 4), layout="constrained")
    axes = figure.subplots()
    width = 0.8 / max(len(results), 1)
    for index, (name, scores) in enumerate(results.items()):
        values = {place: cell(scores, column.names) for place, column in enumerate(columns.values())}
        known = {place + (index + 0.5) * width - 0.4: value for place, value in values.items() if value is not None}
        bars = axes.bar(list(known), list(known.values()), width, label=name)
        axes.bar_label(bars, fmt="%.1f", fontsize=7)
    axes.set(ylabel="%", xticks=range(len(columns)), xticklabels=list(columns))
    axes.grid(axis="y", alpha=0.3)
    axes.set_axisbelow(True)
    figure.legend(loc="outside right upper", fontsize=8)
    return _rendered(figure)


def _curves(axes: Axes, rows: Sequence[Mapping[str, float]], names: Sequence[str], marker: str = "") -> None:
    """Draws the values of each name in `rows` over their steps."""
    for name in names:
        points = [(row["step"], row[name]) for row in rows if name in row]
        if points:
            axes.plot(*zip(*points, strict=True), label=name, linewidth=1, marker=marker)


def _rendered(figure: Figure) -> Picture:
    """Returns a figure as pixels, uint8 [H, W, 3]."""
    canvas: Any = FigureCanvasAgg(figure)  # its methods are not annotated
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()
