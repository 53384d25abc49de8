"""configs/identity.json: the value that every key had when it was introduced. `make golden` appends what is new.

An entry is never changed: a default that changes is a change of every run that has it, and its runs are others.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from dinoswap.config.configuration import VERSION_BASE, config_dir, flatten, plain
from dinoswap.config.identity import ROOT, Known, described

BUNDLES = ("recipe", "preset", "details")
"""Groups that set keys of others and have none of their own."""
ABSENT = ("none", "disabled")
NAME = "identity.json"

Values = dict[str, dict[str, Any]]


def present(configs: Path | None = None) -> Values:
    """Returns the defaults of the configs as they are now: keys of train.yaml, whatever the default recipe makes of
    them; the option at every place, those included that are mounted into another one; the keys of every option."""
    folder = configs or config_dir()
    written = {key: value for key, value in _load(folder / "train.yaml").items() if key not in ("defaults", "hydra")}
    root = {key: value for key, value in flatten(written).items() if not key.endswith("._target_")}
    with initialize_config_dir(str(folder), version_base=VERSION_BASE):
        for choice in _composed(folder):
            for leaf in described(plain(compose("train", choice))):
                if leaf.is_option:
                    root.setdefault(leaf.key, leaf.value)
    return {ROOT: root, **_options(folder)}


def appended(known: Known, now: Known) -> Values:
    """Returns what is known, and after it what is new."""
    return {name: {**now.get(name, {}), **known.get(name, {})} for name in {**known, **now}}


def as_text(values: Known) -> str:
    """Returns a line of JSON for each key, sorted, so that git shows what is new."""
    return json.dumps(values, indent=1, sort_keys=True) + "\n"


def _composed(folder: Path) -> Iterator[list[str]]:
    """Yields the default choice, and each option that has to be composed to see what is mounted into its section."""
    chosen = compose("train", return_hydra_config=True).hydra.runtime.choices
    yield []
    for path in _files(folder):
        group, option = path.parent.name, path.stem
        if option not in ABSENT and (chosen.get(group) in ABSENT or "defaults" in _load(path)):
            yield [f"{group}={option}"]


def _options(folder: Path) -> Values:
    """Returns the keys of each option's own YAML by the name of its class: of sinkhorn and sinkhorn_5 the former's."""
    defaults: Values = {}
    for option in map(_load, _files(folder)):
        if "_target_" in option:
            values = {key: value for key, value in flatten(option).items() if key not in ("_target_", "defaults")}
            defaults.setdefault(str(option["_target_"]).rpartition(".")[2], values)
    return defaults


def _files(folder: Path) -> list[Path]:
    """Returns the YAML files of all options but those of bundles and of Hydra."""
    return sorted(path for path in folder.glob("*/*.yaml") if path.parent.name not in (*BUNDLES, "hydra"))


def _load(path: Path) -> dict[str, Any]:
    """Returns the content of a YAML file, without resolving interpolations."""
    return cast(dict[str, Any], OmegaConf.to_container(OmegaConf.load(path)))
