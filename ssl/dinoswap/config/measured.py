"""Knows which metrics a run measures, by asking the families of the group `metric`. Nothing here imports torch.

The full name of a metric is `eval/<name>`. Besides those of families there are the diagnostics of objectives,
`eval/<objective>/<diagnostic>`, whose names are known once a run has measured them.
"""

import functools
import inspect
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, cast

import yaml

from dinoswap.config.configuration import config_dir
from dinoswap.config.errors import ConfigError
from dinoswap.config.guests import guests
from dinoswap.config.schema import construct_option, nearest, option_class
from dinoswap.config.sections import JUDGED_ON
from dinoswap.metric.base import Metric, Score

GROUP = "metric"
OF_AN_OBJECTIVE = re.compile(r"eval/\w+/\w+")


def sections() -> Mapping[str, Mapping[str, Any]]:
    """Returns the section of every option of the group `metric`, those of installed packages included."""
    return _sections((config_dir(), *(guest.configs for guest in guests())))


@functools.cache
def _sections(folders: tuple[Path, ...]) -> Mapping[str, Mapping[str, Any]]:
    """Returns the section of each metric in these folders of configs, by the name of its option."""
    paths = [path for folder in folders for path in sorted((folder / GROUP).glob("*.yaml"))]
    return {path.stem: yaml.safe_load(path.read_text()) for path in paths}


def families() -> Mapping[str, type[Metric]]:
    """Returns the class of every option of the group `metric`."""
    return {family: option_class(section, f"evaluation.metric.{family}") for family, section in sections().items()}


def _described(name: str) -> str:
    """Returns the name under which a family describes `eval/<name>`: what is before a slash in <name>."""
    return name.removeprefix("eval/").partition("/")[0]


def family_of(name: str) -> str:
    """Returns the family that gives the metric `eval/<name>`, "" where none does."""
    short = _described(name)
    return next((family for family, metric in families().items() if short in metric.scores), "")


def score_of(name: str) -> Score:
    """Returns the description of a metric. The diagnostic of an objective is taken to be better when it is higher."""
    family = family_of(name)
    return families()[family].scores[_described(name)] if family else Score("higher")


def needs_labels(name: str) -> bool:
    """Tells whether a metric compares labelled images."""
    family = family_of(name)
    return bool(family) and families()[family].supervised


def names() -> list[str]:
    """Returns the full names of all metrics of families that are better when they are higher, or lower."""
    scores = [entry for metric in families().values() for entry in metric.scores.items()]
    return [f"eval/{name}" for name, score in scores if score.better]


def require_metric(name: str, key: str, others: Iterable[str] = ()) -> None:
    """Raises ConfigError, which begins with `key`, when nothing of this name is measured. `others` are names of what a
    run has beside its metrics."""
    known = [*names(), *others]
    if name not in known and not OF_AN_OBJECTIVE.fullmatch(name):
        raise ConfigError(f"{key}: nothing of this name is measured.{nearest(name, known)} Known: {', '.join(known)}.")


def obstacle(cfg: Mapping[str, Any], name: str) -> str:
    """Returns what would have to be set for a run of this config to measure the metric, "" where it does."""
    family, evaluation = family_of(name), cfg["evaluation"]
    if not family:
        return ""
    if family not in evaluation["metric"]:
        return f"metric=[{','.join([*evaluation['metric'], family])}]"
    return _built(evaluation, family).obstacle(evaluation)


def build_metrics(cfg: Mapping[str, Any]) -> dict[str, Metric]:
    """Returns the families that a run of this config measures, by name. Raises ConfigError for a wrong section."""
    evaluation = cfg["evaluation"]
    built = {family: _built(evaluation, family) for family in evaluation["metric"]}
    return {family: metric for family, metric in built.items() if not metric.obstacle(evaluation)}


def _built(evaluation: Mapping[str, Any], family: str) -> Metric:
    """Returns a family. One that takes an argument of the name of an option in `evaluation`, such as `dense`, gets that
    option."""
    section, key = evaluation["metric"][family], f"evaluation.metric.{family}"
    parameters = inspect.signature(option_class(section, key)).parameters
    parts = {name: construct_option(evaluation[name], f"evaluation.{name}") for name in JUDGED_ON if name in parameters}
    return cast(Metric, construct_option(section, key, **parts))
