"""Finds out which Depth Anything 3 network an official file holds, and reads the weights of its backbone.

The file is a `model.safetensors`, or the index of its parts; given its folder, config.json is read too. The network is
known from names and shapes before any tensor is read, and only the tensors of the backbone are read.
"""

import json
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from dinoswap.files.weights import digest_of, parts_of, weight_file
from dinoswap.nn.weights.names import misfits, some
from dinoswap.teacher.depth_anything.variants import (
    PREFIXES,
    VARIANTS,
    Architecture,
    Shapes,
    difference,
    from_config,
    from_shapes,
    names_of,
    variant_named,
)


@dataclass(frozen=True)
class Source:
    """The architecture of a teacher, the variants that have it, and the file of its weights (None for random ones)."""

    architecture: Architecture
    names: tuple[str, ...]
    path: Path | None = None
    prefix: str = ""

    @property
    def name(self) -> str:
        """The variants that the network can be, or its size where it is not released."""
        spec = self.architecture
        return " or ".join(self.names) or f"unreleased, {spec.depth} blocks of width {spec.embed_dim}"

    @property
    def identity(self) -> str:
        """The name and the hash of the weights, or that they are random."""
        return f"{self.name} " + (f"sha256:{digest_of(self.path)[:16]}" if self.path else "random weights")

    @property
    def notice(self) -> str:
        """Licence and origin of the weights, in one sentence."""
        if self.path is None:
            return (
                f"teacher: Depth Anything 3 {self.name} with RANDOM WEIGHTS, of use for tests alone; set ckpt_path to "
                "an official model.safetensors for the trained ones"
            )
        licences = dict.fromkeys(VARIANTS[name].licence for name in self.names)
        return f"teacher: Depth Anything 3 {self.name} of {self.path}, licence: {' or '.join(licences) or 'not known'}"


def locate(ckpt_path: str, variant: str | None, num_heads: int | None) -> Source:
    """Returns the network in the file or folder `ckpt_path`, or the one to be made with random weights where it is "".
    `variant` says which one it has to be, `num_heads` what the weights do not show. Raises ValueError where the file
    holds another network, or none."""
    if variant is not None:
        variant_named(variant)
    if not ckpt_path:
        return _random(variant or "small", num_heads)
    path = weight_file(ckpt_path)
    shapes = read_shapes(path)
    prefix = _prefix(variant, shapes, path)
    try:
        config = _read_config(path.with_name("config.json")) if Path(ckpt_path).is_dir() else {}
        architecture = from_config(config, prefix, from_shapes(below(prefix, shapes), num_heads))
        names = names_of(architecture, prefix, config.get("model_name"))
    except ValueError as error:
        raise ValueError(f"ckpt_path={path}: {error}") from error
    if variant is not None:
        _require_variant(variant, Source(architecture, names, path))
        names = (variant,)
    return Source(architecture, names, path, prefix)


def below(prefix: str, shapes: Shapes) -> Shapes:
    """Returns the shapes whose names begin with `prefix`, by the names without it."""
    return {name.removeprefix(prefix): shape for name, shape in shapes.items() if name.startswith(prefix)}


def _random(name: str, num_heads: int | None) -> Source:
    """Returns the source of random weights for a variant. Raises ValueError for another number of heads than it has."""
    architecture = VARIANTS[name].architecture
    if num_heads not in (None, architecture.num_heads):
        raise ValueError(f"num_heads={num_heads}: {name} has {architecture.num_heads}; leave it null")
    return Source(architecture, (name,))


def _require_variant(variant: str, source: Source) -> None:
    """Raises ValueError where the file holds another variant."""
    if variant in source.names:
        return
    details = difference(source.architecture, VARIANTS[variant].architecture) or "as its config.json says"
    raise ValueError(
        f"variant={variant}: {source.path} holds another one, {source.name} ({details}); "
        f"set variant={source.names[0] if source.names else 'null'}, or give the file of {variant}"
    )


def read_shapes(path: Path) -> dict[str, list[int]]:
    """Returns the shape of every tensor in a safetensors file or its parts, without reading the tensors. Raises
    ValueError for another file."""
    shapes: dict[str, list[int]] = {}
    for part in parts_of(path):
        try:
            with safe_open(part, framework="pt") as file:
                names = file.keys()
                shapes |= {name: file.get_slice(name).get_shape() for name in names}
        except SafetensorError as error:
            raise ValueError(f"ckpt_path={part}: not a whole safetensors file ({error}); download it again") from error
    return shapes


def _prefix(variant: str | None, shapes: Shapes, path: Path) -> str:
    """Returns the prefix of the backbone's names. Raises ValueError where the file has no such backbone."""
    present = [prefix for prefix in PREFIXES if any(name.startswith(prefix) for name in shapes)]
    expected = PREFIXES[0] if variant is None else VARIANTS[variant].prefix
    if expected in present:
        return expected
    if not present:
        kinds = {".".join(name.split(".")[:3]) for name in shapes}
        raise ValueError(
            f"ckpt_path={path}: no Depth Anything 3 backbone in it: no name begins with {' or '.join(PREFIXES)}; "
            f"there are {some(kinds) or 'none'}; give an official model.safetensors"
        )
    if expected == PREFIXES[0]:
        nested = [name for name, known in VARIANTS.items() if known.prefix in present]
        raise ValueError(f"variant={variant or 'null'}: {path} holds nested networks; set {' or '.join(nested)}")
    raise ValueError(f"variant={variant}: {path} has no name that begins with {expected}; set variant=null")


def _read_config(path: Path) -> dict[str, Any]:
    """Returns an official config.json, {} where there is none. Raises ValueError where it is no JSON object."""
    if not path.exists():
        return {}
    try:
        config = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"its config.json is not JSON ({error}); give model.safetensors itself") from error
    if not isinstance(config, dict):
        raise ValueError("its config.json is no mapping; give model.safetensors itself")
    return config


def read_weights(path: Path, prefix: str, backbone_state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns the tensors below `prefix`, in float32. Raises ValueError, with the differences, unless names and shapes
    are exactly those of the state dict `backbone_state`."""
    state: dict[str, Tensor] = {}
    with ExitStack() as opened:
        for part in parts_of(path):
            file = opened.enter_context(safe_open(part, framework="pt"))
            names = file.keys()
            state |= {name.removeprefix(prefix): file.get_tensor(name) for name in names if name.startswith(prefix)}
        if problems := _problems(state, backbone_state):
            raise ValueError(
                f"ckpt_path={path}: the backbone does not fit: {some(problems)}; give the whole official file"
            )
        # A copy: the file's tensors are maps of the file, at any alignment, and change with it.
        return {name: tensor.to(torch.float32, copy=True) for name, tensor in state.items()}


def _problems(state: Mapping[str, Tensor], backbone_state: Mapping[str, Tensor]) -> list[str]:
    """Returns what keeps the tensors of a file from being the backbone's: names, shapes, and types that are not
    floating point."""
    integers = [name for name, value in state.items() if not value.is_floating_point()]
    return misfits(backbone_state, state) + [f"{name} is {state[name].dtype}, not floating point" for name in integers]
