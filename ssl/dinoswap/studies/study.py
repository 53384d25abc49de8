"""An ablation, ablations/<name>.yaml: what is varied, from where, and what is asked of the result.

    # Which masking learns best?
    base: [preset=official, recipe=demo]
    factors:                                 what is varied; the first level of each is the reference
      masking: [block, bernoulli]            options, or values, of the group or key that the factor is called after
      head:                                  or the overrides of each level
        two: []
        one: [objectives.ibot.head=dino_head]
    design: one_at_a_time                    leave_one_out, factorial, fractional, explicit: see design.py
    seeds: 5
    metrics: {eval/knn_top1: 0.5}            the first decides; with each the smallest difference that would matter

`base`, `seeds`, `budget` and what the command line may change: study_file.py. May be left out: `exclude`, cells that
are not wanted, as in [{masking: bernoulli, head: one}]; `invalid: drop`, to leave out cells that the trainer refuses,
which are an error otherwise; `runs`, `generators`, `interactions` of design=fractional. `cells` of design=explicit are
name -> {factor: level}, where a factor that is not named is at its reference.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from dinoswap.config.measured import require_metric, score_of
from dinoswap.config.schema import ConfigError, construct, nearest, require_section
from dinoswap.config.typed_paths import key_of
from dinoswap.studies.costs import COSTS
from dinoswap.studies.overrides import as_overrides, as_text, combined
from dinoswap.studies.study_file import StudyFile, config_overrides, prefixed_errors, read_file

Kind = Literal["one_at_a_time", "leave_one_out", "factorial", "fractional", "explicit"]
Factors = dict[str, dict[str, list[str]]]
"""Factor -> level -> overrides."""
Levels = dict[str, str]
"""Factor -> its level in one cell."""

ONLY_OF = {"runs": "fractional", "generators": "fractional", "interactions": "fractional", "cells": "explicit"}


@dataclass(frozen=True, kw_only=True)
class Metric:
    """A metric of a study: `name` as in run.json's metrics, or a cost that is a column of `load_runs`. Differences
    below `smallest_effect`, in the metric's unit, do not matter."""

    name: str
    smallest_effect: float
    higher_is_better: bool = True

    def __post_init__(self) -> None:
        if not self.smallest_effect > 0:
            raise ValueError(f"smallest_effect={self.smallest_effect}: must be above 0, in the unit of the metric")

    @property
    def column(self) -> str:
        """The column of `load_runs` that holds the metric."""
        return self.name if self.name in COSTS else f"metric.{self.name}"


@dataclass(frozen=True, kw_only=True)
class Study(StudyFile):
    """An ablation. The first level of a factor is its reference, the first metric the one that decides. A cell is
    excluded when its level is listed for every factor of an entry of `exclude`. `generators`: factor -> those it is a
    product of."""

    factors: Factors
    design: Kind
    metrics: list[Metric]
    exclude: list[dict[str, list[str]]]
    invalid: Literal["error", "drop"]
    runs: int | None
    generators: dict[str, list[str]]
    interactions: bool
    cells: dict[str, Levels]

    @property
    def reference(self) -> Levels:
        """The first level of every factor."""
        return {factor: next(iter(levels)) for factor, levels in self.factors.items()}

    def overrides(self, levels: Mapping[str, str]) -> list[str]:
        """Returns the overrides of the runs with these levels, except for `seed` and `study`."""
        return combined(self.base, *(self.factors[factor][level] for factor, level in levels.items()))


@dataclass(frozen=True, kw_only=True)
class _Keys:
    """The keys of an ablation's file beside those of every study: their names, and their types where these are
    simple."""

    factors: Any
    design: Kind
    metrics: Any
    exclude: list[Any] | None = None
    invalid: Literal["error", "drop"] = "error"
    runs: int | None = None
    generators: Any = None
    interactions: bool = False
    cells: Any = None

    def __post_init__(self) -> None:
        if self.runs is not None and self.runs < 2:
            raise ValueError(f"runs={self.runs}: must be at least 2, the number of cells")


def read_study(study: str | Path, overrides: Sequence[str] = ()) -> Study:
    """Returns the ablation of this name or path, with the overrides of the command line. Raises ConfigError for a file
    or an override that is no part of an ablation."""
    common, extra = read_file(study, overrides)
    with prefixed_errors(common.path):
        if "space" in extra:
            raise ConfigError(f"`space` makes this an Optuna study; run `dinoswap-tune {common.name}`")
        keys = construct(_Keys, extra, "")
        for key, design in ONLY_OF.items():
            if key in extra and keys.design != design:
                raise ConfigError(
                    f"{key}={extra[key]}: belongs to design={design}; remove it from design={keys.design}"
                )
        factors = _factors(keys.factors)
        _check_unvaried(config_overrides(overrides), factors)
        return Study(
            **vars(common),
            factors=factors,
            design=keys.design,
            metrics=_metrics(keys.metrics),
            exclude=[_levels_of(cell, factors, f"exclude[{index}]") for index, cell in enumerate(keys.exclude or [])],
            invalid=keys.invalid,
            runs=keys.runs,
            generators=_generators(keys.generators, factors),
            interactions=keys.interactions,
            cells=_cells(keys.cells, factors) if keys.design == "explicit" else {},
        )


# --- factors ----------------------------------------------------------------------------------------------------------


