"""vit*, droppath* and head*.npz: tokens of every kind of call, position tables, gradients, stochastic depth, heads."""

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dinoswap.nn.packs import Pack, split
from dinoswap.nn.projection_head import ProjectionHead
from dinoswap.nn.vit import Tokens, VisionTransformer
from dinoswap.nn.weights.load import load_into
from parity.rows import (
    DRAWN,
    EXACT,
    FORWARD,
    GRADIENT,
    Fixture,
    Row,
    Scenarios,
    compare,
    compare_gradient,
    draws_otherwise,
    is_left_out,
    plain_name,
    worst_of,
)

TOKENS = {"x_norm_clstoken": "cls", "x_norm_regtokens": "registers", "x_norm_patchtokens": "patch"}
VARIANT = r"offset([\d.]+)_(no)?aa"


def build_vit(file: Fixture, **changes: Any) -> VisionTransformer:
    """The fixture's network in training mode; `changes` are arguments of ours."""
    kwargs = file.meta["model_kwargs"]
    ours = {
        "drop_path": kwargs.get("drop_path_rate", 0.0),
        "layerscale": kwargs.get("init_values"),
        "ffn": "mlp" if kwargs.get("ffn_layer", "mlp") == "mlp" else "swiglu",
        "registers": kwargs.get("num_register_tokens", 0),
    }
    same = (
        "img_size", "patch_size", "embed_dim", "depth", "num_heads", "mlp_ratio", "qkv_bias", "drop_path_uniform",
        "interpolate_offset", "interpolate_antialias",
    )  # fmt: skip
    ours |= {name: kwargs[name] for name in same if name in kwargs}
    backbone = VisionTransformer(**(ours | changes))
    load_into(backbone, {plain_name(name): value for name, value in file.below("sd/").items()})
    return backbone


def vit_scenarios(path: Path) -> Scenarios:
    file = Fixture(path)
    checks = {"forward": check_forward, "positions": check_positions, "blocks": check_blocks}
    if "grad/scalar" in file:
        checks["gradients"] = check_gradients
    return {name: partial(check, file) for name, check in checks.items()}


def variant_of(name: str) -> dict[str, Any]:
    """Position interpolation as a key says it: offset0.1_noaa."""
    match = re.search(VARIANT, name)
    return {"interpolate_offset": float(match[1]), "interpolate_antialias": not match[2]} if match else {}


def compare_tokens(file: Fixture, section: str, tokens: Tokens, before_norm: Tensor | None = None) -> Iterator[Row]:
    values = {key: getattr(tokens, name) for key, name in TOKENS.items()} | {"x_prenorm": before_norm}
    for key, ours in values.items():
        if f"{section}/{key}" in file and ours is not None:
            yield compare(f"{section}/{key}", ours, file[f"{section}/{key}"], FORWARD, scale=1.0)


def packed_call(file: Fixture, backbone: VisionTransformer) -> list[Tokens]:
    return backbone([file["in/x32"], file["in/x16"]], [file["in/masks"], None])


@torch.no_grad()
def check_forward(file: Fixture) -> Iterator[Row]:
    """`single<crops>[_masked][_<interpolation>]`, and the two entries of the packed call."""
    inputs = {"32": "in/x32", "16": "in/x16", "_rect": "in/xrect_24x40"}
    sections = sorted({key.split("/")[0] for key in file.file.files if re.match(r"(single|list)", key)})
    for section in (s for s in sections if s.startswith("single")):
        crops = next(key for name, key in inputs.items() if section.startswith(f"single{name}"))
        masks = file["in/masks"] if section.endswith("_masked") else None
        backbone = build_vit(file, **variant_of(section))
        with before_norm(backbone) as before:
            tokens = backbone(file[crops], masks)
        yield from compare_tokens(file, section, tokens, before[0])
    backbone = build_vit(file)
    with before_norm(backbone) as before:
        packed = packed_call(file, backbone)
    for entry in zip(("list_global_masked", "list_local"), packed, before, strict=True):
        yield from compare_tokens(file, *entry)
    if "forward_eval_head/x32" in file:
        cls = build_vit(file).eval()(file["in/x32"]).cls
        yield compare("forward_eval_head/x32", cls, file["forward_eval_head/x32"], FORWARD, scale=1.0)


@contextmanager
def before_norm(backbone: VisionTransformer) -> Iterator[list[Tensor]]:
    """Gives a list that will hold the tokens [b, T, D] of each entry of a call, before their final norm."""
    seen: list[Tensor] = []

    def keep(_: nn.Module, inputs: tuple[list[Pack], bool], outputs: list[Tensor]) -> None:
        for pack, x in zip(inputs[0], outputs, strict=True):
            seen.extend(split(x, pack.shapes))

    watch = backbone.blocks[-1].register_forward_hook(keep)
    yield seen
    watch.remove()


