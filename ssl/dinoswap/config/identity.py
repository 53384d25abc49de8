"""What a run is: what its configuration changes of the versioned defaults.

`configs/identity.json` holds every key with the value that it had when it was introduced: those of an option under the
name of its class, those of train.yaml by themselves. A run is known by the keys that have another value. So a key or a
group that is added later renames no run that leaves it at its default, and refuses no checkpoint, while a default that
is changed later is a change like any other. The file is only ever appended to, by tools/renew_golden.py.

A class is known by its name alone: the module that it lies in may move.
"""

import functools
import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from dinoswap.config.configuration import config_dir
from dinoswap.config.schema import ConfigError

# What cannot change the result, keys and whole sections, and so is neither in a run's name nor compared at a resume.
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
    "data.download",
    "da3.ckpt_path",
    "da3.use_fsdp",
    "trainer.device",
    "trainer.log_every",
    "trainer.eval_every",
    "trainer.checkpoint_every",
    "trainer.checkpoint_minutes",
    "trainer.keep_checkpoints",
    "trainer.tensorboard",
)
DECISIVE = ("distributed.param_dtype", "distributed.reduce_dtype")
"""Keys of volatile sections that round numbers, and so decide the result all the same."""

Known = Mapping[str, Mapping[str, Any]]
"""Class of an option -> key of its section -> value; ROOT -> key from the root -> value."""
ROOT, UNKNOWN = "", object()


class Leaf(NamedTuple):
    """A value of a config. `key` is dotted from the root, `own_key` from the section of the class `owner`. An option is
    a leaf too: the name of its class, or None where it is absent."""

    key: str
    owner: str
    own_key: str
    value: Any
    is_option: bool = False


def identity(config: Mapping[str, Any], known: Known | None = None) -> dict[str, Any]:
    """The keys of a resolved config that decide the result and are not what they were when they were introduced."""
    known = defaults(config_dir() / "identity.json") if known is None else known
    leaves = list(described(config))
    objectives = {key for key in known[ROOT] if key.count(".") == 1 and key.startswith("objectives.")}
    found: dict[str, Any] = dict.fromkeys(
        objectives - {leaf.key for leaf in leaves}
    )  # removed, as by ~objectives.koleo
    for leaf in leaves:
        if not is_volatile(leaf.key) and not same(default_of(leaf, known), leaf.value):
            found[leaf.key] = canonical(leaf.value)
    return dict(sorted(found.items()))


def default_of(leaf: Leaf, known: Known) -> Any:
    """When it was introduced, with its option or in train.yaml; UNKNOWN for a key that was not there yet."""
    of_class = known.get(leaf.owner, {}) if leaf.owner else {}
    return of_class.get(leaf.own_key, known[ROOT].get(leaf.key, UNKNOWN))


def is_volatile(key: str) -> bool:
    return any(key == name or key.startswith(f"{name}.") for name in VOLATILE) and key not in DECISIVE


def run_id(identity: Mapping[str, Any]) -> str:
    """A short content hash: equal for equal experiments, however they were asked for."""
    text = json.dumps(identity, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:10]


@functools.cache
def defaults(path: Path) -> Known:
    """What configs/identity.json holds."""
    try:
        content: Known = json.loads(path.read_text())
    except FileNotFoundError as error:
        raise ConfigError(
            f"{path}: is missing: copy the folder of configs whole; it says what changes a run"
        ) from error
    return content


# --- sections and their keys ------------------------------------------------------------------------------------------


def described(section: Mapping[str, Any], place: str = "", owner: str = ROOT, own: str = "") -> Iterator[Leaf]:
    """The leaves of a config, or of the section at `place`, which belongs to the option `owner` under the key `own`."""
    for name, value in section.items():
        if name == "_target_":
            continue
        key, own_key = f"{place}.{name}".lstrip("."), f"{own}.{name}".lstrip(".")
        if not isinstance(value, Mapping):
            yield Leaf(key, owner, own_key, value)
        elif is_absent(value, place):
            yield Leaf(key, owner, own_key, None, is_option=True)
        elif "_target_" in value:
            option = str(value["_target_"]).rpartition(".")[2]
            yield Leaf(key, owner, own_key, option, is_option=True)
            yield from described(value, key, option)
        else:
            yield from described(value, key, owner, own_key)


def is_absent(section: Mapping[str, Any], parent: str) -> bool:
    """Whether it stands for an option that is not there: nothing is in it, it is switched off, or it is the section of
    an objective that holds no more than what other groups have left in it."""
    return not section or section.get("enabled") is False or (parent == "objectives" and "_target_" not in section)


def same(one: Any, other: Any) -> bool:
    """Also of another type: true is not 1."""
    return json.dumps(canonical(one), default=str) == json.dumps(canonical(other), default=str)


def canonical(value: Any) -> Any:
    """One spelling of a number: 3 and 3.0 configure the same run."""
    if isinstance(value, list | tuple):
        return [canonical(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value
