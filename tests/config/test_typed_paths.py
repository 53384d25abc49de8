"""Paths reach the config as they were typed, whatever signs are in them: the truth is the text itself, read by Hydra's
own parser."""

import random
import re
from pathlib import Path

import pytest
import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser

from dinoswap.config.command_line import check_arguments, compose_config
from dinoswap.config.configuration import config_dir
from dinoswap.config.schema import ConfigError
from dinoswap.config.typed_paths import PATHS, as_typed, for_the_shell
from dinoswap.evaluate import with_overrides
from dinoswap.run.subject import default_config
from dinoswap.studies.study import read_study

SIGNS = ["=", ",", "~", "#", "(", ")", "[", "]", "{", "}", " ", "'", '"', "\\", "$", "é", "写", ":", "@", "*", "a"]
TYPED = ["/data/shard-{000..099}.tar", "null", "001", "1e5", "2024_05_01", "true", "", " ", "/x y", "a=b", "a'b"]
TYPED += [
    "a\\",
    "a\\'b",
    "'a",
    "a,b",
    "a#b",
    "~nobody-of-that-name/x",
    "choice(a,b)",
    "[a",
    "/写真/é",
    "a$b",
    "%",
    "!x",
]


def read(override: str) -> object:
    return OverridesParser.create().parse_override(override).value()


def test_a_path_is_what_was_typed() -> None:
    for value in TYPED:
        assert read(*as_typed([f"data.path={value}"])) == value
    for value in ("/data/shard-{000..099}.tar", "null", "a=b, #c\\"):
        assert compose_config(["data=image_folder", f"data.path={value}"])["data"]["path"] == value


def test_so_is_every_text_of_the_signs_of_the_grammar() -> None:
    """Quoting twice changes nothing, and what a multirun passes on to its jobs is read as the same again."""
    draw = random.Random(0)
    for _ in range(400):
        value = "/" + "".join(draw.choices(SIGNS, k=draw.randrange(8))).replace("${", "$")
        (once,) = as_typed([f"++data.path={value}"])
        assert read(once) == value
        assert as_typed([once]) == as_typed([once], multirun=True) == [once]
        passed_on = OverridesParser.create().parse_override(once).get_value_element_as_str()
        assert read(f"data.path={passed_on}") == value


def test_signs_that_keep_their_meaning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/ada")
    monkeypatch.setenv("SCRATCH", "/scratch dir")
    config = compose_config(["data=webdataset", "data.path=${oc.env:SCRATCH}/a,b", "data.test_path=null"])
    assert (config["data"]["path"], config["data"]["test_path"]) == ("/scratch dir/a,b", None)
    assert read(*as_typed(["data.path=~/a"])) == "/home/ada/a"
    assert as_typed(["data.path='~/a'"]) == ["data.path='~/a'"]
    assert read(*as_typed(["data.path=[/a b,/c{0,1}]"])) == ["/a b", "/c{0,1}"]
    assert as_typed(["model.depth=3", "~data.path", "masking=block"]) == [
        "model.depth=3",
        "~data.path",
        "masking=block",
    ]


@pytest.mark.parametrize(
    ("value", "values"),
    [
        ("/a b,~c", ["/a b", "~c"]),
        ("'/a,b','c'", ["/a,b", "c"]),
        ("/x-{a,b}.tar,/y", ["/x-{a,b}.tar", "/y"]),
        ("/don't,/y", ["/don't", "/y"]),
        ("choice(/a,/b)", ["/a", "/b"]),
    ],
)
def test_commas_are_a_sweep_in_a_multirun(value: str, values: list[str]) -> None:
    (override,) = OverridesParser.create().parse_overrides(as_typed([f"data.path={value}"], multirun=True))
    assert [read(f"data.path={each}") for each in override.sweep_string_iterator()] == values


def test_the_name_of_a_study_is_text() -> None:
    for study in ("20240501", "1e5", "true", "2024_05_01"):
        assert read(*as_typed([f"study={study}"])) == study
    assert compose_config(["study=2024_05_01"])["study"] == "2024_05_01"
    assert compose_config(["study=null"])["study"] is None


def test_hydra_is_given_what_was_checked() -> None:
    given = ["-m", "data=image_folder", "data.path=/a b,/c", "--config-dir", "/tmp"]
    assert check_arguments(given) == ["-m", "data=image_folder", "data.path='/a b',/c", "--config-dir", "/tmp"]


def test_a_study_and_an_evaluation_take_them_too(tmp_path: Path) -> None:
    file = tmp_path / "two.yaml"
    file.write_text(
        "# Which?\nbase: [data=image_folder, 'data.path=/a=b, {0..9}']\nfactors: {masking: [block, bernoulli]}\n"
        "design: one_at_a_time\nseeds: 1\nmetrics: {eval/knn_top1: 1}\n"
    )
    study = read_study(file, ["results_dir=/my results"])
    config = compose_config(study.overrides(study.reference))
    assert (config["data"]["path"], config["results_dir"]) == ("/a=b, {0..9}", "/my results")
    judged = with_overrides(default_config(), ["data=webdataset", "data.path=/d/{000..009}.tar"])
    assert judged["data"]["path"] == "/d/{000..009}.tar"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["data.path=/d/0.tar", "data.path=/d/1.tar"], "data.path is given twice; if the shell has put several files"),
        (["data.path=/my", "images"], "images: is no key=value; if it belongs to the path before it, quote the whole: "
                                      "'data.path=/my images'"),
        (["data.label_column=a b)"], "as one text: 'data.label_column='\"'\"'a b)'\"'\"''"),
    ],
)  # fmt: skip
def test_what_the_shell_tears_apart_is_told_with_what_to_type(arguments: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as refused:
        check_arguments(["data=parquet", *arguments])
    assert message in str(refused.value)


def test_what_is_shown_for_the_shell_is_one_argument_that_hydra_reads() -> None:
    import shlex

    for value in TYPED:
        (argument,) = shlex.split(for_the_shell("data.label_column", value))
        assert read(argument) == value


def test_every_key_that_is_a_path_is_known() -> None:
    """By their names in the YAML files."""
    for file in config_dir().glob("*/*.yaml"):
        text = file.read_text()
        package = re.match(r"# @package ([\w.]+)\n", text)
        place = package[1] if package else file.parent.name
        for name, value in (yaml.safe_load(text) or {}).items():
            if not isinstance(value, dict) and (name == "path" or name.endswith(("_path", "_dir", "_file"))):
                assert f"{place}.{name}" in PATHS, file
