"""From the command line to a checked configuration: where configs live, what a run is called, what is refused and how.

The signature of the class that an option names is its schema: names and types are checked against it here, ranges by the
class itself. All of it happens before data is touched.
"""

import difflib
import hashlib
import importlib
import inspect
import json
import os
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar, Union

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf

VERSION_BASE = "1.3"

T = TypeVar("T")

# What cannot change the result, and so is neither in a run's name nor compared at a resume.
VOLATILE = (
    "seed",
    "study",
    "results_dir",
    "objective_metric",
    "data.workers",
    "data.path",
    "data.eval_path",
    "trainer.device",
    "trainer.log_every",
    "trainer.eval_every",
    "trainer.checkpoint_every",
    "trainer.checkpoint_minutes",
    "trainer.keep_checkpoints",
    "trainer.tensorboard",
)


class ConfigError(ValueError):
    """What a user has to change: the key, the value and the remedy."""


def config_dir() -> Path:
    """DINOSWAP_CONFIG_DIR, else the configs in the installed package, else those of the checkout."""
    here = Path(__file__).resolve().parent
    asked = os.environ.get("DINOSWAP_CONFIG_DIR")
    for folder in [Path(asked)] if asked else [here / "configs", here.parents[1] / "configs"]:
        if (folder / "train.yaml").is_file():
            return folder
    raise ConfigError(f"no train.yaml in {asked or here}: point DINOSWAP_CONFIG_DIR at the folder that holds it")


def plain(cfg: DictConfig) -> dict[str, Any]:
    """The resolved config as plain containers, without Hydra's own node."""
    container = OmegaConf.to_container(OmegaConf.masked_copy(cfg, [str(k) for k in cfg if k != "hydra"]), resolve=True)
    return typing.cast(dict[str, Any], container)


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted key -> leaf. Lists are leaves."""
    leaves: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            leaves |= flatten(value, f"{prefix}{key}.")
        else:
            leaves[f"{prefix}{key}"] = value
    return leaves


def identity(config: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a resolved config that decides the result: flat, less what is volatile. A data set is known by the
    name of its file or folder, not by where it lies."""
    leaves = flatten(config)
    kept = {key: value for key, value in leaves.items() if key not in VOLATILE}
    for key in ("data.path", "data.eval_path"):
        if leaves.get(key) is not None:
            kept[f"{key}.name"] = Path(str(leaves[key])).name
    return kept


def run_id(config: Mapping[str, Any]) -> str:
    """A short content hash of the resolved config: equal for equal experiments, however they were asked for."""
    text = json.dumps(identity(config), sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:10]


def run_folder(config: Mapping[str, Any]) -> str:
    """<study or "single">/<run_id>/seed<k>, below results_dir/runs."""
    return f"{config['study'] or 'single'}/{run_id(config)}/seed{config['seed']}"


# `${run_folder:}` in configs/train.yaml: the same folder for a single run, a multirun and a study
OmegaConf.register_new_resolver("run_folder", lambda *, _root_: run_folder(plain(_root_)), replace=True)


# --- the command line ---------------------------------------------------------------------------------------------------


def nearest(name: str, known: Iterable[str]) -> str:
    """' Did you mean ...?' or nothing. Compares whole dotted names, then their last parts."""
    known = list(known)
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.75)
    if not close:
        tails = {key.rsplit(".", 1)[-1]: key for key in known}
        tail = difflib.get_close_matches(name.rsplit(".", 1)[-1], tails, n=1, cutoff=0.7)
        close = [tails[t] for t in tail]
    return f" Did you mean '{close[0]}'?" if close else ""


def check_overrides(arguments: list[str]) -> None:
    """Refuse unknown groups, options and keys with the nearest valid name. Called before Hydra sees the arguments."""
    overrides = OverridesParser.create().parse_overrides(arguments)
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(config_dir()), version_base=VERSION_BASE):
        loader = GlobalHydra.instance().config_loader()
        groups = [g for g in loader.list_groups("") if g != "hydra"]
        chosen = []
        for override in overrides:
            if override.get_key_element().lstrip("+~").split("@")[0] in groups and not override.is_delete():
                chosen += _checked_options(override, loader.get_group_options(override.key_or_group))
        _check_mounts(overrides, groups)
        cfg = compose("train", [c for c in chosen if "=" in c], return_hydra_config=False)
    leaves = flatten(typing.cast(dict[str, Any], OmegaConf.to_container(cfg)))
    known = set(leaves) | {key.rsplit(".", n)[0] for key in leaves for n in range(1, key.count(".") + 1)}
    for override in overrides:
        key = override.key_or_group
        if key in groups or key.startswith("hydra") or key in known:
            continue
        raise ConfigError(
            f"{override.input_line}: there is no config key or group '{key}'.{nearest(key, [*known, *groups])} "
            "`dinoswap-train --cfg job` shows every key."
        )


def _checked_options(override: Override, options: list[str]) -> list[str]:
    """The group override with one option of it, once every option that it names exists."""
    if override.is_sweep_override():
        values = [str(v) for v in override.sweep_string_iterator()]
    else:
        values = [str(override.value())]
    for value in values:
        if value not in options:
            raise ConfigError(
                f"{override.input_line}: the group '{override.key_or_group}' has no option '{value}'."
                f"{nearest(value, options)} It has: {', '.join(sorted(options))}."
            )
    return [f"{override.get_key_element().lstrip('+')}={values[0]}"]


