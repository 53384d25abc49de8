"""Determines what identifies a run beside its configuration: its images, its pretrained weights, and the number of
ranks.

Data and weights are identified by their content, not by their names or locations. Nothing here imports torch: the
driver of a multirun and the plan of a study name runs as well, and should not wait for it.
"""

import functools
import inspect
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from dinoswap.config.guests import used_guests
from dinoswap.config.identity import class_name
from dinoswap.config.schema import ConfigError, construct_option, option_class
from dinoswap.config.sections import build_start, loading_settings, source_section
from dinoswap.data.held_out import HeldOut
from dinoswap.data.images import ImageSource
from dinoswap.files.weights import digest_of, weight_file

IMAGES, RANKS, START = "data.images", "ranks", "start.weights"
WEIGHTS = {"da3.weights": "da3.ckpt_path", "objectives.gram.weights": "objectives.gram.path"}
"""Keys of facts among those of the configuration; those of frozen weights with the keys of the paths of their files."""
PATHS_OF_WEIGHTS = {**WEIGHTS, START: "start.path"}
"""Keys of the digests of all weights that a run reads, with the keys of the paths of their files."""
GRAM = ("EmaGram", "SnapshotGram")
"""Classes of the group `gram`."""
SHORT = 16
"""The number of hexadecimal digits of a digest that are kept."""


@dataclass(frozen=True)
class DataFacts:
    """Holds the section `data` of run.json: the path, the number of images to train on and to test with, and their
    fingerprint."""

    path: str | None
    images: int
    test_images: int
    fingerprint: str

    @classmethod
    def of(cls, cfg: Mapping[str, Any], source: ImageSource) -> "DataFacts":
        """Counts and fingerprints the images of `source`, which `cfg` describes."""
        path, test = cfg["data"].get("path"), source.test()
        images, test_images = len(source.train()), 0 if test is None else len(test)
        absolute = None if path is None else str(Path(str(path)).expanduser().absolute())
        return cls(absolute, images, test_images, source.fingerprint())


def build_source(cfg: Mapping[str, Any]) -> ImageSource:
    """Builds the source of images that the option of the `data` group describes. One that decodes images gets the
    decoding settings. Where `data.test_fraction` is set and the option does not hold out test images itself, it is
    wrapped in HeldOut. Raises ConfigError when the option or its settings are wrong."""
    loading, section = loading_settings(cfg), source_section(cfg)
    parameters = inspect.signature(option_class(section, "data")).parameters
    decoding_arguments = {"decoding": loading.decoding} if "decoding" in parameters else {}
    source = cast(ImageSource, construct_option(section, "data", **decoding_arguments))
    if loading.test_fraction and "test_fraction" not in section:
        return HeldOut(source, loading.test_fraction)
    return source


def data_facts(cfg: Mapping[str, Any]) -> DataFacts:
    """Returns the facts about the data of a config. A data set is opened once per process, since the result is
    cached."""
    return _data_facts(json.dumps({**cfg["data"], "batch_size": 1, "workers": 0}, sort_keys=True))


@functools.cache
def _data_facts(section: str) -> DataFacts:
    """Returns the facts of the images of the section `data`, which is given as JSON."""
    cfg = {"data": json.loads(section)}
    return DataFacts.of(cfg, build_source(cfg))


def facts(cfg: Mapping[str, Any], data: DataFacts, ranks: int = 1) -> dict[str, Any]:
    """Returns the entries that join the identity of a configuration: fingerprints of data and weights, versions of
    guests, and the number of ranks where the result depends on it. Raises ConfigError for a wrong `da3` section, and
    OSError for weights that cannot be read."""
    deciding = {key: section for key, section in cfg.items() if key != "tracker"}
    entries: dict[str, Any] = {IMAGES: data.fingerprint[:SHORT], **weight_facts(cfg), **used_guests(deciding)}
    if ranks > 1 and depends_on_ranks(cfg):
        entries[RANKS] = ranks
    return entries


def weight_facts(cfg: Mapping[str, Any]) -> dict[str, str]:
    """Returns the digest of all weights that a config names. Raises ConfigError where they are not there, and OSError
    or CheckpointError where they cannot be read."""
    digests = {}
    for key, path_key in WEIGHTS.items():
        section = functools.reduce(lambda parent, name: parent.get(name) or {}, path_key.split(".")[:-1], cfg)
        name = path_key.rpartition(".")[2]
        if section.get("enabled", True) and section.get(name):
            try:
                digests[key] = digest_of(weight_file(section[name], name))[:SHORT]
            except ValueError as error:
                raise ConfigError(f"{path_key.rpartition('.')[0]}.{error}") from error
    try:
        if digest := build_start(cfg).digest():
            digests[START] = digest[:SHORT]
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(f"start.{error}") from error
    return digests


def depends_on_ranks(cfg: Mapping[str, Any]) -> bool:
    """Tells whether a term of the loss is computed from the images of one rank alone. KoLeo without `gather` compares
    the images of a rank with each other, unless they are compared in groups of a fixed number anyway. With Centering,
    iBOT averages the token means of the ranks, which weighs tokens by the number that their rank has. Gram anchoring
    without `per_image` compares the tokens of a rank with each other."""
    objectives = cfg["objectives"]
    sections = objectives.values()
    neighbours = any(
        _is(section, "KoLeo") and not section["gather"] and section["group"] is None for section in sections
    )
    tokens = any(_is(section, *GRAM) and not section["per_image"] for section in sections)
    return neighbours or tokens or _is((objectives.get("ibot") or {}).get("targets"), "Centering")


def _is(section: Any, *names: str) -> bool:
    """Tells whether a section describes an option whose class has one of these names."""
    return isinstance(section, Mapping) and "_target_" in section and class_name(section) in names
