"""weight_decay, layer_decay and details: what each parameter's lr and weight decay do over training, on both sides."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray

from dinoswap.build import build_trainer
from dinoswap.config.configuration import plain
from dinoswap.optim.param_groups import apply_schedules
from dinoswap.optim.schedules import scaled_lr
from pages import words
from pages.figures import SIDES, new_figure, save

RECIPE = "vits16"
NARROW = [
    f"recipe={RECIPE}", "trainer.device=cpu", "model.embed_dim=16", "model.num_heads=2",
    "heads.dino_head={prototypes: 8, hidden_dim: 8, bottleneck_dim: 8}",
    "heads.ibot_head={prototypes: 8, hidden_dim: 8, bottleneck_dim: 8}",
]  # fmt: skip
"""The recipe with its depth, batch and schedules, in narrow networks: widths change none of these."""
POINTS = 300
LINES = {"official": "-", "legacy": "--"}

LR = {
    "patch embedding": "backbone.patch_embed.proj.weight",
    "tokens and positions": "backbone.cls_token",
    "block 1": "backbone.blocks.0.attn.qkv.weight",
    "block 6": "backbone.blocks.5.attn.qkv.weight",
    "block 12": "backbone.blocks.11.attn.qkv.weight",
    "heads": "dino_head.mlp.0.weight",
    "last layer of the heads": "dino_head.last_layer.weight_v",
    "prototype bank": "prototype_bank.weight",
}
DECAY = {
    "backbone: weights, tokens, positions": "backbone.blocks.0.attn.qkv.weight",
    "heads: weights": "dino_head.mlp.0.weight",
    "biases, norms, LayerScale": "backbone.blocks.0.norm1.weight",
    "prototype bank": "prototype_bank.weight",
}
"""What a panel is called, and a parameter that stands for it."""


@dataclass(frozen=True)
class Training:
    """A side's groups and schedules over a whole run, at POINTS steps."""

    config: dict[str, Any]
    steps: NDArray[np.int64]
    hyper: dict[str, NDArray[np.float64]]
    groups: list[dict[str, Any]]

    @property
    def share(self) -> NDArray[np.float64]:
        """The steps as shares of the run, in per cent."""
        return 100 * self.steps / self.config["trainer"]["max_steps"]

    def of(self, parameter: str) -> dict[str, Any] | None:
        """Returns the group of a parameter, with the values of lr and weight decay at every step; None where there is
        no such parameter."""
        return next((group for group in self.groups if parameter in group["names"]), None)


def training(side: str) -> Training:
    """Returns groups and schedules of the preset of this side, in a narrow network."""
    config = plain(words.composed(*NARROW, f"preset={side}"))
    trainer = build_trainer(config)
    groups, total = trainer.optimizer.param_groups, config["trainer"]["max_steps"]
    steps = np.unique(np.r_[np.linspace(0, 0.02 * total, 40), np.linspace(0, total - 1, POINTS)].astype(int))
    history: dict[str, list[list[float]]] = {"lr": [], "weight_decay": []}
    hyper = [trainer.schedules.at(int(step)) for step in steps]
    for values in hyper:
        apply_schedules(groups, values)
        for key, rows in history.items():
            rows.append([group[key] for group in groups])
    columns = {key: np.array(rows).T for key, rows in history.items()}  # [steps, groups] -> [groups, steps]
    traced = [
        {**group, **{key: column[index] for key, column in columns.items()}} for index, group in enumerate(groups)
    ]
    return Training(config, steps, {name: np.array([values[name] for values in hyper]) for name in hyper[0]}, traced)


def both_sides() -> dict[str, Training]:
    """Returns groups and schedules of both presets, by side."""
    return {side: training(side) for side in SIDES}


def panel(axes: Axes, title: str, sides: dict[str, Training], parameter: str, key: str) -> None:
    """Draws one value of one parameter's group over training, a line for each side that has the parameter."""
    for side, run in sides.items():
        group = run.of(parameter)
        if group is not None:
            axes.plot(run.share, group[key], LINES[side], color=SIDES[side], label=side)
    tidy(axes, title, "% of the run")
    if "official" not in axes.get_legend_handles_labels()[1]:
        axes.text(0.5, 0.5, "official has none", transform=axes.transAxes, fontsize=8, ha="center")


def tidy(axes: Axes, title: str, xlabel: str) -> None:
    """Sets the title and the labels of axes, in small type."""
    axes.set_title(title, fontsize=9)
    axes.set_xlabel(xlabel, fontsize=8)
    axes.tick_params(labelsize=8)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)


# --- layer_decay ------------------------------------------------------------------------------------------------------


