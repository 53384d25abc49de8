"""The cells of a study: which combinations of levels are run, each composed, checked and given its run id.

- one_at_a_time: the reference (every factor at its first level), and each other level of each factor by itself.
- leave_one_out: every factor at its last level, and each other level of each factor by itself.
- factorial: every combination.
- fractional: a regular fraction where every factor has two levels and all its cells are valid (fraction.py), otherwise
  a D-optimal choice of `runs` valid cells (optimal.py); the notes say which.
- explicit: the cells that the file names.

Cells that `exclude` describes are left out. Cells that cannot be composed or that no run can be built of are an error,
or with `invalid: drop` left out too. Cells of one run id are one run: the first stays. The first cell is what
the others are compared with.
"""

import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from dinoswap.config.measured import obstacle
from dinoswap.config.schema import ConfigError, nearest
from dinoswap.run.run_folder import planned_id
from dinoswap.studies import optimal
from dinoswap.studies.composer import Composer
from dinoswap.studies.fraction import Fraction, choose_fraction
from dinoswap.studies.study import Levels, Study
from dinoswap.studies.study_file import prefixed_errors

MOST_CELLS = 1024
"""The most cells that one study may have: only a few are composed per second."""


@dataclass(frozen=True)
class Cell:
    """One arm of a study: its level of each factor, and the overrides (except `seed` and `study`) and config of its
    runs."""

    name: str
    levels: Mapping[str, str]
    overrides: tuple[str, ...] = ()
    run_id: str = ""
    config: Mapping[str, Any] = field(default_factory=dict, repr=False, compare=False)


@dataclass(frozen=True)
class Design:
    """The cells of a study. `notes` say how they were chosen and which were left out, with the alias table of a
    fraction."""

    cells: list[Cell]
    notes: list[str]
    fraction: Fraction | None = None

    @property
    def reference(self) -> Cell:
        """The first cell, with which the others are compared."""
        return self.cells[0]

    def cell(self, name: str) -> Cell:
        """Returns the cell of this name. Raises ConfigError where there is none."""
        cells = {cell.name: cell for cell in self.cells}
        if name not in cells:
            raise ConfigError(f"{name}: there is no such cell.{nearest(name, cells)} Known: {', '.join(cells)}.")
        return cells[name]


def cells(study: Study, *, check: bool = True) -> list[Cell]:
    """Returns the cells of the study's design. Raises ConfigError as `make_design` does."""
    return make_design(study, check=check).cells


def make_design(study: Study, *, check: bool = True) -> Design:
    """Chooses and composes the cells of a study.

    Without `check` they are only composed, which does not import torch; with `invalid: drop` the check decides which
    cells there are, and is always made. Raises ConfigError for overrides that do not exist and for refused cells.
    """
    with prefixed_errors(study.path):
        composer = Composer(check or study.invalid == "drop")
        if study.design == "fractional":
            design = _fractional(study, composer)
        else:
            candidates = CANDIDATES[study.design](study)
            valid, notes = _valid(study, candidates, composer)
            if study.design in ("one_at_a_time", "leave_one_out") and valid[0].name != next(iter(candidates)):
                raise ConfigError(
                    f"exclude: {next(iter(candidates))} is excluded or refused, and all others differ from it"
                )
            design = Design(valid, notes)
        _check_metrics(study, design.cells)
        return design


# --- combinations -----------------------------------------------------------------------------------------------------


def _one_at_a_time(study: Study) -> dict[str, Levels]:
    """Returns the reference and, for each level of each factor, the reference with this level alone changed, by
    name."""
    return _named(study, _star(study, study.reference))


def _leave_one_out(study: Study) -> dict[str, Levels]:
    """Returns the cell with the last level of every factor and, for each other level, that cell with this level alone
    changed, by name."""
    full = {factor: list(levels)[-1] for factor, levels in study.factors.items()}
    cells = {"all": full}
    for cell in _star(study, full)[1:]:
        ((factor, level),) = cell.items() - full.items()
        back = level == study.reference[factor]
        cells[f"all but {factor}" if back else f"all, {factor}={level}"] = cell
    return cells


def _factorial(study: Study) -> dict[str, Levels]:
    """Returns all combinations of levels, by name. Raises ConfigError where there are more than MOST_CELLS."""
    count = math.prod(len(levels) for levels in study.factors.values())
    if count > MOST_CELLS:
        raise ConfigError(f"factors: {count} combinations, of {MOST_CELLS} at most; split the study, or name cells")
    combinations = itertools.product(*study.factors.values())
    return _named(study, [dict(zip(study.factors, levels, strict=True)) for levels in combinations])


def _star(study: Study, centre: Levels) -> list[Levels]:
    """Returns the centre, and every combination that differs from it by one level."""
    arms = [(factor, level) for factor, levels in study.factors.items() for level in levels if level != centre[factor]]
    return [centre, *(centre | {factor: level} for factor, level in arms)]


def _named(study: Study, combinations: Iterable[Levels]) -> dict[str, Levels]:
    """Names each combination by the levels in which it differs from the reference."""
    named = {}
    for levels in combinations:
        changed = [f"{factor}={level}" for factor, level in levels.items() if level != study.reference[factor]]
        named[", ".join(changed) or "reference"] = levels
    return named


