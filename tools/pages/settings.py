"""details: every setting outside the axes that the sides differ in, and what changes it alone."""

from pathlib import Path
from typing import Any

from dinoswap.config.configuration import flatten, plain
from pages import optimiser, words
from pages.optimiser import Training
from switches import DETAILS, typed

Leaves = dict[str, Any]


def differing(one: Leaves, other: Leaves) -> dict[str, tuple[Any, Any]]:
    """Returns both values of each key whose values differ, "-" where a side has no such key."""
    keys = [key for key in {**one, **other} if one.get(key) != other.get(key)]
    return {key: (one.get(key, "-"), other.get(key, "-")) for key in keys}


def details(out: Path, sides: dict[str, Training]) -> str:
    """Draws what differs besides the axes, and returns the section that shows it with a table."""
    optimiser.draw_details(out / "details.png", sides)
    text = """
What differs besides the axes, most of it too small to deserve one. Left: how sharp the teacher's targets are (lower
is sharper); both sides warm up, on a line and on half a cosine. Middle: how the peak lr grows with the number of
images per step, with its square root or in proportion; the sides agree at 64 images and are four times apart at 1024.
Right: how slowly the teacher follows the student, the same on both sides.

All settings that `details` changes, without a recipe. What stands on the left changes those of its row alone, as in
`dinoswap-train preset=official model.ffn=swiglu`.
"""
    section = words.section("Details", "details", text, "details.png")
    return f"{section}\n{words.table(['override', 'what it does', 'setting', 'official', 'legacy'], rows())}"


def rows() -> list[list[str]]:
    """Returns a row for each switch, in which a setting and its two values stand below each other. They are without a
    recipe: the values of train.yaml, and what `details=legacy` makes of them."""
    official = leaves()
    left = differing(official, leaves("details=legacy"))
    lines = []
    for switch, does in DETAILS.items():
        changed = differing(official, leaves(*switch))
        keys = [key for key, pair in changed.items() if left.get(key) == pair]
        if keys:
            cells = [(f"`{key}`", *map(words.value, left.pop(key))) for key in keys]
            lines.append([f"`{typed(switch)}`", does, *("<br>".join(cell) for cell in zip(*cells, strict=True))])
    return lines + [["-", "", f"`{key}`", *map(words.value, pair)] for key, pair in left.items()]


def leaves(*overrides: str) -> Leaves:
    """Returns the resolved config of `preset=official` with these overrides, by key."""
    return flatten(plain(words.composed("recipe=none", "preset=official", *overrides)))
