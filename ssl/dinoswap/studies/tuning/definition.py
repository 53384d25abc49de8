"""A search, ablations/<name>.yaml: over which values of which keys, and for which metric.

    # How large should the learning rate be?
    base: [preset=official, recipe=demo]     overrides of every run; without more it is the default that must be beaten
    space:                                   keys of the config, or groups
      schedule.base_lr: {type: float, low: 1.0e-3, high: 1.0e-1, log: true}
      masking: {type: categorical, choices: [block, bernoulli]}
    objective: eval/knn_top1                 or a list of several, as in [eval/knn_top1, cost.core_or_gpu_hours]
    direction: maximize                      or minimize; one for each objective
    smallest_effect: 0.5                     of the (first) objective, that would matter; may be left out
    trials: 40                               in total, however often the command is started
    workers: 2                               at the same time
    pruner: {type: median, n_startup_trials: 5, n_warmup_steps: 200}   the arguments are those of Optuna's class
    winners: 2                               are run again, and so is the base,
    seeds: [1, 2, 3, 4, 5]                   with these seeds; the search itself runs with seed 0

A mistake is a ConfigError that names the file, the key, the value and the remedy, before anything runs.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, cast

from dinoswap.config.command_line import check_overrides, compose_config
from dinoswap.config.facts import IMAGES, WEIGHTS
from dinoswap.config.identity import identity, is_volatile
from dinoswap.config.measured import require_metric
from dinoswap.config.schema import ConfigError, construct, nearest, require_section
from dinoswap.config.typed_paths import key_of
from dinoswap.run.run_folder import AS_WRITTEN, planned_folder, planned_identity, runs_root
from dinoswap.studies.costs import COSTS
from dinoswap.studies.overrides import NOT_VARIED, Scalar, as_overrides, as_text, combined
from dinoswap.studies.study_file import StudyFile, prefixed_errors, read_file
from dinoswap.studies.tuning.space import Parameter

Direction = Literal["maximize", "minimize"]

PRUNERS = {
    "none": "NopPruner",
    "median": "MedianPruner",
    "percentile": "PercentilePruner",
    "successive_halving": "SuccessiveHalvingPruner",
    "hyperband": "HyperbandPruner",
}
"""Names in a study file -> classes of optuna.pruners."""


@dataclass(frozen=True, kw_only=True)
class Objective:
    """What a search optimises: `name` as in run.json's metrics or one of COSTS, and the direction that is better.

    Raises ConfigError for a name that is not measured, and for a smallest effect that is not above 0.
    """

    name: str
    direction: Direction
    smallest_effect: float | None = None

    def __post_init__(self) -> None:
        require_metric(self.name, f"objective={self.name}", COSTS)
        if self.smallest_effect is not None and not self.smallest_effect > 0:
            raise ConfigError(f"smallest_effect={self.smallest_effect}: must be above 0, in the unit of {self.name}")


@dataclass(frozen=True, kw_only=True)
class Tuning(StudyFile):
    """A search: the parameters that are drawn, the objectives, and how many trials, workers and winners there are."""

    parameters: dict[str, Parameter]
    objectives: list[Objective]
    trials: int
    workers: int
    pruner: dict[str, Any]
    winners: int

    @property
    def folder(self) -> Path:
        """The folder of the search's own files, beside those of its runs."""
        return runs_root(self.config()) / self.name / "tune"

    def overrides(self, values: Mapping[str, Scalar] | None = None, seed: int | None = None) -> list[str]:
        """Returns the overrides of the run with these values, or without any those of the base."""
        chosen = [f"{key}={as_text(value)}" for key, value in (values or {}).items()]
        seeded = [] if seed is None else [f"seed={seed}"]
        return [f"study={as_text(self.name)}", *combined(self.base, chosen, seeded)]

    def config(self, values: Mapping[str, Scalar] | None = None, seed: int | None = None) -> dict[str, Any]:
        """Returns the resolved config of the run with these values. Raises ConfigError for overrides that do not
        compose."""
        config = _composed(tuple(self.overrides(values)))
        return config if seed is None else {**config, "seed": seed}

    def run_folder(self, values: Mapping[str, Scalar] | None = None, seed: int | None = None) -> Path:
        config = self.config(values, seed)
        return runs_root(config) / planned_folder(config)

    def definition(self) -> dict[str, Any]:
        """Returns what cannot change while a search goes on, as it is read back from JSON."""
        content = {
            "base": planned_identity(self.config()),
            "space": {key: asdict(parameter) for key, parameter in self.parameters.items()},
            "objective": {objective.name: objective.direction for objective in self.objectives},
        }
        return cast(dict[str, Any], json.loads(json.dumps(content, default=str)))


