"""masking: what each family hides, over many draws. clustering: which positions learn under one mask."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap, to_rgb
from numpy.typing import NDArray
from torch import nn

from dinoswap.config.explain import Option
from dinoswap.evaluation.visualise import mask_drawn
from dinoswap.nn.vit import Tokens
from dinoswap.values import Features
from pages import words
from pages.figures import LEARNS, colour, new_figure, save, show
from pages.passes import batch_of
from pages.views import GRID, PATCH, SEED, SIDE, Picture, pixels

IMAGES = 32  # per step: with two mask-carrying crops each, 64 masks are drawn jointly
EXAMPLES = 4
HEADER = ("masking", "masks", "of all crops", "target", "hidden", "above target", "below target", "centre", "corner")


@dataclass(frozen=True)
class Drawn:
    """Masks of the crops that carry one: bool [n, h, w], and the count that each was drawn for, [n]. `share` of all
    crops carry one."""

    masks: NDArray[np.bool_]
    targets: NDArray[np.float64]
    share: float

    @property
    def counts(self) -> NDArray[np.int64]:
        """The number of hidden patches of each mask, [n]."""
        return self.masks.sum((1, 2))


def drawn(name: str, steps: int) -> Drawn:
    """Returns what a run with this seed draws in its first steps. Targets are recorded on the way from the option to
    its generator; without one they are what the ratio makes of the grid."""
    option, calls = words.built("masking", name), []

    def recording(generator: Callable[..., Any]) -> Callable[..., Any]:
        def draw(target: int, rng: Any) -> Any:
            mask = generator(target, rng)
            calls.append((target, mask))
            return mask

        return draw

    has_targets = hasattr(option, "generator")
    if has_targets:
        generator = recording(option.generator((SIDE, SIDE), PATCH))
        option.generator = lambda crop_size, patch_size: generator
    sampler = option.sampler(crop_size=(SIDE, SIDE), patch_size=PATCH, crops=2, images=IMAGES, seed=SEED)
    everything = np.concatenate([sampler(step).reshape(-1, *GRID) for step in range(steps)])
    if not has_targets:
        return Drawn(everything, np.full(len(everything), option.ratio * everything[0].size), 1.0)
    masked = [(target, mask) for target, mask in calls if target]
    targets, masks = zip(*masked, strict=True)
    return Drawn(np.stack(masks), np.array(targets, dtype=float), len(masked) / len(everything))


# --- masking ----------------------------------------------------------------------------------------------------------


def masking(out: Path, steps: int) -> str:
    """Draws the masks of every option, and returns the section that shows them with a table."""
    by_option = {option: drawn(option.name, steps) for option in words.options("masking")}
    draw_masking(out / "masking.png", by_option)
    rows = [(f"`{option.name}`", *numbers(sample)) for option, sample in by_option.items()]
    text = f"""
A crop of {SIDE} pixels has {GRID[0]} x {GRID[1]} patches; a mask says which of them the student does not see. Left:
how often each patch is hidden when a crop carries a mask (brighter: more often). Middle: examples, coloured patches
are hidden. Right: how much of a crop is hidden, over all masks; the line is the mean.

Look at the shapes: rectangles hide whole objects, whereas under `bernoulli` something next to almost every hidden
patch stays in sight. `inverse_block` leaves one block in sight, which may go on at the opposite side of the crop.
Look at the maps: rectangles hide the centre more often than the border. And at the histograms: the block families
hide between a tenth and half of a crop, `bernoulli` always about the same share, and `block_accumulate` more than it
was asked to.

From the first {steps} steps of a run with {IMAGES} images each. `target`, `hidden`: mean share of the patches that a
mask was to hide, and that it hides. `centre`, `corner`: how often the middle four patches and the four corners are
hidden.
"""
    section = words.section("Masking", "masking", text, "masking.png")
    return f"{section}\n{words.table(HEADER, rows)}"


def numbers(sample: Drawn) -> list[str]:
    """Returns the cells of an option's row in the table, under HEADER from its second column on."""
    patches, frequency = GRID[0] * GRID[1], sample.masks.mean(0)
    middle, corners = frequency[6:8, 6:8].mean(), frequency[[0, 0, -1, -1], [0, -1, 0, -1]].mean()
    shares = (
        sample.share, sample.targets.mean() / patches, sample.counts.mean() / patches,
        (sample.counts > sample.targets).mean(), (sample.counts < sample.targets).mean(), middle, corners,
    )  # fmt: skip
    return [str(len(sample.masks)), *(f"{100 * share:.1f} %" for share in shares)]


def draw_masking(path: Path, by_option: dict[Option, Drawn]) -> None:
    """Draws a row for each option: where masks lie, examples, and how much of a crop they hide."""
    figure = new_figure(1.75 * len(by_option))
    grid = figure.subplots(len(by_option), EXAMPLES + 2, width_ratios=[1.25, *[1] * EXAMPLES, 1.9])
    for row, (option, sample) in zip(grid, by_option.items(), strict=True):
        row[0].set_ylabel(option.name, fontsize=10, color=colour(option.sides), weight="bold")
        picture = row[0].imshow(sample.masks.mean(0), vmin=0, vmax=0.75, cmap="viridis")
        row[0].set(xticks=[], yticks=[])
        figure.colorbar(picture, ax=row[0], ticks=[0, 0.25, 0.5, 0.75], fraction=0.05).ax.tick_params(labelsize=7)
        shades = ListedColormap(["#eeeeee", colour(option.sides)])
        for axes, index in zip(row[1:-1], spread(sample), strict=True):
            show(axes, sample.masks[index], cmap=shades, vmin=0, vmax=1)
            axes.set_xlabel(f"{sample.counts[index]} hidden, target {sample.targets[index]:.0f}", fontsize=7)
        draw_histogram(row[-1], sample, colour(option.sides))
    grid[0, 0].set_title("how often hidden", fontsize=9)
    grid[0, 1].set_title("examples", fontsize=9, loc="left")
    grid[0, -1].set_title("share of a crop that is hidden", fontsize=9)
    save(figure, path)


