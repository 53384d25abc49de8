"""The words about each option: there for all, the same in configs/README.md, and those of what a config has chosen."""

from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from dinoswap.config.command_line import chosen_options
from dinoswap.config.configuration import config_dir
from dinoswap.config.explain import SIDES, comment, explanation, markdown, options, presets

AXES = presets()["official"]
GROUPS = sorted({axis.partition("@")[0] for axis in AXES})
PAGE = Path(__file__).parents[2] / "configs" / "README.md"


@pytest.mark.parametrize("axis", AXES)
def test_every_option_has_a_sentence_and_a_source(axis: str) -> None:
    found = options(axis)
    assert {option.name for option in found} == {p.stem for p in (config_dir() / axis.partition("@")[0]).glob("*.yaml")}
    for option in found:
        assert option.does.endswith("."), option
        assert option.source, option


@pytest.mark.parametrize("group", ["preset", "recipe", "data", "teacher"])
def test_every_option_of_the_other_groups_has_a_sentence(group: str) -> None:
    for path in (config_dir() / group).glob("*.yaml"):
        assert comment(group, path.stem)[0].endswith("."), path


def test_the_presets_choose_the_same_axes() -> None:
    assert len({tuple(axes) for axes in presets().values()}) == 1


def test_what_was_chosen_is_shown() -> None:
    choices = chosen_options(["preset=legacy", "masking=block"])
    console = Console(width=200, record=True, file=StringIO())
    console.print(explanation(choices))
    text = console.export_text()
    masking = next(line for line in text.splitlines() if line.startswith("│ masking"))
    assert "block" in masking
    assert "official, aligned" in masking
    assert comment("masking", "block")[0].split()[0] in masking
    forward = next(line for line in text.splitlines() if line.startswith("│ forward"))
    assert "global_3" in forward
    assert "legacy" in forward
    assert comment("preset", "legacy")[0] in text


def test_what_is_mounted_below_an_axis_is_shown_after_it() -> None:
    table = explanation(chosen_options(["da3=enabled", "teacher@da3.teacher=dinov2"]))
    axes, names = (list(column.cells) for column in table.columns[:2])
    place = axes.index("da3")
    assert axes[place : place + 3] == ["da3", "reduction @ da3.reduction", "teacher @ da3.teacher"]
    assert names[place : place + 3] == ["enabled", "per_token", "dinov2"]
    assert len(axes) == len(AXES) + 2


def test_sides_are_what_the_presets_choose() -> None:
    for side in SIDES:
        choices = chosen_options([f"preset={side}"])
        assert {axis: choices[axis] for axis in AXES} == presets()[side]


def test_the_table_of_axes() -> None:
    """Where this fails: python tools/renew_golden.py."""
    assert markdown() in PAGE.read_text()
