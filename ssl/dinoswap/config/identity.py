"""Determines what a run is: the values in which its configuration differs from the versioned defaults.

`configs/identity.json` holds every key with the value that it had when it was introduced. The keys of an option stand
under the name of its class, those of train.yaml by themselves. A run is identified by the keys that have another value.
So a key or a group that is added later renames no run that leaves it at its default, and refuses no checkpoint, while a
default that is changed later is a change like any other. The file is only ever appended to, by tools/renew_golden.py.

A class is identified by its name alone, so the module that it lies in may move.
"""

import functools
import hashlib
import json
from collections.abc import Iterator, Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, NamedTuple

from dinoswap.config.configuration import config_dir
from dinoswap.config.moved import as_introduced
from dinoswap.config.schema import ConfigError, full_key
from dinoswap.config.sections import gathered_dtype, stream_dtype

# Keys, and whole sections, that cannot change the result. So they are neither in a run's name nor compared at a resume.
VOLATILE = (
    "distributed",
    "seed",
    "study",
    "results_dir",
    "objective_metric",
    "data.workers",
    "data.path",
    "data.test_path",
    "data.labels",
    "data.cache",
    "data.download",
    "da3.ckpt_path",
    "da3.use_fsdp",
    "objectives.gram.path",
    "objectives.gram.stats",
    "start.path",
    "start.architecture",
    "start.num_heads",
    "evaluation.dense.path",
    "evaluation.depth.path",
    "trainer.device",
    "trainer.log_every",
    "trainer.eval_every",
    "trainer.checkpoint_every",
    "trainer.checkpoint_minutes",
    "trainer.keep_checkpoints",
    "tracker",
)
FIRST_FAMILIES = ("evaluation.metric.features", "evaluation.metric.knn", "evaluation.metric.linear")
"""Families of metrics whose absence names a run. That of later ones does not: they change nothing but what is measured,
and runs without them existed before."""
DECISIVE = ("distributed.param_dtype", "distributed.reduce_dtype")
"""Keys of volatile sections that change rounding, and so change the result all the same."""

Known = Mapping[str, Mapping[str, Any]]
"""Maps the class of an option to the default of each key of its section, and ROOT to the default of each full key."""
ROOT, UNKNOWN = "", object()


class Leaf(NamedTuple):
    """Holds one value of a config. `key` is dotted from the root, `own_key` from the section of the class `owner`. An
    option is a leaf too, whose value is the name of its class, or None when the option is absent."""

    key: str
    owner: str
    own_key: str
    value: Any
    is_option: bool = False


def identity(config: Mapping[str, Any], known: Known | None = None) -> dict[str, Any]:
    """Returns the keys of a resolved config that decide the result and differ from the default that they were
    introduced with."""
    known = defaults(config_dir() / "identity.json") if known is None else known
    leaves = list(described({**config, "distributed": spread(config)}))
    removable = {key for key in known[ROOT] if key.rpartition(".")[0] == "objectives"}.union(FIRST_FAMILIES)
    removed = removable - {leaf.key for leaf in leaves}  # as by ~objectives.koleo, or metric=[knn]
    changes: dict[str, Any] = dict.fromkeys(removed)
    for leaf in leaves:
        if not is_volatile(leaf.key) and not same(default_of(leaf, known), leaf.value):
            key, value = as_introduced(leaf.key, leaf.value)
            changes[key] = canonical(value)
    return dict(sorted(changes.items()))


def spread(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Returns the section `distributed` of a config, with the type that weights are gathered in, whichever key decides
    it, and fp32 where they are computed in that type by one process too: then nothing more is rounded."""
    section: Mapping[str, Any] = config.get("distributed", {})
    if "param_dtype" not in section:
        return section
    gathered = gathered_dtype(config)
    return {**section, "param_dtype": "fp32" if gathered == stream_dtype(config) else gathered}


def default_of(leaf: Leaf, known: Known) -> Any:
    """Returns the default that a key was introduced with, in the section of its option or in train.yaml; UNKNOWN for a
    key that identity.json does not hold."""
    of_class = known.get(leaf.owner, {}) if leaf.owner else {}
    return of_class.get(leaf.own_key, known[ROOT].get(leaf.key, UNKNOWN))


def is_volatile(key: str) -> bool:
    """Tells whether a key cannot change the result of a run."""
    if fnmatchcase(key, "evaluation.metric.*.in_loop"):
        return True
    return any(key == name or key.startswith(f"{name}.") for name in VOLATILE) and key not in DECISIVE


def run_id(identity: Mapping[str, Any]) -> str:
    """Returns a hash of 10 hexadecimal digits, which is equal for equal identities."""
    text = json.dumps(identity, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:10]


@functools.cache
def defaults(path: Path) -> Known:
    """Returns the content of configs/identity.json. Raises ConfigError when the file is missing."""
    try:
        content: Known = json.loads(path.read_text())
    except FileNotFoundError as error:
        raise ConfigError(
            f"{path}: is missing: copy the folder of configs whole; it says what changes a run"
        ) from error
    return content


# --- sections and their keys ------------------------------------------------------------------------------------------


def described(section: Mapping[str, Any], place: str = "", owner: str = ROOT, prefix: str = "") -> Iterator[Leaf]:
    """Yields the leaves of a config, or of the section at `place`, which belongs to the option `owner` and lies at
    `prefix` within the section of that option."""
    for name, value in section.items():
        if name == "_target_":
            continue
        key, own_key = full_key(place, name), full_key(prefix, name)
        if not isinstance(value, Mapping):
            yield Leaf(key, owner, own_key, value)
        elif is_absent(value, place):
            yield Leaf(key, owner, own_key, None, is_option=True)
        elif "_target_" in value:
            yield Leaf(key, owner, own_key, class_name(value), is_option=True)
            yield from described(value, key, class_name(value))
        else:
            yield from described(value, key, owner, own_key)


def class_name(section: Mapping[str, Any]) -> str:
    """Returns the name of the class that the section of an option describes, without its module."""
    return str(section["_target_"]).rpartition(".")[2]


def is_absent(section: Mapping[str, Any], parent: str) -> bool:
    """Tells whether a section stands for an option that is not there: it is empty, it is switched off, or it is the
    section of an objective that only holds what other groups have left in it."""
    return not section or section.get("enabled") is False or (parent == "objectives" and "_target_" not in section)


def same(first: Any, second: Any) -> bool:
    """Tells whether two values configure the same run. Values of different type differ, so true is not 1, but 3 and 3.0
    are the same."""
    return json.dumps(canonical(first), default=str) == json.dumps(canonical(second), default=str)


def canonical(value: Any) -> Any:
    """Returns the value with one spelling of each number: a float that is whole becomes an int, since 3 and 3.0
    configure the same run."""
    if isinstance(value, list | tuple):
        return [canonical(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value
