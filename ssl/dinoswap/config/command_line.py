"""Composes a config from command-line overrides, and refuses overrides that are wrong.

Unknown groups, options and keys are refused with the nearest valid name, before Hydra starts a job and before torch is
imported, which takes seconds.
"""

import argparse
import itertools
import re
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from hydra import compose, initialize_config_dir
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.utils import get_args_parser
from hydra.core.config_loader import ConfigLoader
from hydra.core.global_hydra import GlobalHydra
from hydra.core.object_type import ObjectType
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException, OverrideParseException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from dinoswap.config.configuration import VERSION_BASE, config_dir, flatten, plain
from dinoswap.config.first_check import first_check, require_writable
from dinoswap.config.foreign_words import meaning, meaning_of_value
from dinoswap.config.schema import ConfigError, nearest
from dinoswap.config.sections import with_its_backbone
from dinoswap.config.tracked import require_packages
from dinoswap.config.typed_paths import as_typed, for_the_shell, refuse_torn_paths

SHOW_KEYS = "`dinoswap-train --cfg job` shows all keys."


def check_arguments(arguments: Sequence[str]) -> list[str]:
    """Returns the arguments of `dinoswap-train` in the form that Hydra parses: the values of path keys are quoted for
    its grammar. Raises ConfigError when an argument names a flag, group, option or key that does not exist, or has a
    value that is wrong whatever the data are."""
    args = _parsed(arguments)
    refuse_torn_paths(args.overrides)
    multirun = args.multirun or "hydra.mode=MULTIRUN" in args.overrides
    typed = as_typed(arguments, multirun=multirun)
    if args.help or args.hydra_help or args.shell_completion or args.config_path or args.experimental_rerun:
        return typed  # nothing is composed, or from elsewhere
    overrides = list(args.overrides)
    if args.config_dir is not None:
        if not Path(args.config_dir).is_dir():
            raise ConfigError(f"--config-dir {args.config_dir}: no such folder")
        overrides.append(f"hydra.searchpath=['file://{Path(args.config_dir).absolute()}']")
    runs = _composed(overrides, args.config_name or "train", multirun, strict=not multirun)
    if not (args.cfg or args.info):  # else it is shown, and may lack a path
        _check_values([run.config for run in runs], as_typed(overrides, multirun=multirun))
    return typed


def _parsed(arguments: Sequence[str]) -> argparse.Namespace:
    """Returns the arguments as Hydra's own parser reads them. Raises ConfigError for a flag that Hydra does not have
    but another tool has, and for one that is no prefix of a flag of Hydra's; for any other mistake the parser ends the
    process."""
    parser = get_args_parser()
    known = parser._option_string_actions
    for flag in (argument.partition("=")[0] for argument in arguments if argument.startswith("--")):
        if flag not in known and (meaning(flag) or not any(name.startswith(flag) for name in known)):
            raise ConfigError(
                f"{flag}: there is no such flag.{meaning(flag)}{nearest(flag, known)} Settings are written key=value."
            )
    return parser.parse_args(list(arguments))


def _check_values(configs: Sequence[Mapping[str, Any]], overrides: Sequence[str]) -> None:
    """Checks the values of every config and, in a multirun, every swept value in the first config, where the other
    sweeps have their first value. Raises ConfigError for a value that is wrong."""
    configs = [with_its_backbone(config) for config in configs]
    for config in configs:
        first_check(config)
        require_writable(config)
        require_packages(config)
    parser = OverridesParser.create()
    for override in parser.parse_overrides(list(overrides)):
        if not override.is_sweep_override() or override.is_interval_sweep():
            continue
        key = override.key_or_group
        for text in override.sweep_string_iterator():
            if isinstance(_value_at(configs[0], key), (str, int, float, list, type(None))) and "${" not in text:
                first_check(_with_value(configs[0], key, parser.parse_override(f"{key}={text}").value()))