def layer_decay(out: Path, sides: dict[str, Training]) -> str:
    """Draws the lr by layer and over training, and returns the section that shows it."""
    figure = new_figure(7.2)
    above, below = figure.subfigures(2, 1, height_ratios=[1, 1.7])
    draw_multipliers(above.subplots(), sides)
    grid = below.subplots(2, 4, sharex=True, sharey=True)
    for axes, (title, parameter) in zip(grid.flat, LR.items(), strict=True):
        panel(axes, title, sides, parameter, "lr")
        axes.set_yscale("log")
        axes.set_ylim(1e-6, 3e-2)
        axes.label_outer()
    for axes in grid[:, 0]:
        axes.set_ylabel("lr", fontsize=8)
    grid[0, 0].legend(fontsize=8)
    save(figure, out / "layer_decay.png")
    peaks = {side: max(group["lr"].max() for group in run.groups) for side, run in sides.items()}
    text = f"""
The same runs. Top: what the lr of each layer is multiplied with. Bottom: the lr itself over training, for some
layers; each horizontal line is ten times the one below it.

Look at the top: official layers near the input learn up to {1 / smallest(sides["official"]):.0f} times more slowly
than the last ones, legacy layers all alike. At the bottom the legacy lr is higher throughout: its peak is
{peaks["legacy"]:.3g} against {peaks["official"]:.3g}. That is not this axis but how the lr grows with the batch
(`schedule.lr_scaling`, see details). The last layer of the official heads starts later: its lr is 0 at first; the
legacy trainer drops its gradients for as long, which a lr does not show. The prototype bank has an lr of its own.
"""
    return words.section("Layer decay", "layer_decay", text, "layer_decay.png")


def smallest(run: Training) -> float:
    """Returns the smallest lr multiplier in the backbone."""
    return float(min(group["lr_multiplier"] for group in run.groups if group["module"] == "backbone"))


def draw_multipliers(axes: Axes, sides: dict[str, Training]) -> None:
    """Draws the lr multiplier of each layer, a line for each side."""
    depth = 12
    names = {"patch\nembedding": LR["patch embedding"], "tokens,\npositions": LR["tokens and positions"]}
    names |= {f"block\n{index + 1}": f"backbone.blocks.{index}.attn.qkv.weight" for index in range(depth)}
    names |= {"final\nnorm": "backbone.norm.weight", "heads": LR["heads"]}
    for side, run in sides.items():
        groups = [run.of(parameter) for parameter in names.values()]
        values = [group["lr_multiplier"] for group in groups if group]
        axes.plot(range(len(values)), values, LINES[side], marker="o", color=SIDES[side], label=side)
        offset = 7 if side == "legacy" else -13
        for place, value in enumerate(values):
            style = {"textcoords": "offset points", "fontsize": 7, "ha": "center"}
            axes.annotate(f"{value:.2g}", (place, value), (0, offset), **style)
    tidy(axes, "lr multiplier by layer", "")
    axes.set_xticks(range(len(names)), list(names), fontsize=7)
    axes.set_ylim(-0.15, 1.2)
    axes.legend(fontsize=8, loc="center left")


# --- weight_decay -----------------------------------------------------------------------------------------------------


def weight_decay(out: Path, sides: dict[str, Training]) -> str:
    """Draws weight decay over training, and returns the section that shows it."""
    figure = new_figure(2.6)
    grid = figure.subplots(1, len(DECAY), sharey=True)
    for axes, (title, parameter) in zip(grid, DECAY.items(), strict=True):
        panel(axes, title, sides, parameter, "weight_decay")
    grid[0].set_ylabel("weight decay", fontsize=8)
    grid[0].legend(fontsize=8)
    save(figure, out / "weight_decay.png")
    heads = {side: run.of(LR["heads"]) for side, run in sides.items()}
    last = {side: group["weight_decay"][-1] for side, group in heads.items() if group}
    text = f"""
Weight decay pulls weights towards zero, the more the higher it is. Both presets with `recipe={RECIPE}` (12 blocks,
{sides["official"].config["data"]["batch_size"]} images per step); a panel per kind of parameter.

Look at the heads: the official schedule reaches them too, the legacy one misses them, and they stay at AdamW's
{last["legacy"]:g}: {last["official"] / last["legacy"]:.0f} times less in the end. In the backbone the legacy schedule
starts later (`schedule.weight_decay_warmup`, see details). Biases, norms and LayerScale are decayed on neither side.
"""
    return words.section("Weight decay", "weight_decay", text, "weight_decay.png")


# --- details ----------------------------------------------------------------------------------------------------------


def draw_details(path: Path, sides: dict[str, Training]) -> None:
    """Draws the schedules and the scaling of the lr in which the presets differ besides the axes."""
    figure = new_figure(2.7)
    temperature, scaling, momentum = figure.subplots(1, 3)
    batches = 2 ** np.arange(5, 13)
    for side, run in sides.items():
        style = {"color": SIDES[side], "linestyle": LINES[side], "label": side}
        temperature.plot(run.share, run.hyper["teacher_temp"], **style)
        momentum.plot(run.share, run.hyper["momentum"], **style)
        schedule = run.config["schedule"]
        peaks = [scaled_lr(schedule["base_lr"], int(batch), schedule["lr_scaling"]) for batch in batches]
        scaling.loglog(batches, peaks, marker="o", markersize=3, **style)
    tidy(temperature, "teacher temperature", "% of the run")
    tidy(scaling, "peak lr by batch size", "images per step")
    tidy(momentum, "teacher (EMA) momentum: the same", "% of the run")
    scaling.set_xticks(batches[::2], batches[::2])
    scaling.minorticks_off()
    temperature.legend(fontsize=8)
    save(figure, path)
