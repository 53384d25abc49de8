"""What a run is beside its configuration: its images, the weights it is taught by, and how many ranks compute it.

Data and weights are known by what they hold, not by their names or by where they lie. Nothing here imports torch: the
driver of a multirun and the plan of a study name runs as well.
"""

import functools
import inspect
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from dinoswap.config.guests import used_guests
from dinoswap.config.schema import ConfigError, construct_option, option_class
from dinoswap.config.sections import LOADING, loading_settings
from dinoswap.da3.weights import weight_file
from dinoswap.data.held_out import HeldOut
from dinoswap.data.images import ImageSource
from dinoswap.files.digest import sha256

IMAGES, WEIGHTS, RANKS = "data.images", "da3.weights", "ranks"
"""Keys of facts among those of the configuration."""
SHORT = 16
"""Characters of a digest that tell one from another."""


@dataclass(frozen=True)
class DataFacts:
    """The section `data` of run.json: how many images there are to train on and to test with, and a digest of them."""

    path: str | None
    images: int
    test_images: int
    fingerprint: str

    @classmethod
    def of(cls, cfg: Mapping[str, Any], source: ImageSource) -> "DataFacts":
        path, test = cfg["data"].get("path"), source.test()
        images, test_images = len(source.train()), 0 if test is None else len(test)
        where = None if path is None else str(Path(str(path)).expanduser().absolute())
        return cls(where, images, test_images, source.fingerprint())


def build_source(cfg: Mapping[str, Any]) -> ImageSource:
    """Where the images are: the option of the `data` group. One that decodes images is told how, and one that does not
    hold out test images itself has them held out where that is asked for."""
    own, loading = inspect.signature(option_class(cfg["data"], "data")).parameters, loading_settings(cfg)
    section = {k: v for k, v in cfg["data"].items() if k not in LOADING or k in own}
    given = {"decoding": loading.decoding} if "decoding" in own else {}
    source = cast(ImageSource, construct_option(section, "data", **given))
    return HeldOut(source, loading.test_fraction) if loading.test_fraction and "test_fraction" not in own else source


def data_facts(cfg: Mapping[str, Any]) -> DataFacts:
    """Opened once in a process for each way of naming the data."""
    return _data_facts(json.dumps({**cfg["data"], "batch_size": 1, "workers": 0}, sort_keys=True))


@functools.cache
def _data_facts(section: str) -> DataFacts:
    cfg = {"data": json.loads(section)}
    return DataFacts.of(cfg, build_source(cfg))


def facts(cfg: Mapping[str, Any], data: DataFacts, ranks: int = 1) -> dict[str, Any]:
    """What joins the identity of a configuration. Raises ConfigError, OSError for weights that cannot be read."""
    found: dict[str, Any] = {IMAGES: data.fingerprint[:SHORT], **weight_facts(cfg), **used_guests(cfg)}
    if ranks > 1 and depends_on_ranks(cfg):
        found[RANKS] = ranks
    return found


def weight_facts(cfg: Mapping[str, Any]) -> dict[str, str]:
    """Digests of the files that frozen networks have their weights from."""
    section = cfg["da3"]
    if not (section.get("enabled") and section.get("ckpt_path")):
        return {}
    try:
        return {WEIGHTS: sha256(weight_file(section["ckpt_path"]))[:SHORT]}
    except ValueError as error:
        raise ConfigError(f"da3.{error}") from error


def depends_on_ranks(cfg: Mapping[str, Any]) -> bool:
    """Whether a rank's own images decide a term: the neighbours of KoLeo, and the mean of iBOT's tokens, of which
    there are not as many on every rank, where the centre is the mean of these means."""
    objectives = cfg["objectives"]
    neighbours = any(_is(section, "KoLeo") and not section.get("gather") for section in objectives.values())
    return neighbours or _is((objectives.get("ibot") or {}).get("targets"), "Centering")


def _is(section: Any, name: str) -> bool:
    return isinstance(section, Mapping) and str(section.get("_target_")).rpartition(".")[2] == name