def _factors(section: Any) -> Factors:
    """Returns the levels of each factor in the section `factors`. Raises ConfigError where there is none, and where two
    factors set the same key."""
    require_section(section, "factors")
    factors = {str(factor): _levels(str(factor), levels) for factor, levels in section.items()}
    if not factors:
        raise ConfigError("factors: none is named; a study varies at least one")
    owners: dict[str, str] = {}
    for factor, levels in factors.items():
        for key in _keys_of(levels):
            if key in owners:
                raise ConfigError(
                    f"factors.{factor}: the factor {owners[key]} sets {key} as well; make one factor of the two"
                )
            owners[key] = factor
    return factors


def _levels(factor: str, section: Any) -> dict[str, list[str]]:
    """Returns the overrides of each level of a factor, which is a list of options or has levels by name. Raises
    ConfigError where there are not two different levels."""
    key = f"factors.{factor}"
    if isinstance(section, list):
        levels = {_text(value): as_overrides([f"{factor}={as_text(value)}"], key) for value in section}
    elif isinstance(section, Mapping):
        for name in section:
            if isinstance(name, bool):
                raise ConfigError(f"{key}: YAML reads a level called on, off, yes or no as {name}; put it in quotes")
        levels = {_text(name): as_overrides(lines, f"{key}.{name}") for name, lines in section.items()}
    else:
        raise ConfigError(f"{key}={section}: must be a list of options, or levels with the overrides of each")
    if len(levels) < max(len(section), 2):
        raise ConfigError(f"{key}={section}: must have at least two levels, all different")
    return levels


def _keys_of(levels: Mapping[str, list[str]]) -> list[str]:
    """Returns the config keys that the levels of a factor set."""
    return list(dict.fromkeys(key_of(line) for lines in levels.values() for line in lines))


def _text(value: Any) -> str:
    """Returns the name of a level: its YAML scalar, as it is written there."""
    return value if isinstance(value, str) else as_text(value)


def _check_unvaried(overrides: Sequence[str], factors: Factors) -> None:
    """Raises ConfigError for an override of what a factor varies: all its levels would be the same."""
    for factor, levels in factors.items():
        for line in overrides:
            if key_of(line) in _keys_of(levels):
                raise ConfigError(f"{line}: the study varies this (factor {factor}); leave it out, or copy the file")


def _levels_of(section: Any, factors: Factors, key: str) -> dict[str, list[str]]:
    """Returns factor -> levels of a partial cell, where a factor has one level or a list of them. Raises ConfigError
    for unknown factors and levels."""
    require_section(section, key)
    selected = {}
    for factor, value in section.items():
        _check_known(factor, factors, f"{key}.{factor}", "factor")
        selected[factor] = [_text(level) for level in (value if isinstance(value, list) else [value])]
        for level in selected[factor]:
            _check_known(level, factors[factor], f"{key}.{factor}={level}", f"level of {factor}")
    return selected


def _cells(section: Any, factors: Factors) -> dict[str, Levels]:
    """Returns the levels of each cell in the section `cells`, in which factors that are not named have their first
    level. Raises ConfigError where there is none."""
    require_section(section, "cells")
    cells = {}
    for name, levels in section.items():
        cells[str(name)] = {factor: next(iter(options)) for factor, options in factors.items()}
        for factor, chosen in _levels_of(levels or {}, factors, f"cells.{name}").items():
            if len(chosen) > 1:
                raise ConfigError(f"cells.{name}.{factor}={chosen}: a cell has one level of a factor")
            cells[str(name)][factor] = chosen[0]
    if not cells:
        raise ConfigError(
            "cells: none is named; design=explicit runs those that are, as in {both: {masking: bernoulli}}"
        )
    return cells


def _generators(section: Any, factors: Factors) -> dict[str, list[str]]:
    """Returns the factors whose product each generated factor is. Raises ConfigError for a factor that does not
    exist."""
    if section is None:
        return {}
    require_section(section, "generators")
    for factor, parents in section.items():
        if not isinstance(parents, list):
            raise ConfigError(
                f"generators.{factor}={parents}: must be the list of the factors that it is the product of"
            )
        for name in (factor, *parents):
            _check_known(name, factors, f"generators.{factor}={parents}", "factor")
    return {str(factor): list(parents) for factor, parents in section.items()}


def _check_known(name: Any, known: Iterable[str], key: str, what: str) -> None:
    """Raises ConfigError for a name that is not `known`, with the one nearest to it; `what` is what it would name."""
    known = list(known)
    if name not in known:
        raise ConfigError(f"{key}: there is no {what} '{name}'.{nearest(str(name), known)} Known: {', '.join(known)}.")


# --- metrics ----------------------------------------------------------------------------------------------------------


def _metrics(section: Any) -> list[Metric]:
    """Returns the metrics in the section `metrics`, the deciding one first. Raises ConfigError where there is none, and
    for one that is not measured."""
    require_section(section, "metrics")
    metrics = []
    for name, value in section.items():
        require_metric(str(name), f"metrics.{name}", COSTS)
        given = value if isinstance(value, Mapping) else {"smallest_effect": value}
        better = {"higher_is_better": not name.startswith("cost.") and score_of(name).better != "lower"}
        metrics.append(construct(Metric, better | dict(given), f"metrics.{name}", name=name))
    if not metrics:
        raise ConfigError("metrics: none is named; the first decides, as in {eval/knn_top1: 0.5}")
    return metrics