def _check_mounts(overrides: list[Override], groups: list[str]) -> None:
    """A group that is mounted at a place (reduction@objectives.ibot.reduction) must be named with it."""
    cfg = OmegaConf.load(config_dir() / "train.yaml")
    mounts = [str(k).removeprefix("override ").lstrip("/") for d in cfg.defaults for k in (d if OmegaConf.is_dict(d) else ())]
    for override in overrides:
        key = override.get_key_element().lstrip("+~")
        if override.key_or_group in groups and key not in mounts:
            places = [m for m in mounts if m.split("@")[0] == override.key_or_group]
            raise ConfigError(f"{override.input_line}: write {' or '.join(f'{p}=...' for p in places)}")


# --- constructing what a section names ----------------------------------------------------------------------------------


def construct(target: Callable[..., T], section: Mapping[str, Any], key: str, **given: Any) -> T:
    """`target(**section, **given)` after checking names and types of `section` against the signature. `key` is where
    the section stands in the config; `given` are values that only the builder knows."""
    signature = inspect.signature(target)
    hints = typing.get_type_hints(target if inspect.isfunction(target) else target.__init__)
    free = {n: p for n, p in signature.parameters.items() if n not in given}
    values = {name: value for name, value in section.items() if name != "_target_"}
    for name, value in values.items():
        if name not in free:
            raise ConfigError(f"{key}.{name}={value}: there is no such key.{nearest(name, free)} Known: {', '.join(free)}.")
        values[name] = _converted(value, hints.get(name, Any), f"{key}.{name}")
    missing = [n for n, p in free.items() if p.default is p.empty and n not in values]
    if missing:
        raise ConfigError(f"{key}.{missing[0]}: is needed by {target.__name__} and not set; add {key}.{missing[0]}=...")
    try:
        return target(**values, **given)
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(f"{key}.{error}") from error


def option_class(section: Mapping[str, Any], key: str) -> type[Any]:
    """The class that `_target_` names. Only this package's: a config never runs other code."""
    target = str(section.get("_target_", ""))
    module, _, name = target.rpartition(".")
    if not module.startswith("dinoswap."):
        raise ConfigError(f"{key}._target_={target}: must name a class of the dinoswap package")
    found = getattr(importlib.import_module(module), name, None)
    if found is None:
        raise ConfigError(f"{key}._target_={target}: {module} has no class '{name}'")
    return typing.cast(type[Any], found)


def construct_option(section: Mapping[str, Any], key: str, **given: Any) -> Any:
    """What a group's YAML describes, built."""
    return construct(option_class(section, key), section, key, **given)


def _converted(value: Any, hint: Any, key: str) -> Any:
    """`value` if it is of the hinted type (integers pass for floats, lists for tuples)."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any or isinstance(hint, TypeVar):
        return value
    if origin in (Union, types.UnionType):
        return _converted_to_any(value, arguments, hint, key)
    if origin is Literal:
        if value in arguments:
            return value
        choices = [str(a) for a in arguments]
        raise ConfigError(f"{key}={value}: must be one of {', '.join(choices)}.{nearest(str(value), choices)}")
    if origin in (list, tuple):
        return _converted_sequence(value, origin, arguments, key)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if hint is bool or isinstance(value, bool):
        matches = hint is bool and isinstance(value, bool)
    else:
        matches = isinstance(value, hint) if isinstance(hint, type) else True
    if not matches:
        raise ConfigError(f"{key}={value}: must be {_type_name(hint)}, not {_type_name(type(value))}")
    return value


def _converted_to_any(value: Any, hints: tuple[Any, ...], hint: Any, key: str) -> Any:
    if value is None and type(None) in hints:
        return None
    if type(value) in hints:  # an exact match first: 1 stays an integer for `int | float`
        return value
    errors = []
    for each in (h for h in hints if h is not type(None)):
        try:
            return _converted(value, each, key)
        except ConfigError as error:
            errors.append(error)
    if len(errors) == 1:
        raise errors[0]
    raise ConfigError(f"{key}={value}: must be {' or '.join(_type_name(h) for h in hints)}")


def _converted_sequence(value: Any, origin: Any, arguments: tuple[Any, ...], key: str) -> Any:
    if not isinstance(value, (list, tuple)):
        raise ConfigError(f"{key}={value}: must be a list, as in {key}=[...]")
    fixed = origin is tuple and Ellipsis not in arguments
    if fixed and len(value) != len(arguments):
        raise ConfigError(f"{key}={value}: must have {len(arguments)} entries")
    hints = arguments if fixed else [arguments[0]] * len(value)
    return origin(_converted(v, h, f"{key}[{i}]") for i, (v, h) in enumerate(zip(value, hints, strict=True)))


def _type_name(hint: Any) -> str:
    names = {int: "a whole number", float: "a number", str: "text", bool: "true or false", type(None): "null"}
    return names.get(hint, getattr(hint, "__name__", str(hint)))
