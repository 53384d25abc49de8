"""da3_*_io.npz with the weights and the description beside them: embeddings, raw outputs of every block, tokens and
special tokens of every out layer; and keys_*.json, the names and shapes in a published file.

The entries sN* and sN2* are the batch as views of one scene. They are nobody's here: each of our images is a scene.
"""

import json
from collections.abc import Iterator
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dinoswap.nn.weights.names import some
from dinoswap.teacher.depth_anything.backbone import DA3Backbone
from dinoswap.teacher.depth_anything.source import below, read_weights
from dinoswap.teacher.depth_anything.variants import OFF, PREFIXES, VARIANTS, Architecture, Shapes, from_shapes
from parity.rows import EXACT, FORWARD, Row, Scenarios, compare, placed

ROUNDING = 3
"""Tolerance in units of the official code's own error, float32 against float64: kernels of other CPUs round
differently, as do weights that LayerScale is multiplied into, and the final norm enlarges what rounding does to the
stream. Ours are off by at most 1.0 of these units with AVX-512, by 1.4 with AVX2, and by 2.3 with neither."""
SAME = 0.02
"""Share by which our float64 tokens may put the official error elsewhere than its authors measured it."""
BACKBONE = ".backbone.pretrained."


def scenarios(path: Path) -> Scenarios:
    """One for each size of images, in_<height>x<width>."""
    sizes = [key.removeprefix("in_") for key in np.load(path).files if key.startswith("in_")]
    return {size: partial(check_size, path, size) for size in sizes}


def architecture_of(hyper: dict[str, Any]) -> Architecture:
    """From the description's names and numbers, in which -1 is a start that there is none of."""
    known = {field.name: hyper[field.name] for field in fields(Architecture) if field.name in hyper}
    ffn = "mlp" if hyper["ffn_layer"] == "mlp" else "swiglu"
    starts = {key: None if value == OFF else value for key, value in known.items() if key.endswith("_start")}
    return Architecture(**(known | starts | {"ffn": ffn}))


def build_backbone(path: Path, described: dict[str, Any]) -> DA3Backbone:
    """The network of a safetensors file."""
    backbone = DA3Backbone(architecture_of(described["hyper"]))
    backbone.load_state_dict(read_weights(path, described["key_prefix"], backbone.state_dict()))
    return backbone


@torch.no_grad()
def outputs(backbone: DA3Backbone, images: Tensor, size: str) -> dict[str, Tensor]:
    """Ours, under the fixture's names."""
    depth = backbone.architecture.depth
    tokens = {
        f"s1_embed_{size}": backbone.prepare_tokens_with_masks(images),
        f"s1_blocks_{size}": torch.stack(list(backbone.stream(images))),
    }
    for block, (patches, special) in enumerate(backbone.out_layers(images, range(depth))):
        for ending in (f"_layer{block}", "")[: 2 if block == depth - 1 else 1]:
            tokens[f"s1_tokens_{size}{ending}"] = patches
            tokens[f"s1_cam_{size}{ending}"] = special
    return tokens


def check_size(path: Path, size: str, dtype: torch.dtype = torch.float32) -> Iterator[Row]:
    """Weights and description lie beside the npz, under its name without _io."""
    file, stem = np.load(path), path.with_name(path.stem.removesuffix("_io"))
    described = json.loads(stem.with_suffix(".json").read_text())
    backbone = build_backbone(stem.with_suffix(".safetensors"), described).to(dtype)
    images = placed(file[f"in_{size}"])
    ours = outputs(backbone, images.to(dtype), size)
    exact = outputs(backbone.double(), images.double(), size)
    known = described.get("checks", {}).get(f"max_abs_f32_vs_f64_{size}", 0.0)
    if known:  # that of the last tokens: our float64 is theirs where it finds the same, and then gives every other one
        error = compare("", exact[f"s1_tokens_{size}"], file[f"s1_tokens_{size}"], FORWARD).absolute
        yield compare(f"official float32 error of s1_tokens_{size}", error, known, SAME * known)
    for key in file.files:
        if key.startswith("s1_") and key.split("_")[2] == size:
            own = min(known, compare("", exact[key], file[key], FORWARD).absolute)
            yield compare(key, ours[key], file[key], max(FORWARD, ROUNDING * own), scale=1.0)


def key_scenarios(path: Path) -> Scenarios:
    """One for each backbone in the file, and one for names that would be of another; none for the table of sizes."""
    if path.stem == "keys_meta":
        return {}
    shapes = json.loads(path.read_text())
    prefixes = [prefix for prefix in PREFIXES if any(name.startswith(prefix) for name in shapes)]
    checks: Scenarios = {prefix.rstrip("."): partial(check_keys, path, prefix, shapes) for prefix in prefixes}
    return checks | {"remainder": partial(check_remainder, shapes)}


def check_keys(path: Path, prefix: str, shapes: Shapes) -> Iterator[Row]:
    """Names and shapes of our module, and the architecture of the variant that the file is named after."""
    theirs = below(prefix, shapes)
    architecture = from_shapes(theirs)
    with torch.device("meta"):
        ours = {name: list(value.shape) for name, value in DA3Backbone(architecture).state_dict().items()}
    yield none_of("missing", theirs.keys() - ours.keys())
    yield none_of("unexpected", ours.keys() - theirs.keys())
    yield none_of("of other shapes", {name for name in ours.keys() & theirs.keys() if ours[name] != list(theirs[name])})
    stem = path.stem.removeprefix("keys_")
    named = {n: v for n, v in VARIANTS.items() if v.prefix == prefix and stem in (n, n.partition("_")[0])}
    yield none_of("variants that differ", {name for name, v in named.items() if v.architecture != architecture})


def check_remainder(shapes: Shapes) -> Iterator[Row]:
    backbones = {name for name in shapes if BACKBONE in name}
    yield none_of("names of no backbone", {name for name in backbones if not name.startswith(PREFIXES)})
    yield compare("backbones", bool(backbones), True, EXACT)


def none_of(label: str, names: set[str]) -> Row:
    """A row that passes where there are none; it names some of them."""
    return compare(f"{label} ({some(names, 3) or 'none'})", len(names), 0, EXACT)
