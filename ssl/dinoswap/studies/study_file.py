"""What all files of ablations/ share: the question, the overrides of every run, seeds, budget.

    # Which masking learns best?             the question: the comment that opens the file, up to a bare `#`
    base: [preset=official, recipe=demo]     overrides of every run; of Hydra's keys only those of the launcher
    seeds: 5                                 a count, a list, or {looks: [3, 6, 12]}: see looks.py
    budget: {hours: 2}                       core- or GPU-hours of all runs, or {steps: 40000}; may be left out

The other keys say which kind of study it is: `factors`, `design`, `metrics` an ablation (study.py), `space` one that
Optuna does. On the command line, after the study, an override of a config key is added to `base`; one of a key of the
file, such as seeds=9 or design=factorial, replaces that key.
"""

import re
import shlex
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf

from dinoswap.config.configuration import config_dir
from dinoswap.config.schema import ConfigError, construct, nearest
from dinoswap.config.typed_paths import key_of, refuse_torn_paths
from dinoswap.files.reading import CONFIG_BYTES, read_small
from dinoswap.studies.looks import Looks, read_looks
from dinoswap.studies.overrides import as_overrides, combined, is_hydra_override

COMMON = ("base", "seeds", "budget")
REPLACEABLE = (
    *("seeds", "budget", "design", "metrics", "exclude", "invalid", "runs", "generators", "interactions", "cells"),
    *("objective", "direction", "trials", "workers", "pruner"),
)
"""Keys of a file that the command line may replace. None of them is a key of the config."""


@dataclass(frozen=True, kw_only=True)
class Budget:
    """The most core- or GPU-hours, or training steps, that all runs may take together."""

    hours: float | None = None
    steps: int | None = None

    def __post_init__(self) -> None:
        for name, value in (("hours", self.hours), ("steps", self.steps)):
            if value is not None and value <= 0:
                raise ValueError(f"{name}={value}: must be above 0")


@dataclass(frozen=True, kw_only=True)
class StudyFile:
    """What every study file holds. `base` includes the config keys of `command_line`, and `launcher` what the file and
    the command line set of hydra.launcher."""

    name: str
    path: Path
    question: str
    command_line: list[str]
    base: list[str]
    launcher: list[str] = field(default_factory=list)
    seeds: list[int]
    looks: Looks | None = None  # where the study is analysed more than once
    budget: Budget | None

    @property
    def plan(self) -> Looks:
        """The looks that are planned: one, after all seeds, where the file does not say otherwise."""
        return self.looks or Looks((len(self.seeds),))

    @property
    def arguments(self) -> str:
        """What a command is given, on a shell's line, to mean this study: its name or path, and the overrides."""
        return shlex.join([self.name if self.path.parent.name == "ablations" else str(self.path), *self.command_line])


def read_file(study: str | Path, overrides: Sequence[str] = ()) -> tuple[StudyFile, dict[str, Any]]:
    """Returns the shared part of a study file, checked, and its other keys as they were written. `study` is a name in
    ablations/ or a path, `overrides` are those of the command line. Raises ConfigError for a file that cannot be read,
    and for keys and overrides that it may not hold."""
    path = study_path(study)
    refuse_torn_paths(overrides)
    with prefixed_errors(path):
        if not re.fullmatch(r"\w[\w.+-]*", path.stem):
            raise ConfigError(f"{path.stem}: names the folder of the runs; use letters, digits, '_', '-', '.' and '+'")
        content = _content(path)
        for line in (line for line in overrides if key_of(line) in REPLACEABLE):
            content[key_of(line)] = _value(line)
        for key in ("base", "seeds"):
            if content.get(key) is None:
                raise ConfigError(f"{key}: has to be given; see the other studies in ablations/")
        budget = content.get("budget")
        looks = read_looks(content["seeds"]) if isinstance(content["seeds"], dict) else None
        base = as_overrides(content["base"], "base", launcher=True)
        base = combined(base, as_overrides(config_overrides(overrides), "command line", launcher=True))
        common = StudyFile(
            name=path.stem,
            path=path,
            question=_question(path),
            command_line=combined(overrides),
            base=[line for line in base if not is_hydra_override(line)],
            launcher=[line for line in base if is_hydra_override(line)],
            seeds=_seeds(looks.counts[-1] if looks else content["seeds"]),
            looks=looks,
            budget=None if budget is None else construct(Budget, budget, "budget"),
        )
    return common, {key: value for key, value in content.items() if key not in COMMON}


def study_path(study: str | Path) -> Path:
    """Returns a path as it is, and for a name its file in ablations/ of the working directory, or else of the checkout
    or wheel. Raises ConfigError where there is no such file."""
    path = Path(study)
    folders = [Path("ablations"), config_dir().parent / "ablations"]
    candidates = [path] if path.suffix in (".yaml", ".yml") else [folder / f"{study}.yaml" for folder in folders]
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    known = sorted({file.stem for folder in folders for file in folder.glob("*.yaml")})
    where = f"There are: {', '.join(known)}." if known else "Give the path of its file."
    raise ConfigError(f"{study}: there is no such study.{nearest(path.stem, known)} {where}")


@contextmanager
def prefixed_errors(path: Path) -> Iterator[None]:
    """Puts the file's path before the message of every ConfigError that is raised within."""
    try:
        yield
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


def config_overrides(overrides: Iterable[str]) -> list[str]:
    """Returns the overrides that set keys of the runs' config, not of the study file."""
    return [line for line in overrides if key_of(line) not in REPLACEABLE]


def _content(path: Path) -> dict[str, Any]:
    """Returns the keys of a study file. OmegaConf refuses a key that is given twice, where plain YAML would keep the
    last. Raises ConfigError for what cannot be read."""
    try:
        read_small(path, CONFIG_BYTES)  # a regular file of a sensible size
        content = OmegaConf.to_container(OmegaConf.load(path))
    except Exception as error:  # YAML's constructors raise what they like
        raise ConfigError(f"cannot be read as YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise ConfigError("must hold keys; see the other studies in ablations/")
    return {str(key): value for key, value in content.items()}


def _value(override: str) -> Any:
    """Returns the value of an override, read as YAML. Raises ConfigError where it is none."""
    try:
        return yaml.safe_load(override.partition("=")[2])
    except Exception as error:
        raise ConfigError(f"{override}: the value cannot be read as YAML: {' '.join(str(error).split())}") from error


def _question(path: Path) -> str:
    """Returns the first paragraph of the comment at the head of the file. Raises ConfigError where there is none."""
    words: list[str] = []
    for line in path.read_text().splitlines():
        text = line.removeprefix("#").strip()
        if not line.startswith("#") or not text:
            break
        words.append(text)
    if not words:
        raise ConfigError("begin the file with a comment that asks the question, as in `# Which masking learns best?`")
    return " ".join(words)


def _seeds(value: Any) -> list[int]:
    """Returns the seeds of a study, which are given as a list or by their number. Raises ConfigError for anything
    else."""
    seeds = list(range(value)) if type(value) is int else value
    valid = isinstance(seeds, list) and all(type(seed) is int and seed >= 0 for seed in seeds)
    if not (valid and seeds and len(set(seeds)) == len(seeds)):
        raise ConfigError(
            f"seeds={value}: must be a count of at least 1, or a list of different whole numbers from 0 on"
        )
    return list(seeds)