def spread(sample: Drawn) -> list[int]:
    """Returns the indices of EXAMPLES masks, from a small target to a large one."""
    order = np.argsort(sample.targets, kind="stable")
    return [int(order[round(place * (len(order) - 1))]) for place in np.linspace(0.1, 0.95, EXAMPLES)]


def draw_histogram(axes: Axes, sample: Drawn, shade: str) -> None:
    """Draws the distribution of the share of a crop that masks hide, and how often it is above the target."""
    patches = sample.masks[0].size
    ratios = sample.counts / patches
    axes.hist(ratios, bins=(np.arange(0, patches + 10, 10) - 0.5) / patches, color=shade)  # of 10 patches each
    axes.axvline(ratios.mean(), color="black", linewidth=1)
    above = (sample.counts > sample.targets).mean()
    note = f"mean {ratios.mean():.2f}\nabove target: {100 * above:.0f} %"
    axes.text(1, 1, note, transform=axes.transAxes, ha="right", va="top", fontsize=8)
    axes.set(xlim=(0, 1), xticks=[0, 0.25, 0.5, 0.75, 1], yticks=[])
    axes.margins(y=0.25)
    axes.set_ylabel("masks", fontsize=7)
    axes.tick_params(labelsize=7)
    axes.spines[["top", "right", "left"]].set_visible(False)


# --- clustering -------------------------------------------------------------------------------------------------------


class Unmasked(nn.Module):
    """Stands for the backbone of a pass of an objective's own, and notes that there was one."""

    def __init__(self) -> None:
        super().__init__()
        self.called = False

    def forward(self, crops: list[torch.Tensor]) -> list[Tokens]:
        """Returns tokens of zeros for each stack of crops, and notes the call."""
        self.called = True
        return [Tokens(torch.zeros(len(crop), 1), None, torch.zeros(len(crop), GRID[0] * GRID[1], 1)) for crop in crops]


def learning(name: str, batch: Any) -> tuple[NDArray[np.bool_], bool]:
    """Returns where the student's tokens learn, bool [P, h, w], and whether in a pass of their own, as the option's
    `select` says."""
    learns, backbone = torch.zeros_like(batch.mask), Unmasked()
    if "_target_" not in words.written("clustering", name):
        return learns.numpy().reshape(-1, *GRID), False
    tokens = torch.zeros(*batch.mask.shape, 1)
    features = Features(tokens[..., 0, :], tokens[..., 0, :], tokens[batch.mask], tokens)
    context = SimpleNamespace(batch=batch, student_features=features, student={"backbone": backbone})
    _, _, positions = words.built("clustering", name, targets=nn.Identity(), reduction=None).select(context)
    learns.view(-1)[positions] = True
    return learns.numpy().reshape(-1, *GRID), backbone.called


def clustering(out: Path) -> str:
    """Draws where each option of clustering learns, and returns the section that shows it."""
    batch = batch_of(words.built("forward", "unified"))
    options = words.options("clustering")
    figure = new_figure(2.95)
    for axes, option in zip(figure.subplots(1, len(options)), options, strict=True):
        learns, own = learning(option.name, batch)
        mask = batch.mask[0, 0].numpy().reshape(GRID) & (not own)
        show(axes, tinted(mask_drawn(pixels(batch.global_crops[0, 0]), mask), learns[0]))
        title = f"{option.name} ({', '.join(option.sides) or 'neither side'})"
        axes.set_title(title, fontsize=9, color=colour(option.sides), weight="bold")
        note = "own pass, without mask" if own else "the masked pass" if learns.any() else "no clustering"
        axes.set_xlabel(f"{learns[0].sum()} of {learns[0].size} positions learn\n{note}", fontsize=8)
    save(figure, out / "clustering.png")
    text = """
One crop as the student gets it; green are the positions whose tokens learn to predict the prototype that the teacher
chose there. The teacher sees the whole crop, and its tokens at all positions shape the prototypes, whichever of the
three is chosen.

Look at what the green tokens know: under `masked` their patch is hidden, so they have to infer it from the rest.
Under `visible` they see their own patch and learn from a crop with holes. Under `separate` nothing is hidden, at the
price of one more pass of the student.
"""
    return words.section("Clustering", "clustering", text, "clustering.png")


def tinted(image: Picture, where: NDArray[np.bool_]) -> Picture:
    """Returns an image that is half green at `where`, a grid of patches."""
    cover = np.kron(where, np.ones((PATCH, PATCH), dtype=bool))[..., None]
    green = 255 * np.array(to_rgb(LEARNS))
    return np.where(cover, (image + green) / 2, image).astype(np.uint8)
