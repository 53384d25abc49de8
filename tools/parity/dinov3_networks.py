"""vit_dinov3*.npz and keys_dinov3*.json: the backbone with DINOv3's switches, in every kind of call and every variant,
its rotations and gradients, and the names and shapes in released files.

The meta data says how each variant was built: the arguments are the official ones.
"""

import json
import re
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dinoswap.nn.vit import Tokens, VisionTransformer
from dinoswap.nn.weights.files import WeightFile
from dinoswap.nn.weights.load import interpreted
from dinoswap.position.rope import Rope
from parity.networks import before_norm
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
    worst_of,
)

SINGLE, DOUBLE = 4e-6, 1e-12  # activations, absolute: twice what the official ones in float32 are off, and float64
TOKENS = {"x_norm_clstoken": "cls", "x_storage_tokens": "registers", "x_norm_patchtokens": "patch"}
ENTRIES = ("list_global_masked", "list_local")  # of the call of a list
OUTPUTS = {
    "gcls": (0, "cls"),
    "greg": (0, "registers"),
    "gpatch": (0, "patch"),
    "lcls": (1, "cls"),
    "lpatch": (1, "patch"),
}
AUGMENTATIONS = ("shift", "jitter", "rescale")
HALVES = (".mlp.w1.", ".mlp.w2.")  # of what we have as .mlp.w12.


def scenarios(path: Path) -> Scenarios:
    """The base, each variant, and each kind of rotation, by name."""
    file = Fixture(path)
    named_checks: Scenarios = {"base": partial(check_base, file)}
    named_checks |= {name: partial(check_variant, file, name) for name in file.meta["variants"]}
    kinds = sorted({key.split("/")[1] for key in file.file.files if key.startswith("rope/")})
    named_checks |= {f"rope {kind}": partial(check_rotations, file, kind) for kind in kinds}
    drawn = {name for name, variant in file.meta["variants"].items() if variant["seed"] is not None}
    drawn |= {f"rope {kind}" for kind in kinds if "seed" in kind}
    reasons = {name: {DRAWN: draws_otherwise() and name in drawn} for name in named_checks}
    return {name: check for name, check in named_checks.items() if not is_left_out(path, name, reasons[name])}


def key_scenarios(path: Path) -> Scenarios:
    return {name: partial(check_keys, model) for name, model in json.loads(path.read_text())["models"].items()}


# --- the network ------------------------------------------------------------------------------------------------------


def network(arguments: Mapping[str, Any]) -> VisionTransformer:
    """Ours, for the official arguments."""
    periods = [arguments.get(f"pos_embed_rope_{end}_period") for end in ("min", "max")]
    position = Rope(
        base=arguments["pos_embed_rope_base"],
        periods=None if None in periods else periods,
        normalise=arguments["pos_embed_rope_normalize_coords"],
        dtype=arguments["pos_embed_rope_dtype"],
        **{name: arguments.get(f"pos_embed_rope_{name}_coords") for name in AUGMENTATIONS},
    )
    ffn = arguments["ffn_layer"]
    return VisionTransformer(
        img_size=arguments["img_size"],
        patch_size=arguments["patch_size"],
        embed_dim=arguments["embed_dim"],
        depth=arguments["depth"],
        num_heads=arguments["num_heads"],
        mlp_ratio=arguments["ffn_ratio"],
        ffn="mlp" if ffn == "mlp" else "swiglu",
        ffn_align=int(ffn.removeprefix("swiglu") or 8) if ffn != "mlp" else 8,
        registers=arguments["n_storage_tokens"],
        layerscale=arguments["layerscale_init"],
        drop_path=arguments["drop_path_rate"],
        qkv_bias=arguments["qkv_bias"],
        key_bias=not arguments["mask_k_bias"],
        norm="rmsnorm" if arguments["norm_layer"] == "rmsnorm" else "layernorm",
        norm_eps=1e-6 if arguments["norm_layer"] == "layernorm" else 1e-5,
        cls_norm=arguments.get("untie_cls_and_patch_norms", False),
        local_cls_norm=arguments.get("untie_global_and_local_cls_norm", False),
        position=position,
    )


