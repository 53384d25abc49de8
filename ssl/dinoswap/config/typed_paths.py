"""Quotes values that mean exactly what the user typed: paths, and the name of a study.

Hydra reads every value of an override by a grammar, in which = , ~ # ( ) [ ] { } and quotes are operators, and null,
1e5 and 2024_05_01 are no text. The shell has already removed the quotes that the user wrote. So before Hydra sees an
override of one of these keys, its value is quoted for that grammar: `data.path=/data/shard-{000..099}.tar` becomes
`data.path='/data/shard-{000..099}.tar'`. A value that is already quoted stays as it is, so that quoting twice changes
nothing, and so does a plain name, which the grammar reads as the same text.

Some characters keep their meaning: `${...}` is an interpolation, `[a,b]` as the whole value is a list, a comma in a
multirun separates two values of a sweep (unless it is quoted or within brackets), and `~` at the beginning is the home
folder.
"""

import itertools
import os
import re
import shlex
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from hydra.core.override_parser.types import Quote, QuotedString

from dinoswap.config.schema import ConfigError

PATHS = (
    "data.path",
    "data.test_path",
    "data.labels",
    "data.cache",
    "da3.ckpt_path",
    "objectives.gram.path",
    "start.path",
    "evaluation.dense.path",
    "evaluation.depth.path",
    "results_dir",
)
NULLABLE = ("data.test_path", "data.labels", "data.cache", "objectives.gram.path", "study")
"""Keys that may be absent: `null` as their value is no text."""
LITERAL = (*PATHS, "study")

_OVERRIDE = re.compile(rf"(\+{{0,2}}({'|'.join(map(re.escape, LITERAL))})=)(.*)", re.DOTALL)
_QUOTED = re.compile(r"'(?:\\.|[^'\\])*'|\"(?:\\.|[^\"\\])*\"", re.DOTALL)
_PLAIN = re.compile(r"[A-Za-z_/][\w/.-]*", re.ASCII)
_SWEEP = re.compile(r"(?:choice|glob|shuffle|sort|range|interval|tag)\(.*\)", re.DOTALL)
_BRACKETS = {"(": 1, "[": 1, "{": 1, ")": -1, "]": -1, "}": -1}


def as_typed(overrides: Iterable[str], *, multirun: bool = False) -> list[str]:
    """Returns the overrides with the values of the keys in LITERAL quoted for Hydra. In a multirun, commas separate
    values."""
    return [_literal(override, multirun) for override in overrides]


def key_of(override: str) -> str:
    """Returns the key that an override sets: masking of masking=block, objectives.koleo of ~objectives.koleo."""
    return override.lstrip("+~").partition("=")[0]


def is_plain(text: str) -> bool:
    """Tells whether Hydra reads this text as itself without quotes."""
    return bool(_PLAIN.fullmatch(text)) and text.lower() not in ("null", "true", "false", "nan", "inf")


def quoted(value: str | Path) -> str:
    """Returns the value as one quoted text for an override; an interpolation in it remains one."""
    return QuotedString(str(value), Quote.single).with_quotes()


def for_the_shell(key: str, value: str) -> str:
    """Returns `key=value` as it is typed in a shell, so that the value is one text whatever is in it."""
    return shlex.quote(f"{key}={quoted(value)}")


def refuse_torn_paths(arguments: Sequence[str]) -> None:
    """Raises ConfigError for paths that the shell has split because they were not quoted: several words from one with
    spaces, several overrides from one with braces."""
    for previous, argument in itertools.pairwise(arguments):
        path = _OVERRIDE.fullmatch(previous)
        if path is None or path[2] not in PATHS:
            continue
        next_path = _OVERRIDE.fullmatch(argument)
        if next_path is not None and next_path[2] == path[2] and next_path[3] != path[3]:
            raise ConfigError(
                f"{argument}: {path[2]} is given twice; if the shell has put several files in place of a pattern, "
                f"quote it, as in '{path[2]}=/data/shard-{{000..099}}.tar'"
            )
        if re.match(r"[-~+]|[\w./@]+=", argument) is None:
            raise ConfigError(
                f"{argument}: is no key=value; if it belongs to the path before it, quote the whole: "
                f"{shlex.quote(f'{previous} {argument}')}"
            )


def _literal(override: str, multirun: bool) -> str:
    """Returns the override with its value quoted if its key is in LITERAL, and unchanged if it is not."""
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
    """Returns one value of an override, quoted unless it is quoted, plain or null."""
    if _QUOTED.fullmatch(text) or is_plain(text) or (text == "null" and key in NULLABLE):
        return text
    return quoted(os.path.expanduser(text) if key in PATHS else text)  # noqa: PTH111  # a Path of it is another text


def _parts(text: str) -> Iterator[str]:
    """Yields the parts of the text between commas; a comma that is quoted or within brackets does not separate."""
    start = position = depth = 0
    while position < len(text):
        inside = _QUOTED.match(text, position) if position == start else None
        if inside is not None:
            position = inside.end()
            continue
        depth = max(depth + _BRACKETS.get(text[position], 0), 0)
        if text[position] == "," and not depth:
            yield text[start:position]
            start = position + 1
        position += 1
    if text:
        yield text[start:]
