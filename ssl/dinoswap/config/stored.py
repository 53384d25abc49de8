"""Reads the config.yaml of a run, which an older version may have written, before some of today's keys existed.

What such a run did is what each of these keys was introduced with, which `configs/identity.json` says (identity.py).
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from dinoswap.config.command_line import compose_config
from dinoswap.config.configuration import config_dir, plain
from dinoswap.config.identity import ROOT, Known, class_name, defaults
from dinoswap.config.moved import MOVED, RETIRED
from dinoswap.config.schema import ConfigError, full_key, require_section
from dinoswap.config.sections import OF_METRICS, SECTIONS

LATER_SECTIONS = ("position", "resolution", "start", "tracker", "stream_seeds")
"""Sections, most of them of groups, whose default is what all runs did before there was the section."""


def read_config(path: Path) -> dict[str, Any]:
    """Returns the content of a config.yaml with all keys of today. Raises ConfigError for a file that is damaged or no
    config of a run, and OSError for one that cannot be read."""
    try:
        loaded = OmegaConf.load(path)
        if not isinstance(loaded, DictConfig):
            raise ConfigError("holds no keys")
        config = plain(loaded)
        config = with_later_groups(with_todays_places(config))
        for section in SECTIONS:
            require_section(config.get(section), section)
    except (yaml.YAMLError, OmegaConfBaseException, ConfigError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigError(
            f"{path}: is not the config of a run, or is damaged: {' '.join(str(error).split())}; the run's command "
            "writes it again"
        ) from error
    return completed(config, defaults(config_dir() / "identity.json"))


def with_todays_places(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a stored config with the keys that have moved at their place of today."""
    config, trainer = dict(config), config.get("trainer")
    if isinstance(trainer, Mapping) and "tensorboard" in trainer:
        config["trainer"] = {key: value for key, value in trainer.items() if key != "tensorboard"}
        config |= {} if trainer["tensorboard"] else {"tracker": {}}
    da3 = config.get("da3")
    if not isinstance(da3, Mapping) or "backend" not in da3:
        return config
    section = yaml.safe_load((config_dir() / "teacher" / f"{da3['backend']}.yaml").read_text())
    section |= {key: da3[key] for key in section if f"da3.{key}" in MOVED and key in da3}
    others = {key: value for key, value in da3.items() if f"da3.{key}" not in MOVED}
    return {**config, "da3": {**others, "teacher": section}}


def with_later_groups(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a config with the default of each section that it is older than: what was no choice at first."""
    evaluation, schedule = config.get("evaluation"), config.get("schedule")
    lacks_metric = isinstance(evaluation, Mapping) and not set(OF_METRICS) <= set(evaluation)
    lacks_target = isinstance(schedule, Mapping) and "_target_" not in schedule
    if set(LATER_SECTIONS) <= set(config) and not (lacks_metric or lacks_target):
        return dict(config)
    today = compose_config()
    older = {**{section: today[section] for section in LATER_SECTIONS}, **config}
    if isinstance(evaluation, Mapping):
        older["evaluation"] = {**{group: today["evaluation"][group] for group in OF_METRICS}, **evaluation}
    if isinstance(schedule, Mapping):
        older["schedule"] = {"_target_": today["schedule"]["_target_"], **schedule}
    return older


def completed(
    section: Mapping[str, Any],
    known: Known,
    place: str = "",
    owner: str = ROOT,
    prefix: str = "",
    of_another_class: bool = False,
) -> dict[str, Any]:
    """Returns a config, or the section of one at `place`, with the keys that it lacks, each with the value that it was
    introduced with. `owner` and `prefix` are those of `identity.described`. Options and the sections of the root are
    not added. `of_another_class` tells whether the section belongs to another class than train.yaml's."""
    if "_target_" in section:
        owner, prefix = class_name(section), ""
        of_one_class = place == "schedule" or place.startswith("objectives.")  # whose keys stood in train.yaml
        of_another_class = of_one_class and known[ROOT].get(place) != owner
    introduced = {} if of_another_class else {key: value for key, value in known[ROOT].items() if is_value(key, known)}
    own = known.get(owner, {}) if owner else {}
    complete = dict(section)
    if place:
        lacking = _sections_below(place, introduced) | (_sections_below(prefix, own) if owner else set())
        complete = {name: {} for name in sorted(lacking) if full_key(place, name) not in known[ROOT]} | complete
    for name, value in complete.items():
        if isinstance(value, Mapping):
            inner = full_key(place, name), owner, full_key(prefix, name)
            complete[name] = completed(value, known, *inner, of_another_class)
    values = _directly_below(place, introduced) | (_directly_below(prefix, own) if owner else {})
    return {name: value for name, value in values.items() if full_key(place, name) not in (*MOVED, *RETIRED)} | complete


def is_value(key: str, known: Known) -> bool:
    """Tells whether identity.json holds the value of a full key, rather than the class of an option, or None for no
    option: those of groups, of objectives, and of groups that are mounted elsewhere."""
    value = known[ROOT][key]
    mounted = isinstance(value, str) and value in known
    return not (key in SECTIONS or key.rpartition(".")[0] == "objectives" or mounted or isinstance(value, dict))


def _directly_below(place: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the keys of the section at `place` itself, not those of sections in it."""
    parts = {key: key.rpartition(".") for key in values}
    return {name: values[key] for key, (section, _, name) in parts.items() if section == place}


def _sections_below(place: str, values: Mapping[str, Any]) -> set[str]:
    """Returns the names of the sections in the section at `place`."""
    start = f"{place}." if place else ""
    rest = (key.removeprefix(start) for key in values if key.startswith(start))
    return {name for name, dot, _ in (key.partition(".") for key in rest) if dot}
