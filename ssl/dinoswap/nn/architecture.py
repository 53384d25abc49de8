"""Compares the backbone that weights were trained in with the one that a config describes, and fits weights into it.

A backbone is described by the arguments of VisionTransformer. What its configuration has beyond the weights can begin
as the weights mean it: a LayerScale of 1, biases of 0, a final norm of its own that is a copy of the common one.
"""

import copy
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from dinoswap.nn.sizes import SIZES, size_arguments
from dinoswap.nn.vit import VisionTransformer
from dinoswap.nn.weights.load import resampled_table
from dinoswap.position.base import Grid
from dinoswap.position.rope import TYPES, Rope

Config = Mapping[str, Any]

LEARNED: dict[str, Any] = {"option": "learned"}
PLAIN: dict[str, Any] = {
    "ffn_align": 8,
    "key_bias": True,
    "norm": "layernorm",
    "norm_eps": 1e-6,
    "cls_norm": False,
    "local_cls_norm": False,
    "interpolate_offset": 0.1,
    "interpolate_antialias": False,
    "stem": [],
}
"""What DINOv2's networks have where it is not said."""
SIZED = ("embed_dim", "depth", "num_heads", "ffn")
"""What `model.size` stands for."""
SAME = ("patch_size", "stem", "registers", "norm", "norm_eps")
OF_TABLE = ("interpolate_offset", "interpolate_antialias")
OF_ROTATION = ("base", "periods", "normalise")
ADDED = {
    "layerscale": "LayerScale starts at 1",
    "qkv_bias": "the biases of queries, keys and values start at 0",
    "key_bias": "the bias of keys starts at 0",
    "cls_norm": "the own norm of class token and registers starts as the common one",
    "local_cls_norm": "the own norm of local class tokens starts as the common one",
}
"""What a config may have and the weights may not, and how it then starts."""


class Difference(NamedTuple):
    """A key whose value is `configured` and would have to be `required` for the backbone to be that of the weights.
    `note` says what happens where it is not; None where it has to be."""

    key: str
    configured: Any
    required: Any
    note: str | None = None


def configured(config: Config) -> dict[str, Any]:
    """Returns the arguments of VisionTransformer in the sections `model` and `position` of a config, which may be of an
    older version."""
    model, position = config["model"], config.get("position") or {}
    sized = size_arguments(model["size"], **{name: model.get(name) for name in SIZED})
    rotary = str(position.get("_target_", "")).endswith(f".{Rope.__name__}")
    rotation = {name: position[name] for name in (*OF_ROTATION, "dtype")} if rotary else {}
    return {**PLAIN, **model, **sized, "position": {"option": "rope", **rotation} if rotary else LEARNED}


def differences(config: Config, weights: Mapping[str, Any]) -> Iterator[Difference]:
    """Yields what keeps the backbone of a config from being the one with the arguments `weights`."""
    ours, theirs = configured(config), {**PLAIN, **weights, "position": _described(weights.get("position"))}
    yield from _of_size(config["model"], ours, theirs)
    for name in SAME:
        if ours[name] != theirs[name]:
            yield Difference(f"model.{name}", ours[name], theirs[name])
    if not theirs["qkv_bias"]:
        theirs["key_bias"] = ours["key_bias"]  # it is a part of those
    for name, note in ADDED.items():
        has, had = bool(ours[name]), bool(theirs[name])
        if has != had:
            yield Difference(f"model.{name}", ours[name], theirs[name], note if has else None)
    yield from _of_position(ours, theirs)


def _of_size(model: Config, ours: Config, theirs: Config) -> Iterator[Difference]:
    """Yields what differs in width, depth, heads and the feed-forward layers: the name of a size where it says all."""
    size = next((name for name in SIZES if all(size_arguments(name)[key] == theirs[key] for key in SIZED)), None)
    other = [name for name in SIZED if ours[name] != theirs[name]]
    if other and size and all(model.get(name) is None for name in SIZED):
        yield Difference("model.size", model["size"], size)
    else:
        yield from (Difference(f"model.{name}", ours[name], theirs[name]) for name in other)
    if _ffn_width({**ours, **{name: theirs[name] for name in SIZED}}) != _ffn_width(theirs):
        for name in ("mlp_ratio", "ffn_align"):
            if ours[name] != theirs[name]:
                yield Difference(f"model.{name}", ours[name], theirs[name])