def as_begun(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the definition that a search was begun with, `before`, in the form of `now`.

    What only one of the two knows of images and weights, because they are on another machine, counts as equal. A
    definition that still has every key of the config is reduced to what identifies a run.
    """
    base = dict(before["base"])
    if any(key.endswith("._target_") for key in base):
        base = identity(_nested(base))
    kept = {key: value for key, value in base.items() if not _identifies_files(key) or key in now["base"]}
    added = {key: value for key, value in now["base"].items() if _identifies_files(key) and key not in base}
    return {**before, "base": kept | added}


def _identifies_files(key: str) -> bool:
    """Tells whether a key of the identity stands for files, which may be unknown on another machine."""
    return key in (IMAGES, *WEIGHTS) or key.endswith(AS_WRITTEN)


def _nested(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the nested form of flat keys, the inverse of `flatten`."""
    tree: dict[str, Any] = {}
    for key, value in flat.items():
        *above, last = key.split(".")
        section = tree
        for name in above:
            section = section.setdefault(name, {})
        section[last] = value
    return tree


@lru_cache(maxsize=100)
def _composed(overrides: tuple[str, ...]) -> dict[str, Any]:
    """Returns the config of these overrides, in which variables of the environment may be missing."""
    return compose_config(overrides, strict=False)  # a variable may be one that only nodes have


# --- reading ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class _Keys:
    """The keys of a search's file beside those of every study: their names, and their types where these are simple."""

    space: Any
    objective: str | list[str]
    direction: Direction | list[Direction]
    trials: int
    smallest_effect: float | None = None
    workers: int = 1
    pruner: Any = "none"
    winners: int = 1

    def __post_init__(self) -> None:
        for name, least in (("trials", 1), ("workers", 1), ("winners", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name}={getattr(self, name)}: must be at least {least}")


def read_tuning(study: str | Path, overrides: Sequence[str] = ()) -> Tuning:
    """Returns the search of this name or path, with the overrides of the command line. Raises ConfigError for a file or
    an override that is no part of a search."""
    common, extra = read_file(study, overrides)
    with prefixed_errors(common.path):
        if "factors" in extra:
            raise ConfigError(f"`factors` make this an ablation; run `dinoswap-ablate run {common.name}`")
        if common.budget is not None:
            raise ConfigError("budget: a search ends after so many `trials`; remove it")
        keys = construct(_Keys, extra, "")
        tuning = Tuning(
            **vars(common),
            parameters=_parameters(keys.space),
            objectives=_objectives(keys),
            trials=keys.trials,
            workers=keys.workers,
            pruner=_pruner(keys.pruner),
            winners=keys.winners,
        )
        _check(tuning)
    return tuning


def _parameters(space: Any) -> dict[str, Parameter]:
    """Returns the parameters of the section `space` by their keys. Raises ConfigError for an empty section, and for a
    key that is not to be searched over."""
    require_section(space, "space")
    if not space:
        raise ConfigError("space: is empty; give a key of the config with its type, and its bounds or choices")
    for key in space:
        if key in NOT_VARIED:
            raise ConfigError(f"space.{key}: is not searched over; {NOT_VARIED[key]}")
        as_overrides([f"{key}=null"], f"space.{key}")
        if is_volatile(key):
            raise ConfigError(f"space.{key}: does not change what a run learns, so there is nothing to find; remove it")
    return {str(key): construct(Parameter, section, f"space.{key}") for key, section in space.items()}


def _objectives(keys: _Keys) -> list[Objective]:
    """Returns the objectives with their directions; a smallest effect belongs to the first. Raises ConfigError where
    there are none, the same twice, or another number of directions."""
    names: list[str] = _listed(keys.objective)
    directions: list[Direction] = _listed(keys.direction)
    effects = [keys.smallest_effect, *[None] * (len(names) - 1)]
    if not names or len(set(names)) < len(names):
        raise ConfigError(f"objective={names}: must be one metric, or several different ones")
    if len(directions) != len(names):
        raise ConfigError(f"direction={directions}: must have one entry for each objective, {', '.join(names)}")
    triples = zip(names, directions, effects, strict=True)
    return [Objective(name=name, direction=direction, smallest_effect=least) for name, direction, least in triples]


def _listed(value: Any) -> list[Any]:
    """Returns a value as a list: itself, or a list of the one value."""
    return value if isinstance(value, list) else [value]


def _pruner(value: Any) -> dict[str, Any]:
    """Returns the section `pruner`: its `type`, one of PRUNERS, and the arguments of Optuna's class. Raises ConfigError
    for an unknown type."""
    section = {"type": value} if isinstance(value, str) else value
    require_section(section, "pruner")
    kind = section.get("type")
    if kind not in PRUNERS:
        raise ConfigError(f"pruner.type={kind}: must be one of {', '.join(PRUNERS)}.{nearest(str(kind), PRUNERS)}")
    return dict(section)


def _check(tuning: Tuning) -> None:
    """Raises ConfigError for what the composed config does not allow, and for keys that do not fit together."""
    searched, config = tuning.parameters, tuning.config()
    kind = tuning.pruner["type"]
    if kind != "none" and len(tuning.objectives) > 1:
        raise ConfigError(f"pruner={kind}: with several objectives no trial is pruned; remove it")
    if kind != "none" and not config["trainer"]["eval_every"]:
        raise ConfigError(f"pruner={kind}: nothing is measured while a run trains; add trainer.eval_every=... to base")
    if tuning.looks:
        raise ConfigError("seeds.looks: winners are compared once, with all seeds; give their number, as in seeds: 5")
    if tuning.winners and config["seed"] in tuning.seeds:
        fresh = [seed + 1 + max(tuning.seeds) - min(tuning.seeds) for seed in tuning.seeds]
        raise ConfigError(f"seeds={tuning.seeds}: the search has seed {config['seed']}; give others, as in {fresh}")
    if tuning.winners and len(tuning.seeds) < 2:
        raise ConfigError(f"seeds={tuning.seeds}: an interval takes at least two; or set winners: 0")
    swept = [f"{key}={','.join(map(as_text, parameter.examples))}" for key, parameter in searched.items()]
    check_overrides([*(line for line in tuning.overrides() if key_of(line) not in searched), *swept], multirun=True)
