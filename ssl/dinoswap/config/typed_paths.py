"""Values that a user types and that mean what they say: paths, and the name of a study.

Hydra reads every value of an override by a grammar, in which = , ~ # ( ) [ ] { } and quotes are signs, and null, 1e5
and 2024_05_01 no text. The shell has already taken away the quotes that the user wrote. So before Hydra sees an
override of one of these keys, its value is quoted for that grammar: `data.path=/data/shard-{000..099}.tar` is then
`data.path='/data/shard-{000..099}.tar'`. What is quoted already stays, so that doing it twice changes nothing, and so
does a plain name, which the grammar reads as the same text.

Signs that keep their meaning: `${...}` is an interpolation, `[a,b]` as the whole value a list, a comma in a multirun
between two values of a sweep (unless quoted, or within brackets), and `~` at the beginning the home folder.
"""

import itertools
import os
import re
import shlex
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from hydra.core.override_parser.types import Quote, QuotedString

from dinoswap.config.schema import ConfigError

PATHS = ("data.path", "data.test_path", "data.labels", "da3.ckpt_path", "start.path", "results_dir")
NULLABLE = ("data.test_path", "data.labels", "study")
"""Keys that may be absent: `null` is no text there."""
LITERAL = (*PATHS, "study")

_OVERRIDE = re.compile(rf"(\+{{0,2}}({'|'.join(map(re.escape, LITERAL))})=)(.*)", re.DOTALL)
_QUOTED = re.compile(r"'(?:\\.|[^'\\])*'|\"(?:\\.|[^\"\\])*\"", re.DOTALL)
_PLAIN = re.compile(r"[A-Za-z_/][\w/.-]*", re.ASCII)
_SWEEP = re.compile(r"(?:choice|glob|shuffle|sort|range|interval|tag)\(.*\)", re.DOTALL)
_BRACKETS = {"(": 1, "[": 1, "{": 1, ")": -1, "]": -1, "}": -1}


def as_typed(overrides: Iterable[str], *, multirun: bool = False) -> list[str]:
    """The overrides, with the values of these keys quoted for Hydra. `multirun`: commas separate values."""
    return [_literal(override, multirun) for override in overrides]


def is_plain(text: str) -> bool:
    """Whether an override has this text as its value without quotes."""
    return bool(_PLAIN.fullmatch(text)) and text.lower() not in ("null", "true", "false", "nan", "inf")


def quoted(value: str | Path) -> str:
    """As one text in an override; an interpolation in it stays one."""
    return QuotedString(str(value), Quote.single).with_quotes()


def for_the_shell(key: str, value: str) -> str:
    """`key=value` as it is typed in a shell where the value is one text, whatever is in it."""
    return shlex.quote(f"{key}={quoted(value)}")


def refuse_torn_paths(arguments: Sequence[str]) -> None:
    """Raises ConfigError for what a shell makes of a path without quotes: several words of one with spaces, several
    overrides of one with braces."""
    for before, argument in itertools.pairwise(arguments):
        path = _OVERRIDE.fullmatch(before)
        if path is None or path[2] not in PATHS:
            continue
        again = _OVERRIDE.fullmatch(argument)
        if again is not None and again[2] == path[2] and again[3] != path[3]:
            raise ConfigError(
                f"{argument}: {path[2]} is given twice; if the shell has put several files in place of a pattern, "
                f"quote it, as in '{path[2]}=/data/shard-{{000..099}}.tar'"
            )
        if re.match(r"[-~+]|[\w./@]+=", argument) is None:
            raise ConfigError(
                f"{argument}: is no key=value; if it belongs to the path before it, quote the whole: "
                f"{shlex.quote(f'{before} {argument}')}"
            )


def _literal(override: str, multirun: bool) -> str:
    match = _OVERRIDE.fullmatch(override)
    if match is None:
        return override
    start, key, value = match.groups()
    if multirun and _SWEEP.fullmatch(value):
        return override
    if value.startswith("[") and value.endswith("]"):
        return f"{start}[{','.join(_element(item, key) for item in _parts(value[1:-1]))}]"
    return start + ",".join(_element(item, key) for item in (_parts(value) if multirun else [value]))


def _element(text: str, key: str) -> str:
    if _QUOTED.fullmatch(text) or is_plain(text) or (text == "null" and key in NULLABLE):
        return text
    return quoted(os.path.expanduser(text) if key in PATHS else text)  # noqa: PTH111  # a Path of it is another text


def _parts(text: str) -> Iterator[str]:
    """The text, cut at the commas that are neither quoted nor within brackets."""
    start = at = depth = 0
    while at < len(text):
        inside = _QUOTED.match(text, at) if at == start else None
        if inside is not None:
            at = inside.end()
            continue
        depth = max(depth + _BRACKETS.get(text[at], 0), 0)
        if text[at] == "," and not depth:
            yield text[start:at]
            start = at + 1
        at += 1
    if text:
        yield text[start:]
