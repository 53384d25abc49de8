"""position: how alike two patches are by their positions alone, for each option."""

from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from dinoswap.nn.vit import vit
from dinoswap.position.base import rotated
from dinoswap.rng import seed_torch
from pages import words
from pages.figures import new_figure, save

GRID, HEAD = (14, 14), 64
MIDDLE = (6, 6)


def position(out: Path) -> str:
    """Draws how alike patches of equal contents are by their positions, and returns the section that shows it."""
    maps = {"learned, at its start": learned(), "rope": turned(), "rope, two of its frequencies": turned((4, 8))}
    figure = new_figure(3.6)
    for axes, (title, likeness) in zip(figure.subplots(1, len(maps)), maps.items(), strict=True):
        picture = axes.imshow(likeness.numpy(), cmap="RdBu_r", vmin=-1, vmax=1)
        axes.plot(MIDDLE[1], MIDDLE[0], "k+")
        axes.set_title(title, fontsize=9)
        axes.set_xticks([])
        axes.set_yticks([])
    figure.colorbar(picture, ax=figure.axes, shrink=0.8)
    save(figure, out / "position.png")
    text = f"""
A {GRID[0]} x {GRID[1]} grid of patches with equal contents: how alike each is to the one at the cross, by its position
alone. Left: the cosine of the vectors that are added to the tokens. Middle: the score of a query and a key of
{HEAD} channels that are the same vector of ones, turned by their positions, divided by its value for the patch itself.
Right: the same from some of the channels.

Look at the left: a table knows nothing at first, and what it learns is learnt for one grid; others are resampled from
it. Look at the middle: rotations know near from far before the first step, in every block, on any grid, and a score
depends on the offset of two patches alone. At the right are single frequencies, of which a network can choose.
"""
    return words.section("Position", "position", text, "position.png")


def learned() -> Tensor:
    """Returns the cosines [rows, columns] of the table's initial vectors with that of the middle."""
    seed_torch(0, "init/backbone")
    table = vit("small", img_size=GRID[0] * 16).pos_embed
    assert table is not None
    patches = functional.normalize(table.detach()[0, 1:], dim=-1)  # [N, D]
    return (patches @ patches[MIDDLE[0] * GRID[1] + MIDDLE[1]]).view(GRID)


def turned(frequencies: tuple[int, ...] = ()) -> Tensor:
    """Returns the scores [rows, columns] of a key of ones with a query of ones in the middle, relative to that in the
    middle; from all channels, or from those of these frequencies."""
    rope = words.built("position", "rope", dtype="fp32")
    (rotation,) = rope.rotations([GRID], HEAD, torch.zeros(1), False, 0)
    kept = frequencies or range(HEAD // 4)
    chosen = torch.tensor([float(channel % (HEAD // 4) in kept) for channel in range(HEAD)])
    qkv = chosen.expand(1, GRID[0] * GRID[1], 3, 1, HEAD)
    keys = rotated(qkv, rotation)[0, :, 1, 0]  # [N, d]
    scores = keys @ keys[MIDDLE[0] * GRID[1] + MIDDLE[1]]
    return (scores / chosen.sum()).view(GRID)
