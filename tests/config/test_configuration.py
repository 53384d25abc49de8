"""configs/ as a whole: every key is read, later choices win, run names, golden dumps of the presets."""

import inspect
import pydoc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from omegaconf import OmegaConf

from dinoswap.config.command_line import compose_config
from dinoswap.config.configuration import config_dir, flatten
from dinoswap.config.schema import ConfigError
from dinoswap.config.sections import (
    SECTIONS,
    CropSettings,
    EvaluationSettings,
    LoadingSettings,
    RunSettings,
    TrainerSettings,
)
from dinoswap.data.image_folder import ImageFolderData
from dinoswap.data.parquet import ParquetData
from dinoswap.data.webdataset import WebDatasetData
from dinoswap.nn.projection_head import ProjectionHead
from dinoswap.nn.vit import configured_vit
from dinoswap.optim.settings import OptimizerSettings
from renew_golden import GOLDEN, golden_configs

SMOKE = compose_config(["recipe=smoke"])


SECTION_TARGETS: dict[str, tuple[Callable[..., Any], set[str]]] = {
    "model": (configured_vit, {"img_size", "position"}),
    "crops": (CropSettings, set()),
    "heads.dino_head": (ProjectionHead, {"in_dim"}),
    "heads.ibot_head": (ProjectionHead, {"in_dim"}),
    "optimizer": (OptimizerSettings, set()),
    "trainer": (TrainerSettings, set()),
    "evaluation": (EvaluationSettings, {"metric"}),
    "data": (LoadingSettings, set()),
}
"""What each section is built with, and the arguments that only the builder knows."""


# --- keys -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("section", SECTION_TARGETS)
def test_train_yaml_lists_every_key_and_no_other(section: str) -> None:
    """So `+new.key=...` is never needed, and `--cfg job` shows all that can be set."""
    written = OmegaConf.select(OmegaConf.load(config_dir() / "train.yaml"), section)
    target, given = SECTION_TARGETS[section]
    assert set(written) == set(inspect.signature(target).parameters) ^ given


def test_a_default_stands_in_yaml_and_in_no_signature() -> None:
    """Else one of the two is what is read, and the other what is run. Files are opened from Python too, by their path
    alone: the keys of their sources may be left out there."""
    train = yaml.safe_load((config_dir() / "train.yaml").read_text())
    stated = [
        (target, OmegaConf.select(OmegaConf.create(train), name)) for name, (target, _) in SECTION_TARGETS.items()
    ]
    stated += [(RunSettings, train)]
    for group in (path for path in config_dir().iterdir() if path.is_dir() and path.name != "hydra"):  # Hydra's own
        for path in group.glob("*.yaml"):
            stated += options_in(yaml.safe_load(path.read_text()))
    stated += options_in(train)
    assert len(stated) > 40
    for target, section in stated:
        parameters = inspect.signature(target).parameters.values()
        twice = [p.name for p in parameters if p.name in section and p.default is not p.empty]
        assert not twice or target in (ImageFolderData, ParquetData, WebDatasetData), target


def options_in(section: Any) -> list[tuple[Callable[..., Any], dict[str, Any]]]:
    """The class of each option that a section holds or is, with its section."""
    if not isinstance(section, dict):
        return []
    inner = [found for value in section.values() for found in options_in(value)]
    return [(pydoc.locate(section["_target_"]), section), *inner] if "_target_" in section else inner


def test_the_root_holds_the_known_sections_and_keys() -> None:
    assert set(SMOKE) == {*SECTIONS, *inspect.signature(RunSettings).parameters}


def test_a_package_directive_is_the_first_line() -> None:
    """Hydra takes it for a comment anywhere else."""
    for path in config_dir().rglob("*.yaml"):
        lines = path.read_text().splitlines()
        assert not any(line.startswith("# @package") for line in lines[1:]), path


def test_recipes_set_keys_of_train_yaml_only() -> None:
    known = set(flatten(OmegaConf.to_container(OmegaConf.load(config_dir() / "train.yaml"))))
    known.add("objectives.clustering.prototypes")  # a size, where that objective exists
    for path in (config_dir() / "recipe").glob("*.yaml"):
        written = flatten(OmegaConf.to_container(OmegaConf.load(path)))
        assert set(written) - {"defaults"} <= known, path


@pytest.mark.parametrize("bundle", ["recipe", "details"])
def test_what_a_bundle_says_to_an_option_are_keys_of_it(bundle: str) -> None:
    """configs/recipe/schedule/demo_cosine.yaml: of recipe=demo to schedule=cosine. Each has its line in train.yaml. To
    refuse an option it says `_target_: null`."""
    mounted = OmegaConf.load(config_dir() / "train.yaml").defaults
    groups = {path.name for path in (config_dir() / bundle).iterdir() if path.is_dir()}
    for group in groups:
        place = {"gram": "objectives.gram"}.get(group, group)
        assert {f"optional {bundle}/{group}@{place}": f"${{{bundle}}}_${{{group}}}"} in mounted
        for path in (config_dir() / bundle / group).glob("*.yaml"):
            name, _, option = path.stem.rpartition("_")
            assert (config_dir() / bundle / f"{name}.yaml").is_file(), path
            keys = flatten(yaml.safe_load((config_dir() / group / f"{option}.yaml").read_text()) or {})
            said = flatten(yaml.safe_load(path.read_text()))
            assert said == {"_target_": None} or said.keys() <= keys.keys(), path


def test_presets_choose_options_only() -> None:
    for path in (config_dir() / "preset").glob("*.yaml"):
        assert set(OmegaConf.load(path)) <= {"defaults"}, path


# --- which choice wins ------------------------------------------------------------------------------------------------


@pytest.fixture
def two_options(tmp_path: Path) -> str:
    """A folder with a second masking option and a preset that takes it; the override that adds the folder."""
    files = {
        "masking/loose.yaml": "_target_: dinoswap.masking.block.BlockMasking\nmin_aspect: 0.9\n",
        "preset/loose.yaml": "# @package _global_\ndefaults:\n  - override /masking: loose\n",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    return f"hydra.searchpath=['file://{tmp_path}']"


@pytest.mark.parametrize(
    ("overrides", "min_aspect"),
    [
        ([], 0.3),
        (["preset=loose"], 0.9),
        (["preset=loose", "masking=block"], 0.3),
        (["masking=block", "preset=loose"], 0.3),
        (["masking=loose"], 0.9),
    ],
)
def test_the_command_line_beats_the_preset(overrides: list[str], min_aspect: float, two_options: str) -> None:
    assert compose_config([two_options, *overrides])["masking"]["min_aspect"] == min_aspect


def test_config_dir_can_be_pointed_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DINOSWAP_CONFIG_DIR", str(tmp_path))
    with pytest.raises(ConfigError, match=f"no train.yaml in {tmp_path}"):
        config_dir()
    (tmp_path / "train.yaml").touch()
    assert config_dir() == tmp_path


# --- golden -----------------------------------------------------------------------------------------------------------


def test_presets_compose_as_before() -> None:
    """Where this fails and the change is meant: python tools/renew_golden.py, and read its difference in git."""
    expected = {path.name: path.read_text() for path in GOLDEN.iterdir()}
    assert golden_configs() == expected
