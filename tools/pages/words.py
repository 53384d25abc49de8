"""Markdown of the page: what an option does comes from configs/, as in the README and in `--explain`."""

from collections.abc import Iterable, Sequence
from typing import Any

from omegaconf import OmegaConf

from dinoswap.configuration import config_dir
from dinoswap.explain import Option, options
from dinoswap.schema import construct_option

REDUCTION = {"iBOT": "reduction@objectives.ibot.reduction", "clustering": "reduction@objectives.clustering.reduction"}
"""The group that is mounted twice: for which losses, and the axis."""


def written(group: str, name: str) -> dict[str, Any]:
    """The YAML of an option."""
    return dict(OmegaConf.to_container(OmegaConf.load(config_dir() / group / f"{name}.yaml")))


def built(group: str, name: str, **given: Any) -> Any:
    """The option with the values of its YAML, but for those that are given."""
    section = {key: value for key, value in written(group, name).items() if key not in given}
    return construct_option(section, group, **given)


def section(title: str, axis: str, text: str, picture: str = "") -> str:
    """A heading, the options, what to look at."""
    lines = [f"## {title}", "", *(_item(option, ", ".join(option.sides)) for option in options(axis))]
    return _joined(lines, text, picture)


def reduction_section(title: str, text: str, picture: str) -> str:
    axes = {losses: {option.name: option for option in options(axis)} for losses, axis in REDUCTION.items()}
    lines = [f"## {title}", ""]
    for name, option in axes["iBOT"].items():
        sides = [f"{', '.join(found[name].sides)} for {losses}" for losses, found in axes.items() if found[name].sides]
        lines.append(_item(option, "; ".join(sides)))
    return _joined(lines, text, picture)


def _item(option: Option, sides: str) -> str:
    return f"- **`{option.name}`** ({sides or 'neither side'}): {option.does} Source: {option.source}."


def _joined(lines: list[str], text: str, picture: str) -> str:
    pictures = [f"![{lines[0].lstrip('# ')}]({picture})", ""] if picture else []
    return "\n".join([*lines, "", *pictures, text.strip(), ""])


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(str(cell) for cell in line)} |" for line in lines) + "\n"
