"""The signature of the class that a config section describes is its schema.

Names and types are checked against it here, ranges by the class itself; either way the message gives the full key.
"""

import difflib
import importlib
import inspect
import math
import re
import types
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, Literal, TypeVar, Union, cast, get_args, get_origin

from dinoswap.config.guests import modules

T = TypeVar("T")

LARGEST = 2**63 - 1
"""Whole numbers beyond are none that torch, NumPy or a file format can hold."""
MISSING = "???"
"""What a YAML says where the user has to give a value."""


class ConfigError(ValueError):
    """What a user has to change: the key, the value and the remedy."""


def nearest(name: str, known: Iterable[str]) -> str:
    """' Did you mean ...?' or nothing. Compares whole dotted names, then their last parts."""
    known = list(known)
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.75)
    if not close:
        tails = {key.rsplit(".", 1)[-1]: key for key in known}
        tail = difflib.get_close_matches(name.rsplit(".", 1)[-1], tails, n=1, cutoff=0.7)
        close = [tails[t] for t in tail]
    return f" Did you mean '{close[0]}'?" if close else ""


def construct(target: Callable[..., T], section: Mapping[str, Any], key: str, **given: Any) -> T:
    """`target(**section, **given)` after `checked`. `given` are the values that only the builder knows."""
    values = checked(target, section, key, given)
    try:
        return target(**values, **given)
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(_located(str(error), values, key)) from error


def construct_option(section: Mapping[str, Any], key: str, **given: Any) -> Any:
    """What a group's YAML describes, built."""
    return construct(option_class(section, key), section, key, **given)


def checked(
    target: Callable[..., Any], section: Mapping[str, Any], key: str, given: Collection[str] = ()
) -> dict[str, Any]:
    """The section as keyword arguments of `target`, whose signature decides on names and types. `key` is where the
    section stands in the config ("" at its root); arguments in `given` may not be set there. Raises ConfigError."""
    require_section(section, key)
    free = {n: p for n, p in inspect.signature(target, eval_str=True).parameters.items() if n not in given}
    values = {}
    for name, value in section.items():
        if name == "_target_":
            continue
        path = _join(key, name)
        if name not in free:
            raise ConfigError(f"{path}={value}: there is no such key.{nearest(name, free)} Known: {', '.join(free)}.")
        values[name] = _converted(value, free[name].annotation, path)
    for name, parameter in free.items():
        if values.get(name, parameter.default) in (MISSING, parameter.empty):
            raise ConfigError(f"{_join(key, name)}: has to be given; add {_join(key, name)}=...")
    return values


def require_section(section: object, key: str) -> None:
    if not isinstance(section, Mapping):
        raise ConfigError(f"{key}={section}: is a section, not a value; set one of its keys, {key}.<name>=...")


def option_class(section: Mapping[str, Any], key: str) -> type[Any]:
    """The class that `_target_` names. Only one of the package that `key` speaks of, or of an installed guest: a config
    never runs other code."""
    require_section(section, key)
    target = str(section.get("_target_"))
    module, _, name = target.rpartition(".")
    try:
        package = next((guest for guest in modules() if module.split(".")[0] == guest), None)
        package = package or next((p for p in _packages(key) if f"{module}.".startswith(f"{p}.")), None)
        if package is None:
            raise ImportError("of another package")
        found = getattr(importlib.import_module(module), name)
        if not isinstance(found, type) or not f"{found.__module__}.".startswith(f"{package}."):
            raise ImportError(f"{name} is no class of {package}")
        if inspect.isabstract(found) or issubclass(found, BaseException):
            raise ImportError(f"{name} is none that is built")
        return cast(type[Any], found)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(
            f"{key}._target_={target}: no class of this group ({error}); choose an option of it"
        ) from error


def _packages(key: str) -> list[str]:
    """Of this package's own: those of the group, and of the section, that a key speaks of."""
    return [f"dinoswap.{part}" for part in key.split(".")]


def _located(message: str, arguments: Iterable[str], key: str) -> str:
    """A constructor's message under its full key: it begins with the argument's name, or says where it is itself."""
    start = re.match(r"\w+", message)
    if start and start[0] in arguments:
        return _join(key, message)
    return message if message.startswith(f"{key}.") else f"{key}: {message}"


def _join(section: str, name: str) -> str:
    """The full key; the root of the config has no name."""
    return f"{section}.{name}" if section else name


# --- types ------------------------------------------------------------------------------------------------------------


def _converted(value: Any, hint: Any, key: str) -> Any:
    """`value` if it is of the hinted type (whole numbers pass for floats, lists for tuples)."""
    origin, arguments = get_origin(hint), get_args(hint)
    if hint is Any or value == MISSING:
        return value
    if origin in (Union, types.UnionType):
        return _converted_to_one_of(value, arguments, key)
    if origin is Literal:
        if value in arguments:
            return value
        choices = [str(a) for a in arguments]
        raise ConfigError(f"{key}={value}: must be one of {', '.join(choices)}.{nearest(str(value), choices)}")
    if origin in (list, tuple):
        return _converted_sequence(value, origin, arguments, key)
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
    if not isinstance(value, (list, tuple)):
        raise ConfigError(f"{key}={value}: must be a list, as in {key}=[...]")
    fixed = origin is tuple and Ellipsis not in arguments
    if fixed and len(value) != len(arguments):
        raise ConfigError(f"{key}={value}: must have {len(arguments)} entries")
    hints = arguments if fixed else [arguments[0]] * len(value)
    return origin(_converted(v, h, f"{key}[{i}]") for i, (v, h) in enumerate(zip(value, hints, strict=True)))


def _type_name(hint: Any) -> str:
    if get_origin(hint) is Literal:
        return " or ".join(str(choice) for choice in get_args(hint))
    names = {int: "a whole number", float: "a number", str: "text", bool: "true or false", type(None): "null"}
    return names.get(hint, getattr(hint, "__name__", str(hint)))
