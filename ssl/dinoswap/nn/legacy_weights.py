"""Converts checkpoints of the legacy trainer to our layout and back: the same tensors under other names.

A legacy checkpoint nests three state dicts, `student` and `teacher` (backbone, classhead, patchhead) and, where
prototypes were trained, `prototype_bank`, beside optimisers, arguments and generator states. The networks are saved
inside their DDP wrappers, so that every name begins with "module.". Ours is one flat dict with the names that
`SelfDistillation` gives: student.backbone.cls_token, student.prototype_bank.weight, teacher.dino_head.mlp.0.bias.
Follows models/ and training/trainer.py of the legacy trainer @ 67f6a87.
"""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.serialization import safe_globals

from dinoswap.nn.weights.files import read_weights
from dinoswap.nn.weights.names import some

NETWORKS = ("student", "teacher")
BANK = "prototype_bank"  # in our layout a part of the student
WRAPPER = "module."

TOKENS = ("cls_token", "register_tokens", "mask_token", "pos_embed")
LINEARS = {  # in each block; legacy name: ours
    "norm1": "norm1",
    "qkv": "attn.qkv",
    "proj": "attn.proj",
    "norm2": "norm2",
    "mlp.w12": "mlp.w12",
    "mlp.w3": "mlp.w3",
}
HEADS = {"classhead": "dino_head", "patchhead": "ibot_head"}
REMEDY = (
    "a legacy network has SwiGLU, LayerScale, registers, biases everywhere and two heads of three linear maps without "
    "batch norm; another one cannot be converted"
)

UNREAD = (
    "argparse.Namespace",
    "numpy.ndarray",
    "numpy.dtype",
    *(f"numpy.{core}.multiarray.{name}" for core in ("core", "_core") for name in ("_reconstruct", "scalar")),
)


class Unread:
    """A placeholder for the arguments and NumPy values in a checkpoint, which the conversion does not need."""

    def __init__(self, *_: object) -> None:
        pass

    def __setstate__(self, _: object) -> None:
        pass


def read_legacy(path: Path) -> dict[str, Any]:
    """Returns the entries of a checkpoint file, read without executing code from it. Raises ValueError for another
    file."""
    with safe_globals([(Unread, name) for name in UNREAD]):
        return read_weights(path)


def from_legacy(checkpoint: Mapping[str, Any]) -> dict[str, Tensor]:
    """Returns the networks of a legacy checkpoint in our layout; its other entries are ignored.

    Tensors are shared, not copied. Raises ValueError naming the parameters that are missing or unknown.
    """
    parts = {name: checkpoint[name] for name in (*NETWORKS, BANK) if name in checkpoint}
    _require_network(parts, checkpoint)
    converted: dict[str, Tensor] = {}
    for part, state in parts.items():
        if not isinstance(state, Mapping):
            raise ValueError(f"{part}: holds a {type(state).__name__}; a state dict is needed")
        plain = {key.removeprefix(WRAPPER): value for key, value in state.items()}
        converted |= _renamed(plain, _names(part, plain), part)
    return converted


def to_legacy(weights: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """Returns the networks that `from_legacy` gives in the layout that the legacy trainer loads.

    Tensors are shared, not copied. Raises ValueError naming the parameters that are missing or unknown.
    """
    parts: dict[str, dict[str, Tensor]] = {}
    for key, value in weights.items():
        part = BANK if key.startswith(f"student.{BANK}.") else key.split(".")[0]
        parts.setdefault(part, {})[key] = value
    _require_network(parts, weights)
    converted = {}
    for part, state in parts.items():
        names = {ours: WRAPPER + theirs for theirs, ours in _names(part, state).items()}
        converted[part] = _renamed(state, names, part)
    return converted


def _names(part: str, keys: Iterable[str]) -> dict[str, str]:
    """Returns {legacy name: our name} of all parameters of a part. Its blocks are those that occur in `keys`."""
    if part == BANK:
        return {f"proto_layer.{kind}": f"student.{BANK}.{kind}" for kind in ("weight", "bias")}
    if part not in NETWORKS:
        return {}
    blocks = map(int, re.findall(r"backbone\.blocks\.(\d+)\.", " ".join(keys)))
    return {theirs: f"{part}.{ours}" for theirs, ours in _network_names(depth=max(blocks, default=-1) + 1).items()}


def _network_names(depth: int) -> dict[str, str]:
    """Returns {legacy name: our name} of all parameters of a student or teacher with `depth` blocks, without the
    network's own name."""
    names = {f"backbone.{token}": f"backbone.{token}" for token in TOKENS}
    linears = {"backbone.patch_embed.project": "backbone.patch_embed.proj", "backbone.norm": "backbone.norm"}
    for block in (f"backbone.blocks.{index}" for index in range(depth)):
        names |= {f"{block}.gamma_{number}": f"{block}.ls{number}.gamma" for number in (1, 2)}
        linears |= {f"{block}.{theirs}": f"{block}.{ours}" for theirs, ours in LINEARS.items()}
    for theirs, ours in HEADS.items():
        names |= {f"{theirs}.last_layer.weight_{part}": f"{ours}.last_layer.weight_{part}" for part in "gv"}
        linears |= {f"{theirs}.mlp.{index}": f"{ours}.mlp.{index}" for index in (0, 2, 4)}
    return names | {
        f"{theirs}.{kind}": f"{ours}.{kind}" for theirs, ours in linears.items() for kind in ("weight", "bias")
    }


def _renamed(state: Mapping[str, Tensor], names: Mapping[str, str], part: str) -> dict[str, Tensor]:
    """Returns `state` with its keys renamed by `names`. Raises ValueError unless both have the same keys."""
    problems = [f"missing {key}" for key in names.keys() - state.keys()]
    problems += [f"unknown {key}" for key in state.keys() - names.keys()]
    if problems:
        raise ValueError(f"{part}: {some(problems)}; {REMEDY}")
    return {names[key]: value for key, value in state.items()}


def _require_network(parts: Mapping[str, Any], entries: Iterable[str]) -> None:
    """Raises ValueError where `parts` has neither a student nor a teacher; `entries` are listed in the message."""
    if not parts.keys() & set(NETWORKS):
        raise ValueError(f"neither student nor teacher among its entries ({some(entries)}); give a training checkpoint")