@torch.no_grad()
def check_positions(file: Fixture) -> Iterator[Row]:
    """`posinterp_<interpolation>/<height>x<width>` in pixels."""
    for key in (k for k in file.file.files if k.startswith("posinterp_")):
        backbone = build_vit(file, **variant_of(key))
        height, width = (int(side) // backbone.patch_size for side in key.rsplit("/", 1)[1].split("x"))
        yield compare(key, backbone.positions((height, width)), file[key], FORWARD, scale=1.0)


@torch.no_grad()
def check_blocks(file: Fixture) -> Iterator[Row]:
    """Patch tokens behind each block, without the final norm."""
    keys = {key: int(re.findall(r"block(\d+)", key)[0]) for key in file.file.files if key.startswith("intermediate32/")}
    outputs = build_vit(file).intermediate_tokens(file["in/x32"], list(keys.values()), norm=False)
    for key, tokens in zip(keys, outputs, strict=True):
        yield compare(key, tokens.patch, file[key], FORWARD, scale=1.0)


def check_gradients(file: Fixture) -> Iterator[Row]:
    """Of the sum over the outputs of the packed call of mean(weight * output)."""
    backbone = build_vit(file)
    large, small = packed_call(file, backbone)
    outputs = {
        "gcls": large.cls,
        "greg": large.registers,
        "gpatch": large.patch,
        "lcls": small.cls,
        "lpatch": small.patch,
    }
    scalar = torch.stack([(file[f"grad/weights/{k}"] * v).mean() for k, v in outputs.items() if v is not None]).sum()
    scalar.backward()
    yield compare("grad/scalar", scalar, file["grad/scalar"], FORWARD, scale=1.0)
    zero = torch.zeros(1)
    gradients = {name: zero if p.grad is None else p.grad for name, p in backbone.named_parameters()}
    norms = {plain_name(name): norm for name, norm in file.below("grad/norm/").items()}
    scale = 1e-3 * max(float(norm) for norm in norms.values())
    rows = (compare(name, gradients[name].norm(), norm, GRADIENT, scale) for name, norm in norms.items())
    yield from worst_of("grad/norm", rows)
    full = {plain_name(name): value for name, value in file.below("grad/full/").items()}
    yield from worst_of("grad/full", (compare_gradient(name, gradients[name], value) for name, value in full.items()))


def droppath_scenarios(path: Path) -> Scenarios:
    """Weights and inputs are those of vit_dinov2.npz beside it."""
    file, vit = Fixture(path), path.with_name("vit_dinov2.npz")
    rates = sorted({key.split("/")[1] for key in file.file.files if re.match(r"v2/rate[\d.]+/", key)})
    named_checks: Scenarios = {
        rate: partial(check_droppath, file, vit, rate)
        for rate in rates
        if vit.exists() and not is_left_out(path, rate, {DRAWN: draws_otherwise()})
    }
    for key in (k for k in file.file.files if k.endswith("_per_block_rates") and k.startswith("v2/")):
        named_checks[key] = partial(check_rates, file, key)
    return named_checks


@torch.no_grad()
def check_droppath(file: Fixture, vit: Path, rate: str) -> Iterator[Row]:
    weights, prefix = Fixture(vit), f"v2/{rate}"
    seed = int(re.findall(r"manual_seed\((\d+)\)", file.meta.get("note", "") + "manual_seed(5)")[0])
    uniform = file.meta.get("drop_path_uniform", True)
    backbone = build_vit(weights, drop_path=float(rate.removeprefix("rate")), drop_path_uniform=uniform).train()
    torch.manual_seed(seed)
    sections = zip(("list_global_masked", "list_local"), packed_call(weights, backbone), strict=True)
    for section, tokens in sections:
        yield from compare_tokens(file, f"{prefix}/{section}", tokens)
    yield compare("list_next_rand", torch.rand(1), file[f"{prefix}/list_next_rand"], EXACT)
    if f"{prefix}/single_next_rand" in file:
        torch.manual_seed(seed)
        yield from compare_tokens(file, f"{prefix}/single32", backbone(weights["in/x32"]))
        yield compare("single_next_rand", torch.rand(1), file[f"{prefix}/single_next_rand"], EXACT)


def check_rates(file: Fixture, key: str) -> Iterator[Row]:
    """Rates that rise linearly from block to block."""
    theirs, last = file[key], float(re.findall(r"nonuniform([\d.]+)", key)[0])
    blocks = VisionTransformer(
        img_size=8, patch_size=8, embed_dim=8, num_heads=1, depth=len(theirs), drop_path=last, drop_path_uniform=False
    ).blocks
    yield compare("rates", [block.drop_path for block in blocks], theirs, 1e-7)


def head_scenarios(path: Path) -> Scenarios:
    file = Fixture(path)
    names = sorted({key.split("/")[0] for key in file.file.files if re.match(r"v2_nlayers\d+/", key)})
    return {name: partial(check_head, file, name) for name in names}


def check_head(file: Fixture, name: str) -> Iterator[Row]:
    head = build_head(file.below(f"{name}/init_sd/"))
    fixed = {k: v for k, v in file.below(f"{name}/init_sd/").items() if k.endswith((".bias", "weight_g"))}
    own = head.state_dict()
    yield from worst_of("init: biases and weight_g", (compare(k, own[k], v, EXACT) for k, v in fixed.items()))
    head.load_state_dict(file.below(f"{name}/sd/"))
    x = file["x"].requires_grad_()
    out = head(x)
    (file["grad_weights"] * out).mean().backward()
    yield compare("out", out, file[f"{name}/out"], FORWARD, scale=1.0)
    yield compare("mlp_out", head.mlp(x), file[f"{name}/mlp_out"], FORWARD, scale=1.0)
    gradients: Iterable[tuple[str, Tensor]] = file.below(f"{name}/grad/").items()
    parameters = dict(head.named_parameters())
    yield from worst_of("grad", (compare_gradient(k, parameters[k].grad, value) for k, value in gradients))
    yield compare_gradient("grad_x", x.grad, file[f"{name}/grad_x"])


def build_head(weights: dict[str, Tensor]) -> ProjectionHead:
    """A head of the stored shapes."""
    prototypes, bottleneck = weights["last_layer.weight_v"].shape
    linears = [weights[name] for name in weights if name.startswith("mlp.") and name.endswith("weight")]
    return ProjectionHead(
        linears[0].shape[1],
        prototypes=prototypes,
        hidden_dim=linears[0].shape[0],
        bottleneck_dim=bottleneck,
        layers=len(linears),
        train_weight_g=True,
        weight_norm=True,
    )
