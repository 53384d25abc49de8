"""Checks a config section against the signature of the class that it describes: the signature is its schema.

Names and types are checked here, ranges by the class itself; either way the message gives the full key.
"""

import dataclasses
import difflib
import importlib
import inspect
import math
import re
import types
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, Literal, TypeVar, Union, cast, get_args, get_origin

from dinoswap.config.errors import ConfigError as ConfigError  # raised here more than anywhere else
from dinoswap.config.foreign_words import meaning
from dinoswap.config.guests import modules

T = TypeVar("T")

LARGEST = 2**63 - 1
"""The largest whole number that is accepted. torch, NumPy and file formats cannot hold a larger one."""
MISSING = "???"
"""The value in a YAML that stands for one that the user has to give."""


def nearest(name: str, known: Iterable[str]) -> str:
    """Returns ' Did you mean ...?' with the most similar known name, or "" when none is similar. Whole dotted names are
    compared first, then their last parts."""
    known = list(known)
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.75)
    if not close:
        tails = {key.rsplit(".", 1)[-1]: key for key in known}
        close_tails = difflib.get_close_matches(name.rsplit(".", 1)[-1], tails, n=1, cutoff=0.7)
        close = [tails[tail] for tail in close_tails]
    return f" Did you mean '{close[0]}'?" if close else ""


def construct(target: Callable[..., T], section: Mapping[str, Any], key: str, **given: Any) -> T:
    """Returns `target(**section, **given)` after `checked`; `given` holds the arguments that only the builder knows.
    Raises ConfigError for a wrong key or value, also where `target` raises ValueError. A ValueError about a given
    argument, `name=...`, is passed on: the builder knows under which key that stands."""
    values = checked(target, section, key, given)
    try:
        return target(**values, **given)
    except ConfigError:
        raise
    except ValueError as error:
        if str(error).startswith(tuple(f"{name}=" for name in given)):
            raise
        raise ConfigError(_located(str(error), values, key)) from error


def construct_option(section: Mapping[str, Any], key: str, **given: Any) -> Any:
    """Builds the option that a section with a `_target_` describes. Raises ConfigError when the class or the arguments
    are wrong."""
    return construct(option_class(section, key), section, key, **given)


def checked(
    target: Callable[..., Any], section: Mapping[str, Any], key: str, given: Collection[str] = ()
) -> dict[str, Any]:
    """Returns the section as keyword arguments of `target`, whose signature decides on names and types. `key` is where
    the section stands in the config, "" for the root; the arguments in `given` may not be set there. Raises ConfigError
    for a key that does not exist, a value of another type, and a missing value."""
    require_section(section, key)
    parameters = inspect.signature(target, eval_str=True).parameters
    free = {name: parameter for name, parameter in parameters.items() if name not in given}
    values = {}
    for name, value in section.items():
        if name == "_target_":
            continue
        path = full_key(key, name)
        if name not in free:
            suggestion = meaning(f"{path}={value}") or nearest(name, free)
            raise ConfigError(f"{path}={value}: there is no such key.{suggestion} Known: {', '.join(free)}.")
        values[name] = _converted(value, free[name].annotation, path)
    for name, parameter in free.items():
        if values.get(name, parameter.default) in (MISSING, parameter.empty):
            raise ConfigError(f"{full_key(key, name)}: has to be given; add {full_key(key, name)}=...")
    return values


def require_section(section: object, key: str) -> None:
    """Raises ConfigError when a value stands where a section is needed."""
    if not isinstance(section, Mapping):
        raise ConfigError(f"{key}={section}: is a section, not a value; set one of its keys, {key}.<name>=...")


def option_class(section: Mapping[str, Any], key: str) -> type[Any]:
    """Returns the class that `_target_` names. Raises ConfigError for one that is neither of the package that `key`
    speaks of nor of an installed guest: a config never runs other code. Raises it for null too, by which a recipe
    refuses an option that it is not made for."""
    require_section(section, key)
    if section.get("_target_", key) is None:
        raise ConfigError(
            f"{key}: the recipe is not made for this option; choose another one of the group, or a recipe"
        )
    target = str(section.get("_target_"))
    module, _, name = target.rpartition(".")
    try:
        package = next((guest for guest in modules() if module.split(".")[0] == guest), None)
        package = package or next((name for name in _packages(key) if f"{module}.".startswith(f"{name}.")), None)
        if package is None:
            raise ImportError("of another package")
        option = getattr(importlib.import_module(module), name)
        if not isinstance(option, type) or not f"{option.__module__}.".startswith(f"{package}."):
            raise ImportError(f"{name} is no class of {package}")
        if inspect.isabstract(option) or issubclass(option, BaseException):
            raise ImportError(f"{name} is none that is built")
        return cast(type[Any], option)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(
            f"{key}._target_={target}: no class of this group ({error}); choose an option of it"
        ) from error


