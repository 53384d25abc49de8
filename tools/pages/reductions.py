"""reduction: what one token, and one crop, weighs in the loss."""

from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from numpy.typing import NDArray

from pages import words
from pages.figures import colour, new_figure, save

COUNTS = (0, 20, 59, 98)  # hidden patches of each crop
PATCHES = 196


def weights(name: str) -> NDArray[np.float64]:
    """Returns what a token's loss is multiplied with in the total, for each crop; 0 for one without a mask. It is the
    gradient of the reduction."""
    mask = torch.arange(PATCHES) < torch.tensor(COUNTS)[:, None]
    indices = mask.flatten().nonzero()[:, 0]
    losses = torch.zeros(len(indices), dtype=torch.float64, requires_grad=True)
    total = words.built("reduction", name)(losses, mask[None], indices)
    (gradient,) = torch.autograd.grad(total, losses)
    spread = torch.zeros(mask.numel(), dtype=torch.float64).index_put((indices,), gradient)
    return spread.view(mask.shape).amax(1).numpy()  # [I N] -> [I, N]


def reduction(out: Path) -> str:
    """Draws the weight of a token and of a crop under each reduction, and returns the section that shows it."""
    options = words.options(words.REDUCTION["iBOT"])
    figure = new_figure(4.4)
    grid = figure.subplots(2, len(options), sharex=True, sharey="row")
    for column, option in enumerate(options):
        top, bottom = grid[:, column]
        per_token = weights(option.name)
        per_crop = per_token * COUNTS
        used = words.reduction_users(option.name)
        shade = colour(list(used))
        top.set_title(option.name, fontsize=10, color=shade, weight="bold", pad=22)
        top.text(0.5, 1.04, words.users_text(used), transform=top.transAxes, ha="center", fontsize=8)
        bars(top, 1000 * per_token, shade)
        bars(bottom, per_crop, shade)
        note = f"total {per_crop.sum():.3f}"
        bottom.text(0.03, 0.93, note, transform=bottom.transAxes, fontsize=10, weight="bold", va="top")
        bottom.set_xticks(
            range(len(COUNTS)), [f"crop {index + 1}\n{count} hidden" for index, count in enumerate(COUNTS)]
        )
    grid[0, 0].set_ylabel("of one patch, x 1000", fontsize=9)
    grid[1, 0].set_ylabel("of a whole crop", fontsize=9)
    figure.supylabel("weight in the loss", fontsize=9)
    save(figure, out / "reduction.png")
    text = f"""
A batch of {len(COUNTS)} crops that hide {", ".join(map(str, COUNTS))} patches. Every hidden patch has a loss; a
reduction makes one number of them. Top: what the loss of one patch counts in it. Bottom: what all patches of a crop
count together, and the total, which is the size of the loss if every patch has a loss of 1.

Look at the bottom row: under `per_sample` each masked crop counts the same, under `per_token` a crop counts as much
as it hides. `weighted_token_mean` has the proportions of `per_sample`, but divides by the number of hidden patches
where that divides by the number of crops: the loss all but disappears beside the others, so the legacy iBOT term
weighs far less than its setting says.
"""
    return words.reduction_section("Reduction", text, "reduction.png")


def bars(axes: Axes, values: NDArray[np.float64], shade: str) -> None:
    """Draws a bar with its number for each value."""
    drawn = axes.bar(range(len(values)), values, color=shade, width=0.65)
    axes.bar_label(drawn, fmt="{:.3g}", fontsize=8, padding=2)
    axes.margins(y=0.2)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8)
