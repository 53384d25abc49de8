"""Finds one backbone's tensors in a .pth or .safetensors file, and what stands beside them.

Checkpoints of trainings nest state dicts, of a student and a teacher, and wrappers of networks put prefixes before each
name, in any order: module.backbone., teacher.backbone._orig_mod. and the like. The metadata of a safetensors file that
this package wrote states the arguments of VisionTransformer that tensors do not show.
"""

import argparse
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from dinoswap.files.weights import INDEX, metadata_of, part_of_tensors
from dinoswap.nn.weights.names import some

TRANSPARENT = re.compile(r"(?:^|(?<=\.))(?:module|_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
"""What wrappers of torch put into names: those of data parallel, compiled, sharded and recomputed networks."""
TEACHER, STUDENT = "teacher", "student"
AROUND = {TEACHER, STUDENT, "model", "state_dict", "backbone", "dinov2", "dinov2_with_registers", "vit"}
"""Names under which trainings and classifiers keep a backbone."""
CLASS_TOKENS = ("embeddings.cls_token", "cls_token")
"""Names of the class token, by which a backbone is found among other networks."""
STATED = (
    "num_heads", "interpolate_offset", "interpolate_antialias", "norm_eps", "key_bias", "position", "img_size",
    "patch_size", "stem",
)  # fmt: skip
"""What the metadata of a file may state: arguments of VisionTransformer, as JSON."""
LAYOUT, OWN = "layout", "dinoswap"
"""Key and value in the metadata of a file whose tensors have the names of `vit`."""


@dataclass(frozen=True)
class WeightFile:
    """A backbone's tensors by the names of the file at `path`, without what wraps them. `stated` are arguments of
    VisionTransformer that are known beside them; `own` says that the names are those of `vit`, by its metadata."""

    path: Path
    tensors: dict[str, Tensor]
    stated: dict[str, Any]
    own: bool = False
    notes: list[str] = field(default_factory=list)


def read_file(path: Path) -> WeightFile:
    """Reads the backbone in a file, with what its metadata states: of a student and a teacher the teacher's. Raises
    ValueError where there is none or several, and for a file of anything but tensors."""
    content = read_weights(path)
    state = dict(_flat(content))
    prefixes = sorted(_prefixes(state), key=_rank)
    if not prefixes:
        raise ValueError(
            f"{path}: no cls_token among its keys ({some(map(str, content))}); give the weights of a backbone"
        )
    if len(prefixes) > 1 and _rank(prefixes[0]) == _rank(prefixes[1]):
        raise ValueError(f"{path}: holds several backbones ({some(prefixes)}); give a file with one")
    prefix = prefixes[0]
    tensors = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    notes = ["holds a student and no teacher: the student's backbone is read"] if _rank(prefix) > 0 else []
    metadata = metadata_of(path)
    stated = {name: metadata[name] for name in STATED if name in metadata}
    return WeightFile(path, tensors, stated, metadata.get(LAYOUT) == OWN, notes)


def _flat(state: Mapping[str, Any], place: str = "") -> Iterator[tuple[str, Tensor]]:
    """Yields the tensors of nested state dicts by one name each."""
    for key, value in state.items():
        if isinstance(value, Tensor):
            yield TRANSPARENT.sub("", f"{place}{key}"), value
        elif key in AROUND and isinstance(value, Mapping):
            yield from _flat(value, f"{place}{key}.")


def _prefixes(state: Mapping[str, Tensor]) -> set[str]:
    """Returns what stands before the names of each backbone."""
    prefixes = {name.removesuffix(token) for name in state for token in CLASS_TOKENS if name.endswith(token)}
    return {prefix for prefix in prefixes if not prefix or (prefix[-1] == "." and {*prefix[:-1].split(".")} <= AROUND)}


def _rank(prefix: str) -> int:
    """Returns -1 for a backbone that is a teacher's, 1 for a student's, 0 for one of neither."""
    words = prefix.split(".")
    return (STUDENT in words) - (TEACHER in words)


def read_weights(path: Path) -> dict[str, Any]:
    """Returns the dict in a .pth or .safetensors file, or in the parts of an index, read without executing code from
    it. Raises ValueError for another file, and OSError for one that cannot be read."""
    if path.name == INDEX:
        return _read_parts(path)
    try:
        if path.suffix == ".safetensors":
            return dict(load_file(path))
        with torch.serialization.safe_globals([argparse.Namespace]):  # the arguments that training checkpoints keep
            state = torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # of a damaged file torch's reader raises nearly any
        raise ValueError(
            f"{path}: not a whole file of tensors alone ({type(error).__name__}); save its state dict again"
        ) from error
    if not isinstance(state, dict):
        raise ValueError(f"{path}: holds a {type(state).__name__}; a state dict is needed")
    return state


def _read_parts(index: Path) -> dict[str, Any]:
    """Returns the tensors in the parts that an index lists. Raises ValueError where they hold other tensors."""
    listed, tensors = part_of_tensors(index), dict[str, Any]()
    for part in sorted(set(listed.values())):
        tensors |= read_weights(part)
    if other := sorted(listed.keys() ^ tensors.keys()):
        raise ValueError(f"{index}: its parts have other tensors than it lists ({some(other)}); give all of one model")
    return tensors
