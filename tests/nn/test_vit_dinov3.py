"""The backbone with DINOv3's switches against numbers of the official code: every variant, and gradients.

The fixture's meta data says how each variant was built; its own arguments are the official ones.
"""

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

from dinoswap.nn.vit import Tokens, VisionTransformer
from dinoswap.position.rope import Rope
from fixtures import DINOV3, Fixture

VIT = Fixture("vit_dinov3.npz", DINOV3)
VARIANTS: dict[str, dict[str, Any]] = VIT.meta["variants"]
CALLS = {
    "single32": ["single32"],
    "single_rect": ["single_rect"],
    "list": ["list_global_masked", "list_local"],
}
SCALARS = {
    "gcls": (0, "cls"),
    "greg": (0, "registers"),
    "gpatch": (0, "patch"),
    "lcls": (1, "cls"),
    "lpatch": (1, "patch"),
}


def network(arguments: Mapping[str, Any]) -> VisionTransformer:
    """Ours, for the official arguments."""
    position = Rope(
        base=arguments["pos_embed_rope_base"],
        periods=[arguments["pos_embed_rope_min_period"], arguments["pos_embed_rope_max_period"]]
        if "pos_embed_rope_min_period" in arguments
        else None,
        normalise=arguments["pos_embed_rope_normalize_coords"],
        shift=arguments.get("pos_embed_rope_shift_coords"),
        jitter=arguments.get("pos_embed_rope_jitter_coords"),
        rescale=arguments.get("pos_embed_rope_rescale_coords"),
        dtype=arguments["pos_embed_rope_dtype"],
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


def our_name(name: str) -> str:
    return name.replace("storage_tokens", "register_tokens")


def official_weights(model: VisionTransformer, variant: str | None) -> dict[str, Tensor]:
    """The stored weights by our names: those of the variant, else of the base where the shape agrees."""
    stored = {our_name(key.removeprefix("sd/")): VIT[key] for key in VIT.keys("sd/")}
    if variant:
        prefix = f"variant/{variant}/sd/"
        stored |= {our_name(key.removeprefix(prefix)): VIT[key] for key in VIT.keys(prefix)}
    for name in [name for name in stored if ".mlp.w1." in name]:
        stored[name.replace("w1", "w12")] = torch.cat([stored[name], stored[name.replace("w1", "w2")]])
    return {name: stored[name] for name in model.state_dict()}


def built(variant: str | None) -> VisionTransformer:
    changes = VARIANTS[variant]["model_kwargs"] if variant else {}
    model = network(VIT.meta["model_kwargs"] | changes)
    state = official_weights(model, variant)
    if variant and VARIANTS[variant]["bias_mask"] == "zero":
        state |= {name: torch.zeros_like(value) for name, value in state.items() if name.endswith("qkv.bias")}
    model.load_state_dict(state)
    return model.train(bool(variant) and VARIANTS[variant]["training"])  # type: ignore[index]


def called(model: VisionTransformer, call: str, dtype: torch.dtype = torch.float32) -> list[Tokens]:
    crops = {name: VIT[f"in/{name}"].to(dtype) for name in ("x32", "x16", "xrect_24x40")}
    if call == "list":
        return model([crops["x32"], crops["x16"]], [VIT["in/masks"], None], locals_from=1)
    name, masks = {"single32": ("x32", None), "single16": ("x16", None), "single_rect": ("xrect_24x40", None)}.get(
        call, ("x32", VIT["in/masks"])
    )
    return model([crops[name]], [masks])


def assert_official(found: Tokens, prefix: str, tolerance: float) -> None:
    names = {"cls": "x_norm_clstoken", "registers": "x_storage_tokens", "patch": "x_norm_patchtokens"}
    for ours, theirs in names.items():
        value, expected = getattr(found, ours), VIT[f"{prefix}/{theirs}"]
        torch.testing.assert_close(
            value, expected.to(value.dtype), rtol=0, atol=tolerance, msg=lambda m: f"{prefix} {m}"
        )


def conditioning(variant: str, call: str) -> float:
    """How far tokens move when every weight moves by half a unit in the last place of float32: queries and keys are
    rounded to bfloat16, and one that lies between two of its numbers goes the other way."""
    model, draws, moved = built(variant), torch.Generator().manual_seed(0), []
    originals = {name: value.clone() for name, value in model.state_dict().items()}
    for trial in range(6):
        noise = {name: 1 + 2**-24 * torch.randn(value.shape, generator=draws) for name, value in originals.items()}
        model.load_state_dict({name: value * noise[name] if trial else value for name, value in originals.items()})
        torch.manual_seed(VARIANTS[variant]["seed"] or 0)
        with torch.no_grad():
            moved.append(torch.cat([part.flatten() for tokens in called(model, call) for part in tokens]))
    return max(float((other - moved[0]).abs().max()) for other in moved[1:])


@pytest.mark.parametrize("call", ["single32", "single32_masked", "single16", "single_rect", "list"])
def test_the_base_is_the_official_network(call: str) -> None:
    model = built(None)
    for found, stored in zip(called(model, call), CALLS.get(call, [call]), strict=True):
        assert_official(found, stored, 4e-6)
    found_64 = called(built(None).double(), call, torch.float64)
    for found, stored in zip(found_64, CALLS.get(call, [call]), strict=True):
        if f"f64/{stored}/x_norm_clstoken" in VIT.file.files:
            assert_official(found, f"f64/{stored}", 1e-12)


@pytest.mark.parametrize(("variant", "call"), [(name, call) for name in VARIANTS for call in VARIANTS[name]["calls"]])
def test_a_variant_is_the_official_one(variant: str, call: str) -> None:
    """With the official draws: the generator ends where the official one does."""
    tolerance = 2 * conditioning(variant, call) if "bf16" in variant else 4e-6
    model, seed = built(variant), VARIANTS[variant]["seed"]
    if seed is not None:
        torch.manual_seed(seed)
    for found, stored in zip(called(model, call), CALLS[call], strict=True):
        assert_official(found, f"variant/{variant}/{stored}", tolerance)
    key = f"variant/{variant}/next_rand_after_{call}"
    if key in VIT.file.files:
        assert torch.equal(torch.rand(1), VIT[key].view(1))


@pytest.mark.parametrize(
    "variant", [None, *sorted({key.split("/")[1] for key in VIT.keys("variant/") if "/grad/" in key})]
)
def test_gradients_are_the_official_ones(variant: str | None) -> None:
    model, prefix = built(variant), f"variant/{variant}/grad" if variant else "grad"
    seed = VARIANTS[variant]["seed"] if variant else None
    if seed is not None:
        torch.manual_seed(seed)
    tokens = called(model, "list")
    weights = {name: VIT[f"grad/weights/{name}"] for name in SCALARS}
    scalar = torch.stack([(getattr(tokens[at], kind) * weights[n]).mean() for n, (at, kind) in SCALARS.items()]).sum()
    scalar.backward()
    torch.testing.assert_close(scalar, VIT[f"{prefix}/scalar"], rtol=2e-6, atol=2e-6)
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    for key in VIT.keys(f"{prefix}/full/"):
        found, expected = gradients[our_name(key.removeprefix(f"{prefix}/full/"))], VIT[key]
        assert found is not None
        torch.testing.assert_close(found, expected, rtol=0, atol=2e-5 * float(expected.abs().max()), msg=key)