def _value_at(config: Any, key: str) -> Any:
    """Returns the value at a dotted key, or an empty section when there is none."""
    for name in key.split("."):
        if not isinstance(config, Mapping) or name not in config:
            return {}
        config = config[name]
    return config


def _with_value(config: Mapping[str, Any], key: str, value: Any) -> dict[str, Any]:
    """Returns a copy of `config` that has `value` at the dotted key."""
    head, _, rest = key.partition(".")
    return {**config, head: _with_value(config[head], rest, value) if rest else value}


class Composed(NamedTuple):
    """Holds a resolved config, and the option that each group has in it."""

    config: dict[str, Any]
    choices: dict[str, str]


def check_overrides(overrides: Sequence[str], *, config_name: str = "train", multirun: bool = False) -> None:
    """Raises ConfigError unless the overrides compose; in a multirun, unless they compose with every combination of the
    swept options."""
    _composed(overrides, config_name, multirun, strict=not multirun)


def compose_config(overrides: Sequence[str] = (), *, strict: bool = True) -> dict[str, Any]:
    """Returns the resolved config that `dinoswap-train` runs with these overrides; `strict` means what it means in
    `plain`. Raises ConfigError when they do not compose."""
    return compose_run(overrides, strict=strict).config


def compose_run(overrides: Sequence[str] = (), *, strict: bool = True) -> Composed:
    """Returns the config of `compose_config` with the options that were chosen for it."""
    (composed,) = _composed(overrides, "train", multirun=False, strict=strict)
    return composed._replace(config=dict(with_its_backbone(composed.config)))


def chosen_options(overrides: Sequence[str]) -> dict[str, str]:
    """Returns the option of each group under these overrides. Raises ConfigError when they do not compose."""
    (composed,) = _composed(overrides, "train", multirun=False, strict=True)
    return composed.choices


def _composed(overrides: Sequence[str], config_name: str, multirun: bool, strict: bool) -> list[Composed]:
    """Returns one config, or in a multirun one for every combination of the swept options. Raises ConfigError when the
    overrides do not compose."""
    overrides = as_typed(overrides, multirun=multirun)
    with initialize_config_dir(str(config_dir()), version_base=VERSION_BASE):
        loader = typing.cast(ConfigLoaderImpl, GlobalHydra.instance().config_loader())
        try:
            parsed = OverridesParser.create(loader).parse_overrides(overrides)
            # The repository caches what it reads, so it is made once for all groups.
            _, repository = loader._parse_overrides_and_create_caching_repo(config_name, overrides)
            groups = [group for group in repository.get_group_options("", ObjectType.GROUP) if group != "hydra"]
            for override in parsed:
                _check_form(override, multirun)
                if override.key_or_group in groups:
                    _check_options(override, repository.get_group_options(override.key_or_group, ObjectType.CONFIG))
            return [_compose(config_name, lines, loader, groups, strict) for lines in _combinations(parsed, groups)]
        except OverrideParseException as error:
            raise ConfigError(_unreadable(str(error.override), _one_line(error))) from error
        except (HydraException, OmegaConfBaseException) as error:
            raise ConfigError(_one_line(error)) from error


def _compose(config_name: str, overrides: list[str], loader: ConfigLoader, groups: list[str], strict: bool) -> Composed:
    """Returns the config of one job. The choices of options are applied first, since they decide which keys exist; the
    values are set afterwards, as Hydra sets them."""
    parsed = OverridesParser.create(loader).parse_overrides(overrides)
    choosing = [override for override in parsed if override.key_or_group in groups or override.is_hydra_override()]
    setting = [override for override in parsed if override not in choosing]
    cfg = compose(config_name, [str(override.input_line) for override in choosing], return_hydra_config=True)
    choices = {str(group): str(option) for group, option in cfg.hydra.runtime.choices.items()}
    keys = typing.cast(dict[str, Any], OmegaConf.to_container(cfg))
    leaves = flatten({name: section for name, section in keys.items() if name != "hydra"})
    known = {key.rsplit(".", parts)[0] for key in leaves for parts in range(key.count(".") + 1)}
    for override in setting:
        _check_key(override, [*known, *groups], choices)
    ConfigLoaderImpl._apply_overrides_to_config(setting, cfg)
    return Composed(plain(cfg, strict), choices)