def _packages(key: str) -> list[str]:
    """Returns the packages of dinoswap that a key speaks of, e.g. dinoswap.objectives for objectives.koleo."""
    return [f"dinoswap.{part}" for part in key.split(".")]


def full_key(section: str, name: str) -> str:
    """Returns the full key of `name` in a section; the root of the config has no name."""
    return f"{section}.{name}" if section else name


def _located(message: str, arguments: Iterable[str], key: str) -> str:
    """Returns a constructor's message with the full key in front. A message that begins with the name of an argument,
    or already with the key, is not prefixed twice."""
    start = re.match(r"\w+", message)
    if start and start[0] in arguments:
        return full_key(key, message)
    return message if message.startswith(f"{key}.") else f"{key}: {message}"


# --- types ------------------------------------------------------------------------------------------------------------


def _converted(value: Any, hint: Any, key: str) -> Any:
    """Returns `value` if it is of the hinted type; whole numbers pass for floats, lists for tuples, and a section for
    the dataclass that it describes. Raises ConfigError if it is not."""
    origin, arguments = get_origin(hint), get_args(hint)
    if hint is Any or value == MISSING:
        return value
    if origin in (Union, types.UnionType):
        return _converted_to_one_of(value, arguments, key)
    if origin is Literal:
        if value in arguments:
            return value
        choices = [str(choice) for choice in arguments]
        raise ConfigError(f"{key}={value}: must be one of {', '.join(choices)}.{nearest(str(value), choices)}")
    if origin in (list, tuple):
        return _converted_sequence(value, origin, arguments, key)
    if dataclasses.is_dataclass(hint):
        return construct(cast(Callable[..., Any], hint), value, key)
    if type(value) is int and hint is float and abs(value) <= LARGEST:
        value = float(value)
    if type(value) is not hint:
        quoted = f"; quote it: {key}=\"'{value}'\"" if hint is str and value is not None else ""
        raise ConfigError(f"{key}={value}: must be {_type_name(hint)}, not {_type_name(type(value))}{quoted}")
    if hint is float and not math.isfinite(value):
        raise ConfigError(f"{key}={value}: must be a finite number")
    if hint is int and abs(value) > LARGEST:
        raise ConfigError(f"{key}={value}: must be a whole number up to {LARGEST}")
    return value


def _converted_to_one_of(value: Any, hints: tuple[Any, ...], key: str) -> Any:
    """Returns `value` as the first of the types `hints` that takes it. Raises ConfigError where none does."""
    if value is None and type(None) in hints:
        return None
    if type(value) is int and int in hints:  # 1 stays a whole number for `int | float`
        return _converted(value, int, key)
    hints = tuple(hint for hint in hints if hint is not type(None))
    errors = []
    for hint in hints:
        try:
            return _converted(value, hint, key)
        except ConfigError as error:
            errors.append(error)
    if len(errors) == 1:
        raise errors[0]
    raise ConfigError(f"{key}={value}: must be {' or '.join(_type_name(hint) for hint in hints)}")


def _converted_sequence(value: Any, origin: Any, arguments: tuple[Any, ...], key: str) -> Any:
    """Returns the list or tuple `origin` of the converted entries of `value`, whose types are `arguments`. Raises
    ConfigError for anything but a list, and for another number of entries than a tuple has."""
    if not isinstance(value, (list, tuple)):
        raise ConfigError(f"{key}={value}: must be a list, as in {key}=[...]")
    fixed = origin is tuple and Ellipsis not in arguments
    if fixed and len(value) != len(arguments):
        raise ConfigError(f"{key}={value}: must have {len(arguments)} entries")
    hints = arguments if fixed else [arguments[0]] * len(value)
    pairs = enumerate(zip(value, hints, strict=True))
    return origin(_converted(item, item_hint, f"{key}[{index}]") for index, (item, item_hint) in pairs)


def _type_name(hint: Any) -> str:
    """Returns what a type is called in messages to a user."""
    if get_origin(hint) is Literal:
        return " or ".join(str(choice) for choice in get_args(hint))
    names = {int: "a whole number", float: "a number", str: "text", bool: "true or false", type(None): "null"}
    return names.get(hint, getattr(hint, "__name__", str(hint)))
