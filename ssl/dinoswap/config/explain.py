"""Describes in words what each axis does under a composed config, for `dinoswap-train ... --explain` and the table in
configs/.

The words stand in one place, at the head of each option's YAML: a comment of one sentence, then `# Source: ` with the
repository and commit that it follows. The presets say which side an option stands for.
"""

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from omegaconf import OmegaConf
from rich.table import Table

from dinoswap.config.configuration import config_dir
from dinoswap.config.guests import guests

SIDES = ("official", "legacy", "aligned", "dinov3")
"""The presets, in the order in which they are named."""
SOURCE = "Source: "


@dataclass(frozen=True)
class Option:
    """Holds an option of a group as its YAML describes it; `sides` are the presets that choose it for this axis."""

    axis: str
    name: str
    does: str
    source: str
    sides: tuple[str, ...]


def presets() -> dict[str, dict[str, str]]:
    """Returns for each preset the option of each axis. The axes are the groups that a preset chooses, written
    `group@place` where one is mounted elsewhere."""
    return {side: _chosen(OmegaConf.load(config_dir() / "preset" / f"{side}.yaml").defaults) for side in SIDES}


def _chosen(defaults: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """Returns the option of each group in a list of defaults, by the name of the group."""
    entries = [entry for line in defaults for entry in line.items()]
    return {str(key).removeprefix("override /"): str(option) for key, option in entries}


def describe(axis: str, name: str) -> Option:
    """Returns the description of one option of an axis."""
    group = axis.partition("@")[0]
    does, source = comment(group, name)
    return Option(axis, name, does, source, tuple(side for side, axes in presets().items() if axes.get(axis) == name))


def comment(group: str, name: str) -> tuple[str, str]:
    """Returns the sentence at the head of an option's YAML, which a guest may have brought, and its source, "" when it
    names none."""
    folders = [config_dir(), *(guest.configs for guest in guests())]  # in the order in which Hydra searches them
    file = next(path for folder in folders if (path := folder / group / f"{name}.yaml").is_file())
    words, source = [], ""
    for line in file.read_text().splitlines():
        text = line.removeprefix("#").strip()
        if not line.startswith("#") or source:
            break
        if text.startswith(SOURCE):
            source = text.removeprefix(SOURCE)
        elif not text.startswith("@package"):
            words.append(text)
    return " ".join(words), source


def options(axis: str) -> list[Option]:
    """Returns all options of an axis, those of installed packages included: first those that a preset chooses, in the
    order of the presets, then the others by name."""
    group = axis.partition("@")[0]
    folders = [config_dir(), *(guest.configs for guest in guests())]
    names = sorted({path.stem for folder in folders for path in (folder / group).glob("*.yaml")})
    described = [describe(axis, name) for name in names]
    return sorted(described, key=lambda option: min((SIDES.index(side) for side in option.sides), default=len(SIDES)))


HELP_WIDTH = 100


def help_text() -> str:
    """Returns what `dinoswap-train --help` prints: the template of configs/hydra/help, with every group and its
    options: in the order of the defaults list of train.yaml, and then those that only options of others mount."""
    defaults = OmegaConf.load(config_dir() / "train.yaml").defaults
    mounted = [str(key).partition("@")[0] for entry in defaults if not isinstance(entry, str) for key in entry]
    folders = sorted(path.name for path in config_dir().iterdir() if path.is_dir() and path.name != "hydra")
    groups = dict.fromkeys(["preset", *(name for name in mounted if " " not in name), *folders])
    listed = {group: [option.name for option in options(group)] for group in groups} | {"preset": SIDES}
    lines = [
        textwrap.fill(f"{group:16} {', '.join(names)}", HELP_WIDTH, subsequent_indent=" " * 17)
        for group, names in listed.items()
    ]
    template = OmegaConf.load(config_dir() / "hydra" / "help" / "train.yaml").template
    return str(template).replace("{groups}", "\n".join(lines))


def explanation(choices: Mapping[str, str]) -> Table:
    """Returns a table with a row per axis, and one per group that is mounted below an axis, for the options that a
    config has chosen (Hydra's `runtime.choices`)."""
    table = Table("axis", "option", "stands for", "what it does", "follows", title=_title(choices))
    for axis in presets()["official"]:
        mounted = [choice for choice in choices if choice.partition("@")[2].startswith(f"{axis}.")]
        for place in (axis, *sorted(mounted)):
            option = describe(place, choices[place])
            table.add_row(place.replace("@", " @ "), option.name, ", ".join(option.sides), option.does, option.source)
    return table


def _title(choices: Mapping[str, str]) -> str:
    """Returns the preset of these choices with the first line of what its YAML says of it."""
    return f"preset={choices['preset']}: {comment('preset', choices['preset'])[0]}"


def markdown() -> str:
    """Returns all options of all axes as a Markdown table."""
    rows = ["| axis | option | stands for | what it does | follows |", "|---|---|---|---|---|"]
    for axis in presets()["official"]:
        for option in options(axis):
            rows.append(_row([f"`{axis}`", f"`{option.name}`", ", ".join(option.sides), option.does, option.source]))
    return "\n".join(rows) + "\n"


def _row(cells: Sequence[str]) -> str:
    """Returns a row of a Markdown table."""
    return f"| {' | '.join(cells)} |"