def our_names(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of a network by our names, the two halves of a SwiGLU in one."""
    ours = {name.replace("storage_tokens", "register_tokens"): value for name, value in tensors.items()}
    for name in [name for name in ours if HALVES[0] in name]:
        first, second = ours.pop(name), ours.pop(name.replace(*HALVES))
        ours[name.replace(HALVES[0], ".mlp.w12.")] = torch.cat([first, second])
    return ours


def built(file: Fixture, variant: str | None = None) -> VisionTransformer:
    """The base, or a variant, with its weights: the base's where the variant has none of its own."""
    described = file.meta["variants"][variant] if variant else {"model_kwargs": {}, "bias_mask": "", "training": False}
    backbone = network(file.meta["model_kwargs"] | described["model_kwargs"])
    stored = our_names(file.below("sd/")) | (our_names(file.below(f"variant/{variant}/sd/")) if variant else {})
    state = {name: stored[name] for name in backbone.state_dict()}
    if described["bias_mask"] == "zero":
        state |= {name: torch.zeros_like(value) for name, value in state.items() if name.endswith("qkv.bias")}
    backbone.load_state_dict(state)
    return backbone.train(described["training"])


def called(
    file: Fixture, backbone: VisionTransformer, call: str, dtype: torch.dtype = torch.float32
) -> dict[str, tuple[Tokens, Tensor]]:
    """The tokens of a call, and those before the final norm, by the names that they are stored under."""
    rectangle = next(key for key in file.file.files if key.startswith("in/xrect"))
    crops = {name: file[key].to(dtype) for name, key in {"32": "in/x32", "16": "in/x16", "_rect": rectangle}.items()}
    with before_norm(backbone) as before:
        if call == "list":
            tokens = backbone([crops["32"], crops["16"]], [file["in/masks"], None], locals_from=1)
        else:
            masks = file["in/masks"] if call.endswith("_masked") else None
            tokens = backbone([crops[call.removeprefix("single").removesuffix("_masked")]], [masks])
    names = ENTRIES if call == "list" else (call,)
    return dict(zip(names, zip(tokens, before, strict=True), strict=True))


def seeded_call(
    file: Fixture, backbone: VisionTransformer, call: str, seed: int | None
) -> dict[str, tuple[Tokens, Tensor]]:
    if seed is not None:
        torch.manual_seed(seed)
    return called(file, backbone, call)


# --- comparisons ------------------------------------------------------------------------------------------------------


def compare_call(
    file: Fixture, prefix: str, outputs: Mapping[str, tuple[Tokens, Tensor]], tolerance: float
) -> Iterator[Row]:
    for section, (tokens, raw) in outputs.items():
        values = {key: getattr(tokens, name) for key, name in TOKENS.items()} | {"x_prenorm": raw}
        for key, ours in values.items():
            name = f"{prefix}{section}/{key}"
            if name in file:
                yield compare(name, ours, file[name], tolerance)


def check_base(file: Fixture) -> Iterator[Row]:
    with torch.no_grad():
        sections = {key.split("/")[0] for key in file.file.files if key.startswith("single")}
        for call in (*sorted(sections), "list"):
            yield from compare_call(file, "", called(file, built(file), call), SINGLE)
            in_double = called(file, built(file).double(), call, torch.float64)
            yield from compare_call(file, "f64/", in_double, DOUBLE)
        yield from check_blocks(file)
    if "grad/scalar" in file:
        yield from check_gradients(file, None)


def check_blocks(file: Fixture) -> Iterator[Row]:
    """Class and patch tokens behind each block, with and without the final norm."""
    for section, norm in (("intermediate32", False), ("intermediate32_normed", True)):
        for name, value in file.below(f"{section}/").items():
            number, kind = re.fullmatch(r"block(\d+)_(cls|patch)", name).groups()  # type: ignore[union-attr]
            (tokens,) = built(file).intermediate_tokens(file["in/x32"], [int(number)], norm)
            yield compare(f"{section}/{name}", getattr(tokens, kind), value, SINGLE)


def check_variant(file: Fixture, variant: str) -> Iterator[Row]:
    """With the official draws: the generator ends where the official one does."""
    described = file.meta["variants"][variant]
    with torch.no_grad():
        for call in described["calls"]:
            prefix = f"variant/{variant}/"
            rounds = described["model_kwargs"].get("pos_embed_rope_dtype") == "bf16"
            tolerance = 2 * conditioning(file, variant, call) if rounds else SINGLE
            outputs = seeded_call(file, built(file, variant), call, described["seed"])
            next_draw = torch.rand(1)
            yield from compare_call(file, prefix, outputs, tolerance)
            if (key := f"{prefix}next_rand_after_{call}") in file:
                yield compare(key, next_draw, file[key].view(1), EXACT)
    if f"variant/{variant}/grad/scalar" in file:
        yield from check_gradients(file, variant)


def conditioning(file: Fixture, variant: str, call: str) -> float:
    """How far tokens move when every weight moves by half a unit in the last place of float32: queries and keys are
    rounded to bfloat16, and one that lies between two of its numbers goes the other way."""
    backbone, draws, moved = built(file, variant), torch.Generator().manual_seed(0), []
    originals = {name: value.clone() for name, value in backbone.state_dict().items()}
    for trial in range(6):
        noise = {n: torch.randn(value.shape, generator=draws, device="cpu") for n, value in originals.items()}
        factors = {name: 1 + 2**-24 * value.to(originals[name].device) for name, value in noise.items()}
        backbone.load_state_dict({n: value * factors[n] if trial else value for n, value in originals.items()})
        outputs = seeded_call(file, backbone, call, file.meta["variants"][variant]["seed"] or 0)
        moved.append(torch.cat([part.flatten() for tokens, before in outputs.values() for part in (*tokens, before)]))
    return max(float((other - moved[0]).abs().max()) for other in moved[1:])


def check_gradients(file: Fixture, variant: str | None) -> Iterator[Row]:
    """Of the sum over the outputs of the call of a list of mean(weight * output)."""
    backbone, prefix = built(file, variant), f"variant/{variant}/grad" if variant else "grad"
    outputs = seeded_call(file, backbone, "list", file.meta["variants"][variant]["seed"] if variant else None)
    entries = [tokens for tokens, _ in outputs.values()]
    read = {name: getattr(entries[at], kind) for name, (at, kind) in OUTPUTS.items()}
    weighted = [file[f"grad/weights/{name}"] * value for name, value in read.items() if value.numel()]
    scalar = torch.stack([tensor.mean() for tensor in weighted]).sum()
    scalar.backward()
    yield compare(f"{prefix}/scalar", scalar, file[f"{prefix}/scalar"], FORWARD, scale=1.0)
    zero = torch.zeros(1)
    gradients = {name: zero if p.grad is None else p.grad for name, p in backbone.named_parameters()}
    norms = file.below(f"{prefix}/norm/")
    joint = {name: norms.pop(name).hypot(norms.pop(name.replace(*HALVES))) for name in list(norms) if HALVES[0] in name}
    norms |= {name.replace(HALVES[0], ".mlp.w12."): norm for name, norm in joint.items()}
    scale = 1e-3 * max(float(norm) for norm in norms.values())
    rows = (compare(name, gradients[name].norm(), norm, GRADIENT, scale) for name, norm in our_names(norms).items())
    yield from worst_of(f"{prefix}/norm", rows)
    full = our_names(file.below(f"{prefix}/full/"))
    yield from worst_of(
        f"{prefix}/full", (compare_gradient(name, gradients[name], value) for name, value in full.items())
    )


# --- rotations --------------------------------------------------------------------------------------------------------


def rotation_of(file: Fixture, kind: str) -> Rope:
    """What the name of a kind of table says: train_jitter_bf16_seed7, periods_0.5_30, base10, min, ..."""
    augmented = next(
        kwargs
        for v in file.meta["variants"].values()
        if "pos_embed_rope_jitter_coords" in (kwargs := v["model_kwargs"])
    )
    words = kind.split("_")
    limits, base = re.search(r"periods_([\d.]+)_([\d.]+)", kind), re.search(r"base([\d.]+)", kind)
    return Rope(
        base=None if limits else float(base[1]) if base else file.meta["model_kwargs"]["pos_embed_rope_base"],
        periods=[float(limits[1]), float(limits[2])] if limits else None,
        normalise="min" if "min" in words else "max" if "max" in words else "separate",
        dtype="bf16" if "bf16" in words else "fp32",
        **{n: augmented[f"pos_embed_rope_{n}_coords"] if {n, "all"} & set(words) else None for n in AUGMENTATIONS},
    )


def check_rotations(file: Fixture, kind: str) -> Iterator[Row]:
    """Bit for bit, in bfloat16 too, with the official draws."""
    position, prefix, seed = rotation_of(file, kind), f"rope/{kind}", re.search(r"seed(\d+)", kind)
    periods, tokens = file[f"{prefix}/periods"], torch.zeros(1)
    like: Any = {"device": tokens.device, "dtype": position.dtype}
    yield compare(f"{prefix}/periods", position.periods(4 * len(periods), like).float(), periods.float(), EXACT)
    for grid in sorted({key.split("/")[0] for key in file.below(f"{prefix}/") if "/" in key}):
        rows, columns = map(int, grid.split("x"))
        torch.manual_seed(int(seed[1]) if seed else 0)
        (rotation,) = position.rotations([(rows, columns)], 4 * len(periods), tokens, kind.startswith("train"), 0)
        assert rotation is not None
        for name, values in (("sin", rotation.sin), ("cos", rotation.cos)):
            key = f"{prefix}/{grid}/{name}"
            yield compare(key, values.float(), file[key].float(), EXACT)


# --- released files ---------------------------------------------------------------------------------------------------


def hub_tensors(model: Mapping[str, Any]) -> dict[str, Tensor]:
    """Tensors without memory, by the names of a released file, but for those whose values have to be read. Its biases
    and their masks are zero, as is reported of all distilled models."""
    tensors = {}
    for name, shape in model["keys"].items():
        for index in range(model["depth"]) if "*" in name else [0]:
            with torch.device("cpu" if ".qkv.bias" in name else "meta"):
                tensors[name.replace("*", str(index))] = torch.zeros(shape)
    count = model["keys"]["rope_embed.periods"][0]
    tensors["rope_embed.periods"] = 100 ** (torch.arange(count) / count)
    return tensors


def check_keys(model: Mapping[str, Any]) -> Iterator[Row]:
    """A file is read strictly: any other name or shape raises."""
    weights = interpreted(WeightFile(Path(), hub_tensors(model), {}))
    with torch.device("meta"):
        backbone = VisionTransformer(**weights.architecture)
    first: Any = backbone.blocks[0]
    values = {
        "parameters": sum(parameter.numel() for parameter in backbone.parameters()),
        "depth": len(backbone.blocks),
        "num_heads": first.attn.num_heads,
        "norm_eps": first.norm1.eps,
        "registers": backbone.prefix - 1,
    }
    for name, value in values.items():
        yield compare(name, value, model[name], EXACT)