CANDIDATES: Mapping[str, Callable[[Study], dict[str, Levels]]] = {
    "one_at_a_time": _one_at_a_time,
    "leave_one_out": _leave_one_out,
    "factorial": _factorial,
    "explicit": lambda study: study.cells,
}


# --- fractions --------------------------------------------------------------------------------------------------------


def _fractional(study: Study, composer: Composer) -> Design:
    """Returns a regular fraction of the factorial design where there is one whose cells can all be run, and otherwise
    the D-optimal choice among the cells that can. Raises ConfigError where the fraction of given generators has cells
    that cannot be run, and where the number of cells is not known."""
    fraction = _regular(study)
    if fraction is not None:
        candidates = _named(study, _from_rows(study, fraction.rows()))
        valid, notes = _valid(study, candidates, composer)
        if len(valid) == len(candidates):
            return Design(valid, [*fraction.describe(), *notes], fraction)
        if study.generators:
            raise ConfigError(f"generators: {'; '.join(notes)}; without generators the best valid cells are chosen")
    runs = study.runs or (fraction.runs if fraction else None)
    if runs is None:
        raise ConfigError("runs: has to be given where a factor has more than two levels: the number of cells")
    valid, notes = _valid(study, _factorial(study), composer)
    sizes = [len(levels) for levels in study.factors.values()]
    rows = [[list(study.factors[factor]).index(level) for factor, level in cell.levels.items()] for cell in valid]
    x, _ = optimal.model_matrix(rows, sizes, optimal.effects(len(sizes), study.interactions))
    chosen = optimal.d_optimal(x, runs)
    description = optimal.describe([rows[index] for index in chosen], list(study.factors), sizes, study.interactions)
    description[0] += f", chosen of {len(valid)} valid ones"
    return Design([valid[index] for index in chosen], [*description, *notes])


def _regular(study: Study) -> Fraction | None:
    """Returns the regular fraction, or None where there is none: more than two levels, or runs that are no power of
    two."""
    two_levels = all(len(levels) == 2 for levels in study.factors.values())
    if study.generators and not two_levels:
        raise ConfigError("generators: only a factor of two levels can be a product; remove them, and give `runs`")
    if not two_levels or (study.runs and study.runs & (study.runs - 1)):
        return None
    return choose_fraction(list(study.factors), study.runs, study.generators, study.interactions)


def _from_rows(study: Study, rows: Iterable[Sequence[int]]) -> list[Levels]:
    """Translates rows of level numbers, one per factor, into the names of the levels."""
    named = [(factor, list(levels)) for factor, levels in study.factors.items()]
    return [{factor: levels[number] for (factor, levels), number in zip(named, row, strict=True)} for row in rows]


# --- validity ---------------------------------------------------------------------------------------------------------


def _valid(study: Study, candidates: Mapping[str, Levels], composer: Composer) -> tuple[list[Cell], list[str]]:
    """Returns the cells that can be run, each run id once, and notes on the others. Raises ConfigError as `_refuse`
    does, and where no cell is left."""
    kept = {name: levels for name, levels in candidates.items() if not _excluded(levels, study.exclude)}
    excluded = len(candidates) - len(kept)
    notes = [f"{excluded} of {len(candidates)} cells are excluded by the study"] if excluded else []
    valid: dict[str, Cell] = {}
    refused: dict[str, ConfigError] = {}
    for name, levels in kept.items():
        overrides = study.overrides(levels)
        try:
            config = composer(overrides)
        except ConfigError as error:
            refused[name] = error
            continue
        cell = Cell(name, levels, tuple(overrides), planned_id(config), config)
        first = valid.setdefault(cell.run_id, cell)
        if first is not cell:
            notes.append(f"{name}: the same run as {first.name}, and run once")
    if refused:
        _refuse(study, refused, kept, list(valid.values()))
    if not valid:
        raise ConfigError("exclude: no cell is left")
    notes += [f"{name}: left out: {error}" for name, error in refused.items()]
    return list(valid.values()), notes


def _excluded(levels: Levels, exclude: Iterable[Mapping[str, Sequence[str]]]) -> bool:
    """Tells whether an entry of `exclude` has a level of the cell for each factor that it names."""
    return any(all(levels[factor] in some for factor, some in entry.items()) for entry in exclude)


def _refuse(study: Study, refused: Mapping[str, ConfigError], kept: Mapping[str, Levels], valid: list[Cell]) -> None:
    """Raises ConfigError unless the study leaves refused cells out and loses no level by it: a level that no cell
    accepts is a mistake."""
    name, error = next(iter(refused.items()))
    if study.invalid == "error":
        count = f"{len(refused)} of {len(kept)} cells cannot be run"
        raise ConfigError(
            f"cell '{name}': {error}; {count}: correct them, or leave them out by `exclude` or `invalid: drop`"
        )
    lost = {pair for other in refused for pair in kept[other].items()} - {
        pair for cell in valid for pair in cell.levels.items()
    }
    for name, error in refused.items():
        for factor, level in kept[name].items():
            if (factor, level) in lost:
                raise ConfigError(f"factors.{factor}.{level}: every cell with it is refused, as '{name}': {error}")


def _check_metrics(study: Study, cells: Iterable[Cell]) -> None:
    """Raises ConfigError for a metric that a cell would not measure."""
    for cell in cells:
        for metric in study.metrics:
            if needed := obstacle(cell.config, metric.name):
                raise ConfigError(f"metrics.{metric.name}: needs {needed} in `base`")