# --- one override -----------------------------------------------------------------------------------------------------


def _check_form(override: Override, multirun: bool) -> None:
    """Raises ConfigError for an override that removes anything but an objective, and for a sweep outside of a
    multirun."""
    key = override.key_or_group
    if override.is_delete() and not override.is_hydra_override() and not re.fullmatch(r"objectives\.\w+", key):
        raise ConfigError(
            f"{override.input_line}: only a whole objective can be removed, as in ~objectives.koleo; "
            f"give {key} another value instead"
        )
    if override.is_sweep_override() and not multirun:
        raise ConfigError(
            f"{override.input_line}: several values are several runs, add --multirun; a list is written {key}=[...]"
        )


def _check_options(override: Override, options: list[str]) -> None:
    """Raises ConfigError when the override chooses an option that its group does not have."""
    for value in _values(override):
        if value not in options:
            raise ConfigError(
                f"{override.input_line}: the group '{override.key_or_group}' has no option '{value}'."
                f"{meaning_of_value(override.key_or_group, value)}{nearest(value, options)} "
                f"It has: {', '.join(sorted(options))}."
            )


def _check_key(override: Override, known: list[str], choices: dict[str, str]) -> None:
    """Raises ConfigError unless the override sets a key that exists. `choices` holds the option of each group; a group
    that is mounted elsewhere is called group@place there."""
    key, line = override.key_or_group, str(override.input_line)
    group = next((choice for choice in choices if choice.endswith(f"@{key}")), None)
    if group is not None:
        raise ConfigError(f"{line}: chooses an option; write {group}={override.value()}")
    if key not in known:
        section = key.partition(".")[0]
        section_choice = f" in {section}={choices[section]}" if section in choices else ""
        suggestion = meaning(line) or nearest(key, known)
        raise ConfigError(f"{line}: there is no key or group '{key}'{section_choice}.{suggestion} {SHOW_KEYS}")
    if override.is_add():
        raise ConfigError(f"{line}: this key exists already; write {line.lstrip('+')}")


def _values(override: Override) -> list[str]:
    """Returns all values of an override as text: those of a sweep, of a list, or the one value."""
    if override.is_sweep_override():
        return [str(value) for value in override.sweep_string_iterator()]
    value = override.value()
    return [str(item) for item in value] if isinstance(value, list) else [str(value)]


def _combinations(overrides: list[Override], groups: list[str]) -> Iterator[list[str]]:
    """Yields override lists without sweeps: one for every combination of the swept options, in which every other sweep
    has its first value."""
    choices = []
    for override in overrides:
        lines = [str(override.input_line)]
        if override.is_interval_sweep():
            lines = []  # a sampler's to fill
        elif override.is_sweep_override():
            lines = [f"{override.get_key_element()}={value}" for value in override.sweep_string_iterator()]
        choices.append(lines if override.key_or_group in groups else lines[:1])
    for combination in itertools.product(*(lines for lines in choices if lines)):
        yield list(combination)


def _unreadable(override: str, reason: str) -> str:
    """Returns the message for an override that Hydra's grammar does not accept. Where the value may have been meant as
    text, it says what to type instead."""
    key, equals, value = override.partition("=")
    remedy = f"; as one text: {for_the_shell(key, value)}" if equals else ""
    return f"{override}: cannot be read as key=value: {reason}{remedy}"


def _one_line(error: Exception) -> str:
    """Returns an error's message on one line."""
    return " ".join(str(error).split())
