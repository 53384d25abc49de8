"""The released Depth Anything 3 backbones, and the network that a config.json or a state dict describes.

A state dict shows every width, the depth, the kind of feed-forward layer and the first block with normed queries and
keys, where in every release the rotary embedding and the alternation of local and global blocks begin as well. It does
not show the number of heads of a network without such norms; every release has 64 channels a head.
Follows src/depth_anything_3/configs and model/dinov2/dinov2.py of ByteDance-Seed/Depth-Anything-3 @ 2c21ea8.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from dinoswap.nn.block import Ffn
from dinoswap.nn.sizes import SIZES, Size
from dinoswap.nn.weights.names import some

HEAD_DIM = 64
OFF = -1  # value of a start in config.json that means None
HEAD_NORM = re.compile(r"blocks\.(\d+)\.attn\.[qk]_norm\.")
NETS: dict[str, Size] = {"vits": "small", "vitb": "base", "vitl": "large", "vitg": "giant"}
"""The official names of `config.net.name`."""

APACHE = "Apache-2.0"
NON_COMMERCIAL = "CC BY-NC 4.0, for non-commercial use only"

Shapes = Mapping[str, Sequence[int]]


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """The architecture of a backbone. A start is the index of the first block with a feature, None without one."""

    embed_dim: int
    depth: int
    num_heads: int
    ffn: Ffn = "mlp"
    alt_start: int | None = None  # the camera token, and local and global blocks in turns
    qknorm_start: int | None = None
    rope_start: int | None = None
    cat_token: bool = False
    img_size: int = 518  # of the square position table
    patch_size: int = 14

    @property
    def token_dim(self) -> int:
        """Channels of the tokens of an out layer."""
        return 2 * self.embed_dim if self.cat_token else self.embed_dim

    def is_global(self, block: int) -> bool:
        """Tells whether the block attends across all views."""
        return self.alt_start is not None and block >= self.alt_start and block % 2 == 1


@dataclass(frozen=True, kw_only=True)
class Variant:
    """A released network: its architecture, its licence, and where it lies in the official files."""

    architecture: Architecture
    model_name: str  # in config.json
    licence: str
    prefix: str = "model.backbone.pretrained."  # of its keys in the file
    section: tuple[str, ...] = ("config", "net")  # of config.json


def _released(size: Size, start: int | None) -> Architecture:
    """Returns the architecture of a released network of this size, of whose blocks from `start` on every other one
    attends across views, none where it is None."""
    dim, depth, heads, ffn = SIZES[size]
    return Architecture(
        embed_dim=dim,
        depth=depth,
        num_heads=heads,
        ffn=ffn,
        alt_start=start,
        qknorm_start=start,
        rope_start=start,
        cat_token=start is not None,
    )


VARIANTS = {
    "small": Variant(architecture=_released("small", 4), model_name="da3-small", licence=APACHE),
    "base": Variant(architecture=_released("base", 4), model_name="da3-base", licence=APACHE),
    "large": Variant(architecture=_released("large", 8), model_name="da3-large", licence=NON_COMMERCIAL),
    "giant": Variant(architecture=_released("giant", 13), model_name="da3-giant", licence=NON_COMMERCIAL),
    "mono": Variant(architecture=_released("large", None), model_name="da3mono-large", licence=APACHE),
    "metric": Variant(architecture=_released("large", None), model_name="da3metric-large", licence=APACHE),
    "nested_giant": Variant(
        architecture=_released("giant", 13),
        model_name="da3nested-giant-large",
        licence=NON_COMMERCIAL,
        prefix="model.da3.backbone.pretrained.",
        section=("config", "anyview", "net"),
    ),
    "nested_metric": Variant(
        architecture=_released("large", None),
        model_name="da3nested-giant-large",
        licence=NON_COMMERCIAL,
        prefix="model.da3_metric.backbone.pretrained.",
        section=("config", "metric", "net"),
    ),
}


PREFIXES = tuple(dict.fromkeys(variant.prefix for variant in VARIANTS.values()))
"""Prefixes of all releases, that of a single network first."""


def variant_named(name: str) -> Variant:
    """Returns the variant of this name. Raises ValueError for an unknown name."""
    if name not in VARIANTS:
        raise ValueError(f"variant={name}: use one of {', '.join(VARIANTS)}, or null to read it off the weights")
    return VARIANTS[name]


def names_of(architecture: Architecture, prefix: str, model_name: str | None = None) -> tuple[str, ...]:
    """Returns the names of the variants that a network with keys of this prefix can be: that of a known `model_name`,
    else all of this architecture (two for mono and metric, none for a network that is not released). Raises ValueError
    for a `model_name` of another network."""
    stated = [name for name, known in VARIANTS.items() if (known.prefix, known.model_name) == (prefix, model_name)]
    for name in stated:
        _require_same(VARIANTS[name].architecture, architecture)
    same = [name for name, known in VARIANTS.items() if (known.prefix, known.architecture) == (prefix, architecture)]
    return tuple(stated or same)


def difference(one: Architecture, other: Architecture) -> str:
    """Returns 'embed_dim=384 instead of 768, ...' for each field in which `one` differs from `other`."""
    pairs = ((field.name, getattr(one, field.name), getattr(other, field.name)) for field in fields(Architecture))
    return ", ".join(f"{name}={value} instead of {reference}" for name, value, reference in pairs if value != reference)


def from_shapes(shapes: Shapes, num_heads: int | None = None) -> Architecture:
    """Returns the architecture of a state dict with these `shapes`. Raises ValueError where it is of no such backbone,
    or where the number of heads is neither shown nor given."""
    needed = {"cls_token": 3, "pos_embed": 3, "patch_embed.proj.weight": 4, "blocks.0.attn.qkv.weight": 2}
    if wrong := [name for name, dimensions in needed.items() if len(shapes.get(name, ())) != dimensions]:
        raise ValueError(f"missing {some(wrong)}, or of another shape: give an official model.safetensors, whole")
    dim, patch_size = shapes["cls_token"][-1], shapes["patch_embed.proj.weight"][-1]
    head_norms = {int(match[1]): shape[0] for name, shape in shapes.items() if (match := HEAD_NORM.match(name))}
    start = min(head_norms, default=None)
    return Architecture(
        embed_dim=dim,
        depth=1 + max(int(name.split(".")[1]) for name in shapes if name.startswith("blocks.")),
        num_heads=_heads(dim, None if start is None else head_norms[start], num_heads),
        ffn="swiglu" if any(".mlp.w12." in name for name in shapes) else "mlp",
        alt_start=start,
        qknorm_start=start,
        rope_start=start,
        cat_token=start is not None,
        img_size=math.isqrt(shapes["pos_embed"][-2] - 1) * patch_size,
        patch_size=patch_size,
    )


def _heads(dim: int, width: int | None, given: int | None) -> int:
    """Returns the number of heads for `dim` channels. `width` is the number of channels per head, where the weights
    show it. Raises ValueError where `given` contradicts them or nothing decides."""
    if width is not None and given not in (None, dim // width):
        raise ValueError(f"num_heads={given}: the weights have {dim // width} heads; leave it null")
    if width is None and given is None and dim % HEAD_DIM:
        raise ValueError(
            f"num_heads=null: the weights do not show it, and their width {dim} is no multiple of {HEAD_DIM} channels "
            "a head; give num_heads"
        )
    heads = dim // (width or HEAD_DIM) if given is None else given
    if heads < 1 or dim % heads:
        raise ValueError(f"num_heads={heads}: the width of the weights is {dim}; give a divisor of it")
    return heads


def from_config(config: Mapping[str, Any], prefix: str, shown: Architecture) -> Architecture:
    """Returns the architecture that an official config.json states for the backbone with keys of this prefix. What it
    does not state (the sizes, if `net.name` is not an official name; everything, if it has no such section) is taken
    from `shown`, the architecture of the weights. Raises ValueError where the two disagree."""
    net = _section(config, next(variant.section for variant in VARIANTS.values() if variant.prefix == prefix))
    if net is None:
        return shown

    def start(name: str) -> int | None:
        return None if net.get(name, OFF) == OFF else int(net[name])

    unseen: dict[str, Any] = {  # in the weights, which only show where q_norm starts
        "alt_start": start("alt_start"),
        "rope_start": start("rope_start"),
        "cat_token": bool(net.get("cat_token", True)),
    }
    stated = replace(shown, qknorm_start=start("qknorm_start"), **unseen)
    if net.get("name") in NETS:
        dim, depth, heads, ffn = SIZES[NETS[net["name"]]]
        stated = replace(stated, embed_dim=dim, depth=depth, num_heads=heads, ffn=ffn)
    _require_same(stated, replace(shown, **unseen))
    return stated


def _section(config: Any, keys: Sequence[str]) -> Mapping[str, Any] | None:
    """Returns the section of a config below these keys, None where there is none."""
    for key in keys:
        config = config.get(key) if isinstance(config, Mapping) else None
    return config if isinstance(config, Mapping) else None


def _require_same(stated: Architecture, shown: Architecture) -> None:
    """Raises ValueError where the config.json of a file states another architecture than its weights show."""
    if wrong := difference(stated, shown):
        raise ValueError(
            f"its config.json is of another network than the weights: {wrong}; give the two that belong together, or "
            "model.safetensors itself"
        )
