"""Markdown of the page: what an option does comes from configs/, as in the README and in `--explain`."""

import json
from collections.abc import Iterable, Sequence
from functools import cache
from typing import Any

from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from dinoswap.config import explain
from dinoswap.config.configuration import VERSION_BASE, config_dir
from dinoswap.config.explain import Option
from dinoswap.config.schema import construct_option

REDUCTION = {"iBOT": "reduction@objectives.ibot.reduction", "clustering": "reduction@objectives.clustering.reduction"}
"""The group that is mounted twice: for which losses, and the axis."""


@cache
def options(axis: str) -> list[Option]:
    """Returns the options of an axis, which are read once."""
    return explain.options(axis)


def composed(*overrides: str) -> DictConfig:
    """Returns the config of `dinoswap-train <overrides>`."""
    with initialize_config_dir(str(config_dir()), version_base=VERSION_BASE):
        return compose("train", list(overrides))


def written(group: str, name: str) -> dict[str, Any]:
    """Returns the content of an option's YAML."""
    return dict(OmegaConf.to_container(OmegaConf.load(config_dir() / group / f"{name}.yaml")))


def built(group: str, name: str, **given: Any) -> Any:
    """Returns the option with the values of its YAML, but for those that are given."""
    section = {key: value for key, value in written(group, name).items() if key not in given}
    return construct_option(section, group, **given)


def section(title: str, axis: str, text: str, picture: str = "") -> str:
    """Returns a section of the page: a heading, the options, the picture, and what to look at in it."""
    lines = [f"## {title}", "", *(_item(option, ", ".join(option.sides)) for option in options(axis))]
    return _joined(lines, text, picture)


def reduction_section(title: str, text: str, picture: str) -> str:
    """Returns the section on reductions, which says of each option which side reduces which losses by it."""
    lines = [_item(option, users_text(reduction_users(option.name))) for option in options(REDUCTION["iBOT"])]
    return _joined([f"## {title}", "", *lines], text, picture)


def reduction_users(name: str) -> dict[str, list[str]]:
    """Returns, by side, the losses that this option reduces by default."""
    losses: dict[str, list[str]] = {}
    for loss, axis in REDUCTION.items():
        for side in next(option.sides for option in options(axis) if option.name == name):
            losses.setdefault(side, []).append(loss)
    return losses


def users_text(users: dict[str, list[str]]) -> str:
    """Returns in words which side uses an option for which losses."""
    return "; ".join(f"{side}: {' and '.join(losses)}" for side, losses in users.items())


def _item(option: Option, sides: str) -> str:
    """Returns the line on an option in a list: its name, whose default it is, what it does and where it is from."""
    return f"- **`{option.name}`** ({sides or 'neither side'}): {option.does} Source: {option.source}."


def _joined(lines: list[str], text: str, picture: str) -> str:
    """Returns the lines of a section with its picture and its paragraphs, each on one line."""
    pictures = [f"![{lines[0].lstrip('# ')}]({picture})", ""] if picture else []
    paragraphs = "\n\n".join(" ".join(paragraph.split()) for paragraph in text.strip().split("\n\n"))
    return "\n".join([*lines, "", *pictures, paragraphs, ""])


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Returns a table in Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(str(cell) for cell in line)} |" for line in lines) + "\n"


def value(setting: object) -> str:
    """Returns a setting as YAML would have it; a class by its module."""
    if isinstance(setting, str):
        return setting.split(".")[-2] if setting.startswith("dinoswap.") else setting
    return json.dumps(setting)
