"""Lines of the form key=value: which of them a study file may hold, what they set, and how a value is written in one.

A study file says what is run, and is passed on from one person to another. Hydra itself is configured by overrides too,
and there can be told to call any function (hydra.callbacks), to set variables such as LD_PRELOAD (hydra.job.env_set) or
to read configs from elsewhere (hydra.searchpath). So of its keys a file holds the launcher and what a job asks for;
everything else is for the command line, where it is its user's own.
"""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from dinoswap.config import typed_paths
from dinoswap.config.schema import ConfigError, nearest
from dinoswap.config.typed_paths import as_typed, is_plain, key_of

Scalar = str | int | float | bool | None

NOT_VARIED = {"seed": "list the seeds under `seeds`", "study": "a study is called after its file"}
JOB_SETTINGS = (
    *("processes", "threads", "gpus"),
    *("partition", "account", "qos", "timeout_min", "cpus_per_task", "gpus_per_node", "gpus_per_task", "cpus_per_gpu"),
    *("gres", "mem_gb", "mem_per_cpu", "mem_per_gpu", "constraint", "exclude", "nodes", "tasks_per_node", "comment"),
    *("signal_delay_s", "max_num_timeout", "array_parallelism", "poll_seconds"),
)
"""Keys of hydra.launcher that a study file may set. The others name code (_target_, setup) or where files go."""

WORDS = {True: "true", False: "false", None: "null"}
_LINE = re.compile(r"(?:\+{0,2}[A-Za-z_][\w./@:-]*=|~[A-Za-z_][\w./@:-]*=?)[^\x00-\x1f\x7f]*", re.ASCII)
"""No line break or other control character: sbatch is given values in a script, where the next line would be run."""


# --- what a line sets -------------------------------------------------------------------------------------------------


def combined(*parts: Iterable[str]) -> list[str]:
    """Returns the overrides of all parts, paths as they were typed; of several for one key only the last."""
    lines: dict[str, str] = {}
    for line in as_typed(line for part in parts for line in part):
        lines.pop(key_of(line), None)
        lines[key_of(line)] = line
    return list(lines.values())


def is_hydra_override(override: str) -> bool:
    """Returns whether an override configures Hydra: its launcher, sweeper, callbacks, or a group put among these."""
    return any(part.startswith("hydra") for part in re.split("[@:]", key_of(override).strip()))


# --- values -----------------------------------------------------------------------------------------------------------


def quoted(value: str | Path) -> str:
    """Returns text as a value of an override that is read again as this text, even if it looks like 1e5, null or
    ${x}."""
    literal = re.sub(r"(\\*)\$\{", r"\1\1\\${", str(value))  # OmegaConf's escape, before an interpolation
    return typed_paths.quoted(literal)


def as_text(value: Scalar) -> str:
    """Returns a scalar of YAML as a value of an override that is read again as the same. Text that begins with a
    bracket is a list or a section, and an interpolation stays one; what looks like another type, or like syntax, is
    quoted."""
    if not isinstance(value, str):
        return WORDS[value] if value is None or isinstance(value, bool) else str(value)
    return value if is_plain(value) or value.startswith(("[", "{")) or "${" in value else quoted(value)


# --- what a file may hold ---------------------------------------------------------------------------------------------


def as_overrides(value: Any, key: str, *, launcher: bool = False) -> list[str]:
    """Returns the overrides in a value of a study file: a list, a single one, or none. With `launcher` they may also
    say how runs are launched. Raises ConfigError, which names the line, for what is no override or may not stand here.
    Whether their keys exist is found when they are composed."""
    lines = [value] if isinstance(value, str) else [] if value is None else value
    if not isinstance(lines, list):
        raise ConfigError(f"{key}={value}: must be a list of overrides, as in [preset=official, recipe=demo]")
    for line in lines:
        if not isinstance(line, str) or not _LINE.fullmatch(line):
            shown = " ".join(str(line).split())
            raise ConfigError(f"{key}: {shown} is no override; write <key>=<value>, without spaces around the '='")
        if key_of(line) in NOT_VARIED:
            raise ConfigError(f"{key}: {line} cannot be set here; {NOT_VARIED[key_of(line)]}")
        if is_hydra_override(line):
            _check_hydra_override(line, key, launcher)
    return lines


def _check_hydra_override(line: str, key: str, launcher: bool) -> None:
    """Raises ConfigError for an override of Hydra that a study file may not have: any but the choice of a launcher and
    what its jobs ask for, and these only where `launcher` says that this place is for them."""
    name, _, value = line.lstrip("+").partition("=")
    if not launcher:
        raise ConfigError(f"{key}: {line} cannot be varied; say how runs are launched in base, or on the command line")
    setting = name.removeprefix("hydra.launcher.")
    if re.fullmatch(r"hydra/launcher=[\w-]+", f"{name}={value}") or (setting != name and setting in JOB_SETTINGS):
        return
    raise ConfigError(
        f"{key}: {line} is not for a study file, where it could run other code or write elsewhere."
        f"{nearest(setting, JOB_SETTINGS)} A file may choose hydra/launcher, and set what a job asks for, as "
        "hydra.launcher.partition; if you mean this, give it on the command line"
    )
