"""Checking a config section against a signature: what is refused, and that the message names key, value and remedy."""

from typing import Any, Literal

import pytest

from dinoswap.config.schema import ConfigError, checked, construct, nearest, option_class
from dinoswap.objectives.koleo import KoLeo
from dinoswap.optim.schedules import Phases

Section = dict[str, Any]


class Cake:
    def __init__(
        self,
        layers: int,
        sugar: float = 0.5,
        icing: Literal["lemon", "cocoa"] = "lemon",
        split: tuple[float, float] = (0.5, 0.5),
        length: int | float = 0.1,
        candles: int | None = None,
        name: str = "",
        baked: bool = True,
        oven: object = None,
    ) -> None:
        if layers < 1:
            raise ValueError(f"layers={layers}: a cake has at least one")
        if sugar == 13:
            raise ValueError("too much of everything")
        if oven == "cold":
            raise ValueError(f"oven={oven}: heat it first")
        self.all = [layers, sugar, icing, split, length, candles, name, baked]


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"layrs": 2}, "cakes.first.layrs=2: there is no such key. Did you mean 'layers'? Known: layers, sugar, icing"),
        ({}, "cakes.first.layers: has to be given; add cakes.first.layers=..."),
        ({"layers": "???"}, "cakes.first.layers: has to be given"),
        ({"layers": "two"}, "cakes.first.layers=two: must be a whole number, not text"),
        ({"layers": 2.0}, "cakes.first.layers=2.0: must be a whole number, not a number"),
        ({"layers": True}, "cakes.first.layers=True: must be a whole number, not true or false"),
        ({"layers": 10**20}, "cakes.first.layers=100000000000000000000: must be a whole number up to 92233720"),
        ({"layers": 1, "length": 10**20}, "cakes.first.length=100000000000000000000: must be a whole number up to"),
        ({"layers": 1, "sugar": 10**400}, "cakes.first.sugar=1"),
        ({"layers": float("-inf")}, "cakes.first.layers=-inf: must be a whole number, not a number"),
        ({"layers": None}, "cakes.first.layers=None: must be a whole number, not null"),
        ({"layers": 0}, "cakes.first.layers=0: a cake has at least one"),
        ({"layers": 1, "sugar": 13}, "cakes.first: too much of everything"),
        ({"layers": 1, "sugar": float("nan")}, "cakes.first.sugar=nan: must be a finite number"),
        ({"layers": 1, "icing": "coca"}, "icing=coca: must be one of lemon, cocoa. Did you mean 'cocoa'?"),
        ({"layers": 1, "split": 0.5}, "cakes.first.split=0.5: must be a list"),
        ({"layers": 1, "split": [0.5]}, "cakes.first.split=[0.5]: must have 2 entries"),
        ({"layers": 1, "split": [0.5, "x"]}, "cakes.first.split[1]=x: must be a number"),
        ({"layers": 1, "length": "x"}, "cakes.first.length=x: must be a whole number or a number"),
        ({"layers": 1, "candles": "x"}, "cakes.first.candles=x: must be a whole number"),
        ({"layers": 1, "name": 7}, "cakes.first.name=7: must be text, not a whole number; quote it: cakes.first.name="),
        ({"layers": 1, "baked": 1}, "cakes.first.baked=1: must be true or false"),
        ({"layers": 1, "oven": 1}, "cakes.first.oven=1: there is no such key"),
        ("sponge", "cakes.first=sponge: is a section"),
    ],
)  # fmt: skip
def test_refused(section: Section, message: str) -> None:
    with pytest.raises(ConfigError) as refused:
        construct(Cake, section, "cakes.first", oven=None)
    assert message in str(refused.value)