def _ffn_width(network: Config) -> int:
    """Returns the hidden width of the feed-forward layers of a network."""
    hidden = int(network["embed_dim"] * network["mlp_ratio"])
    align = network["ffn_align"]
    return hidden if network["ffn"] == "mlp" else -(-int(hidden * 2 / 3) // align) * align  # see block.SwiGLU


def _of_position(ours: Config, theirs: Config) -> Iterator[Difference]:
    """Yields what differs in the positions. How a table is resampled, and the type of rotations, may be chosen."""
    position, their_position = ours["position"], theirs["position"]
    if position["option"] != their_position["option"]:
        yield Difference("position", position["option"], their_position["option"])
        return
    for name in OF_TABLE if position == LEARNED else ():
        if ours[name] != theirs[name]:
            resampled = f"tables of these weights are resampled with {name}={typed(theirs[name])}"
            yield Difference(f"model.{name}", ours[name], theirs[name], resampled)
    for name in (name for name in their_position if name != "option"):
        if position[name] != their_position[name]:
            note = f"these weights are used with {their_position[name]}" if name == "dtype" else None
            yield Difference(f"position.{name}", position[name], their_position[name], note)


def _described(position: Any) -> dict[str, Any]:
    """Returns a position, as Weights or `configured` have it, as the section of its option."""
    if not isinstance(position, Rope):
        return position or LEARNED
    (dtype,) = (name for name, type_ in TYPES.items() if type_ == position.dtype)
    return {
        "option": "rope",
        "base": position.base,
        "periods": position.limits,
        "normalise": position.normalise,
        "dtype": dtype,
    }


# --- what comes of them -----------------------------------------------------------------------------------------------


def completed(config: Config, weights: Mapping[str, Any]) -> Config:
    """Returns a config whose backbone is that of the weights. Raises ValueError where another option of `position` has
    to be chosen."""
    changed = copy.deepcopy(dict(config))
    for key, _, required, _ in differences(config, weights):
        section, _, name = key.rpartition(".")
        if not section:
            raise ValueError(
                f"{key}={required}: has to be chosen for these weights, beside start.architecture=from_path"
            )
        changed[section][name] = required
    return changed


def require_same(config: Config, weights: Mapping[str, Any], whose: str, hint: str) -> list[str]:
    """Returns lines on what the backbone of a config has otherwise than the weights and may have. Raises ValueError
    with all that it may not have, and what to give; `whose` begins the message, `hint` ends it."""
    if not weights:
        return ["its run's config.yaml is not beside it: that heads, norms and positions are the same is not checked"]
    mismatches = list(differences(config, weights))
    if wrong := [mismatch for mismatch in mismatches if mismatch.note is None]:
        give = " ".join(f"{mismatch.key}={typed(mismatch.required)}" for mismatch in wrong)
        now = " ".join(f"{mismatch.key}={typed(mismatch.configured)}" for mismatch in wrong)
        raise ValueError(f"{whose}: is of another network than {now}; give {give}{hint}")
    return [f"{mismatch.key}={typed(mismatch.configured)}: {mismatch.note}" for mismatch in mismatches]


def typed(value: Any) -> str:
    """Returns a value as it is typed in an override."""
    words = {None: "null", True: "true", False: "false"}
    return words[value] if value is None or isinstance(value, bool) else str(value).replace(" ", "")


def fitted(network: nn.Module, tensors: dict[str, Tensor], grid: Grid | None = None) -> str:
    """Fits tensors for the backbones in a network, in place: tables of positions are resampled from `grid`, or from a
    square, and what `ADDED` says is added. Returns in words what was resampled."""
    words = ""
    for name, backbone in network.named_modules():
        if not isinstance(backbone, VisionTransformer):
            continue
        prefix = f"{name}." if name else ""
        table = tensors.get(f"{prefix}pos_embed")
        if table is not None and backbone.pos_embed is not None:
            resampled = resampled_table(backbone, table, grid)
            if not torch.equal(resampled, table):
                words = f", its position table resampled from {table.shape[1] - 1} to {resampled.shape[1] - 1} patches"
            tensors[f"{prefix}pos_embed"] = resampled
        for key, own in backbone.state_dict().items():
            added = _added(key, own, tensors, prefix)
            if f"{prefix}{key}" not in tensors and added is not None:
                tensors[f"{prefix}{key}"] = added
    return words


def _added(key: str, own: Tensor, tensors: Mapping[str, Tensor], prefix: str) -> Tensor | None:
    """Returns what the tensor `key` of a backbone begins with where weights do not have it, None where they must."""
    if key.endswith(".gamma"):
        return torch.ones_like(own)
    if key.endswith(".attn.qkv.bias"):
        return torch.zeros_like(own)
    norm, _, kind = key.partition(".")
    return tensors.get(f"{prefix}norm.{kind}") if norm in ("cls_norm", "local_cls_norm") else None
