"""details: every setting outside the axes that the sides differ in, and the flip that changes it alone."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from dinoswap.config.configuration import config_dir, flatten, plain
from dinoswap.config.explain import comment
from pages import optimiser, words
from pages.optimiser import Training

Leaves = dict[str, Any]


def differing(one: Leaves, other: Leaves) -> dict[str, tuple[Any, Any]]:
    """Key -> both values, "-" where a side has no such key."""
    keys = [key for key in {**one, **other} if one.get(key) != other.get(key)]
    return {key: (one.get(key, "-"), other.get(key, "-")) for key in keys}


def flips(base: DictConfig) -> Iterator[tuple[str, Leaves]]:
    """Every flip of a single detail, and the leaves of `base` with it."""
    for path in sorted((config_dir() / "flip").glob("details_*.yaml")):
        flip = OmegaConf.load(path)
        mounts = [entry for line in flip.pop("defaults", []) for entry in line.items()]
        cfg = OmegaConf.merge(base, flip)
        for group, option in mounts:
            group, _, place = group.removeprefix("override /").partition("@")
            if place:
                OmegaConf.update(cfg, place, words.written(group, option), merge=False)
        yield path.stem, flatten(plain(cfg))


def details(out: Path, sides: dict[str, Training]) -> str:
    optimiser.draw_details(out / "details.png", sides)
    text = """
What differs besides the axes, most of it too small to deserve one. Left: how sharp the teacher's targets are (lower
is sharper); both sides warm up, on a line and on half a cosine. Middle: how the peak lr grows with the number of
images per step, with its square root or in proportion; the sides agree at 64 images and are four times apart at 1024.
Right: how slowly the teacher follows the student, the same on both sides.

All settings that `details` changes, without a recipe. `flip=...` changes those of its row alone, on top of
`preset=official`.
"""
    section = words.section("Details", "details", text, "details.png")
    return f"{section}\n{words.table(['flip', 'what it does', 'setting', 'official', 'legacy'], rows())}"


def rows() -> list[list[str]]:
    """A line per flip, in which a setting and its two values stand below each other. Without a recipe: the values of
    train.yaml, and what `details=legacy` makes of them."""
    base = words.composed("~recipe", "preset=official")
    official = flatten(plain(base))
    left = differing(official, flatten(plain(words.composed("~recipe", "preset=official", "details=legacy"))))
    found = []
    for flip, leaves in flips(base):
        keys = [key for key, pair in differing(official, leaves).items() if left.get(key) == pair]
        if keys:
            cells = [(f"`{key}`", *map(words.value, left.pop(key))) for key in keys]
            found.append(
                [f"`{flip}`", comment("flip", flip)[0], *("<br>".join(cell) for cell in zip(*cells, strict=True))]
            )
    return found + [["-", "", f"`{key}`", *map(words.value, pair)] for key, pair in left.items()]
