"""Values in overrides: read by Hydra and OmegaConf as what was written, whatever it looks like."""

import random
from typing import Any

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from dinoswap.config.typed_paths import as_typed
from dinoswap.studies.overrides import as_text, combined, quoted

TEXTS = [
    *("20240501", "2024_05_01", "null", "NULL", "1e5", "true", "inf", "étude", "a.b", "", " ", " a ", "a b", "-", "~"),
    *("a=b", "a,b", "'", '"', "it's", "\\", "a\\", "a\\'", "\\\\'", "'\\", "C:\\x\\", "[1, 2]", "{a: 1}", "f(x)", "#x"),
    *("${oc.env:HOME}", "\\${x}", "a${", "${", "$x", "100%", "日本", "@x", "a:b", "lr=1e-3,seed=2"),
]


def read_again(value: str) -> Any:
    """The value of `key` in a config that is composed with this override."""
    parsed = OverridesParser.create().parse_override(f"key={value}")
    config = OmegaConf.create({"key": None})
    OmegaConf.update(config, "key", parsed.value())
    return OmegaConf.to_container(config, resolve=True)["key"]


@pytest.mark.parametrize("text", TEXTS)
def test_quoted_text_is_the_same_text(text: str) -> None:
    assert read_again(quoted(text)) == text


@pytest.mark.parametrize("value", [1e-05, 0.1, 1e22, 256, None, True, False, *TEXTS[:15], "block", "/a/b.c"])
def test_a_scalar_is_read_as_the_same_scalar(value: Any) -> None:
    again = read_again(as_text(value))
    assert (again, type(again)) == (value, type(value))


def test_what_is_taken_for_a_plain_name_is_read_as_that_text() -> None:
    draw = random.Random(0)
    texts = ["".join(draw.choices("aeNul1_.-/", k=draw.randrange(1, 7))) for _ in range(600)]
    bare = [text for text in texts if as_text(text) == text]
    assert [read_again(as_text(text)) for text in texts] == texts
    assert 300 < len(bare) < 600
    assert as_typed(f"study={text}" for text in bare) == [f"study={text}" for text in bare]


def test_names_stand_bare_and_lists_and_interpolations_are_what_they_are() -> None:
    bare = ["block", "vit_s-16", "/a/b.c", "[0.1, 0.5]", "{a: 1}", "${seed}", "${oc.env:DATA}/x"]
    assert [as_text(text) for text in bare] == bare
    assert as_text("20240501") == "'20240501'"


def test_of_two_overrides_of_a_key_the_last_stays() -> None:
    assert combined(["a=1", "+b=2", "c=3"], ["~b"], ["a=4"]) == ["c=3", "~b", "a=4"]