def test_an_error_about_a_given_argument_is_told_by_whoever_has_its_key() -> None:
    class Kitchen:
        def __init__(self, cake: Any, oven: str) -> None:
            cake(oven=oven)

    def cake(oven: str) -> Cake:
        return construct(Cake, {"layers": 2}, "kitchen.cake", oven=oven)

    with pytest.raises(ConfigError, match=r"^kitchen\.oven=cold: heat it first"):
        construct(Kitchen, {"oven": "cold"}, "kitchen", cake=cake)


def test_a_key_of_an_earlier_version_is_told_where_it_is() -> None:
    with pytest.raises(ConfigError, match=r"^da3\.variant=small: .* Here: da3\.teacher\.variant=small\. Known: "):
        construct(Cake, {"variant": "small"}, "da3")


def test_accepted_values_have_the_hinted_types() -> None:
    section = {"_target_": "ignored", "layers": 2, "sugar": 1, "icing": "cocoa", "split": [1, 0.25], "candles": 3}
    cake = construct(Cake, section, "cake", oven=object())
    assert cake.all == [2, 1.0, "cocoa", (1.0, 0.25), 0.1, 3, "", True]
    assert [type(value) for value in (cake.all[1], *cake.all[3])] == [float] * 3


@pytest.mark.parametrize(("length", "kind"), [(3, int), (3.5, float), (0, int), (0.0, float)])
def test_steps_and_shares_are_told_apart(length: float, kind: type) -> None:
    """`int | float`: 1 is one step, 1.0 would be the whole run."""
    assert type(checked(Cake, {"layers": 1, "length": length}, "cake")["length"]) is kind


def test_keys_at_the_root_have_no_section() -> None:
    with pytest.raises(ConfigError, match=r"^layers=x: must be"):
        checked(Cake, {"layers": "x"}, "")


@pytest.mark.parametrize(
    "target",
    [
        *(
            "os.system",
            "dinoswap.masking.block.BlockMasking",
            "dinoswap.objectives.no.X",
            "dinoswap.objectives.koleo.X",
        ),
        *("dinoswap.objectives.koleo.torch", "dinoswap.objectives.koleo.Tensor"),
        *("dinoswap.objectives.", "dinoswap.objectives", "", "."),
    ],
)
def test_a_target_outside_the_group_is_refused(target: str) -> None:
    with pytest.raises(ConfigError, match=r"objectives\.koleo\._target_="):
        option_class({"_target_": target}, "objectives.koleo")


def test_a_target_of_the_group_is_found() -> None:
    assert option_class({"_target_": "dinoswap.objectives.koleo.KoLeo"}, "objectives.koleo") is KoLeo


def test_nearest_compares_whole_keys_and_then_their_last_parts() -> None:
    known = ["trainer.max_steps", "model.depth"]
    assert nearest("trainer.max_stpes", known) == " Did you mean 'trainer.max_steps'?"
    assert nearest("max_step", known) == " Did you mean 'trainer.max_steps'?"
    assert nearest("zebra", known) == ""


def test_a_section_becomes_the_dataclass_of_its_hint() -> None:
    def target(*, phases: Phases, other: Phases | None = None) -> tuple[Phases, Phases | None]:
        return phases, other

    section = {"start": 0, "peak": 1.0, "end": 0.5, "warmup": 0.1, "cosine": None}
    built = Phases(start=0.0, peak=1.0, end=0.5, warmup=0.1, cosine=None)
    assert construct(target, {"phases": section}, "a") == (built, None)
    assert construct(target, {"phases": section, "other": section}, "a") == (built, built)
    with pytest.raises(ConfigError, match=r"a\.phases\.peek=1: there is no such key\. Did you mean 'peak'\?"):
        construct(target, {"phases": section | {"peek": 1}}, "a")
    with pytest.raises(ConfigError, match=r"a\.phases\.cosine: has to be given"):
        construct(target, {"phases": {key: section[key] for key in section if key != "cosine"}}, "a")
    with pytest.raises(ConfigError, match=r"a\.phases=3: is a section, not a value"):
        construct(target, {"phases": 3}, "a")
