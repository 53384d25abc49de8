"""forward: which network gets which crops, masked or not, and which losses read it. Found by running each option."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.patches import FancyBboxPatch
from torch import Tensor, nn

from dinoswap.config.explain import Option
from dinoswap.data.steps import collate
from dinoswap.evaluation.visualise import mask_drawn
from dinoswap.nn.vit import Tokens
from dinoswap.rng import numpy_generator
from dinoswap.values import Batch
from pages import words
from pages.figures import WIDTH, colour, new_figure, save
from pages.views import GRID, LOCALS, PATCH, PLAIN, SEED, SIDE, Picture, augmentation_of, four, photograph, pixels

NETWORKS = ("student", "teacher")
LOSSES = {"global_cls": "class", "local_cls": "class", "masked_patch": "patch"}
"""What a network's features are for."""
SHOWN = {"global": ["global 1", "global 2"], "extra": ["global 3"], "local": [f"{LOCALS} locals"]}
TEACHER_LEFT, RIGHT, ROW = 5.85, 9.35, 1.8
"""Layout in units of a thumbnail."""


@dataclass(frozen=True)
class Pass:
    """Crops that a network gets in one go, and the losses that read it."""

    role: str
    masked: bool
    losses: tuple[str, ...]

    @property
    def crops(self) -> str:
        """The crops of the pass in words."""
        return " and ".join(SHOWN[self.role]) + (", masked" if self.masked else "")

    @property
    def uses(self) -> str:
        """The losses that read the pass in words."""
        return f"{' and '.join(self.losses)} losses"


class Recorder(nn.Module):
    """Stands for a backbone: keeps what it is called with, and all tokens of the k-th entry are the number k."""

    def __init__(self) -> None:
        super().__init__()
        self.entries: list[tuple[Tensor, Tensor | None]] = []

    def forward(
        self, crops: list[Tensor], masks: list[Tensor | None], rows: list[Tensor | None], locals_from: int | None
    ) -> list[Tokens]:
        """Returns tokens of the number of their entry, and keeps crops and masks."""
        self.entries = list(zip(crops, masks, strict=True))
        tokens = []
        for index, (crop, read) in enumerate(zip(crops, rows, strict=True)):
            patch = None if read is None else torch.full((len(read), 1), float(index))
            tokens.append(Tokens(torch.full((len(crop), 1), float(index)), None, patch))
        return tokens


def passes(plan: Any, network: str, batch: Batch) -> list[Pass]:
    """Returns the passes of `network`, student or teacher, under a forward plan."""
    backbone = Recorder()
    features = getattr(plan, network)(backbone, batch, False)
    recorded = []
    for index, (crops, mask) in enumerate(backbone.entries):
        stacks = {role: getattr(batch, f"{role}_crops").flatten(0, 1) for role in SHOWN}
        (role,) = (role for role, stack in stacks.items() if torch.equal(crops, stack))
        losses = {losses for name, losses in LOSSES.items() if (getattr(features, name) == index).any()}
        recorded.append(Pass(role, mask is not None, tuple(sorted(losses))))
    return recorded


def batch_of(plan: Any) -> Batch:
    """Returns a batch of one image, with a mask on every crop that can carry one."""
    views = augmentation_of("official", plan.extra_crops)(photograph(), numpy_generator(SEED, "augment", PLAIN))
    masking = words.built("masking", "block", mask_sample_probability=1.0)
    sampler = masking.sampler(crop_size=(SIDE, SIDE), patch_size=PATCH, crops=plan.masked_crops, images=1, seed=SEED)
    return collate([views], sampler(0), [0], [])


def forward(out: Path) -> str:
    """Draws the passes of each option of forward, and returns the section that shows them with a table."""
    draw(out / "forward.png")
    rows = []
    for option in words.options("forward"):
        plan = words.built("forward", option.name)
        rows += [
            (
                f"`{option.name}`",
                network,
                "; ".join(f"{used.crops}: {used.uses}" for used in passes(plan, network, batch_of(plan))),
            )
            for network in NETWORKS
        ]
    text = """
Each box holds crops that go through a network together; grey hatched patches are hidden from it. Below a box: the
losses that read what comes out. The class losses (DINO, KoLeo) read one token per crop, the patch losses (iBOT,
clustering) a token per patch. The teacher never sees a mask.

Look at how many large crops the student has to process, and at whether its class losses come from masked crops
(`unified`) or from whole ones. `two_pass` lies between the two sides: the passes of `global_3`, the crops of
`unified`.
"""
    section = words.section("Forward", "forward", text, "forward.png")
    return f"{section}\n{words.table(['forward', 'network', 'passes'], rows)}"


def draw(path: Path) -> None:
    """Draws all options of forward, one below the other."""
    options = words.options("forward")
    height = ROW * len(options)
    figure = new_figure(WIDTH * height / RIGHT, layout=None)
    axes = figure.add_axes((0, 0, 1, 1))
    for row, option in enumerate(options):
        draw_option(axes, option, -ROW * row)
    axes.set(xlim=(-0.15, RIGHT - 0.15), ylim=(1.4 - height, 1.4))
    axes.set_axis_off()
    save(figure, path)


def draw_option(axes: Axes, option: Option, bottom: float) -> None:
    """Draws the passes of one option as boxes of crops, those of the student beside those of the teacher."""
    plan = words.built("forward", option.name)
    batch = batch_of(plan)
    for network, left in zip(NETWORKS, (0.0, TEACHER_LEFT), strict=True):
        title = f"{option.name}: {network}" if network == "student" else network
        axes.text(left, bottom + 1.17, title, fontsize=10, color=colour(option.sides), weight="bold")
        for step in passes(plan, network, batch):
            pictures = list(thumbnails(step, batch))
            box = (left, bottom), 1.05 * len(pictures) - 0.05, 1.0
            axes.add_patch(FancyBboxPatch(*box, boxstyle="round,pad=0.04", fill=False, edgecolor=colour(option.sides)))
            for index, picture in enumerate(pictures):
                start = left + 1.05 * index
                axes.imshow(picture, extent=(start, start + 1, bottom, bottom + 1))
            axes.text(left, bottom - 0.08, f"{step.crops}\nfor {step.uses}", fontsize=7, va="top")
            left += 1.05 * len(pictures) + 0.15


def thumbnails(step: Pass, batch: Batch) -> Iterator[Picture]:
    """Yields a picture for each large crop of a pass, or one for all local crops."""
    if step.role == "local":
        yield four([pixels(crop) for crop in batch.local_crops[:, 0]])
        return
    crops = batch.global_crops if step.role == "global" else batch.extra_crops
    for index, crop in enumerate(crops[:, 0]):
        mask = batch.mask[index, 0].numpy().reshape(GRID) if step.masked else np.zeros(GRID, dtype=bool)
        yield mask_drawn(pixels(crop), mask)
