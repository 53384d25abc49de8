"""Every released variant against the names and shapes of its published file."""

import json
from dataclasses import replace
from typing import Any

import pytest
import torch
from da3_fixture import FOLDER, MONO, PREFIX, TINY, description, weights

from dinoswap.teacher.depth_anything.backbone import DA3Backbone
from dinoswap.teacher.depth_anything.variants import (
    VARIANTS,
    Architecture,
    from_config,
    from_shapes,
    names_of,
    variant_named,
)

Shapes = dict[str, list[int]]
META = json.loads((FOLDER / "keys_meta.json").read_text())

# What the official configs say: net.name, the first block of the three properties, cat_token
NETS = {
    "small": ("vits", 4, True),
    "base": ("vitb", 4, True),
    "large": ("vitl", 8, True),
    "giant": ("vitg", 13, True),
    "mono": ("vitl", -1, False),
    "metric": ("vitl", -1, False),
    "nested_giant": ("vitg", 13, True),
    "nested_metric": ("vitl", -1, False),
}
TOKEN_DIMS = {"small": 768, "base": 1536, "large": 2048, "giant": 3072, "mono": 1024, "metric": 1024}


def published(variant: str) -> Shapes:
    shapes = json.loads((FOLDER / f"keys_{variant.partition('_')[0]}.json").read_text())
    prefix = VARIANTS[variant].prefix
    return {name.removeprefix(prefix): shape for name, shape in shapes.items() if name.startswith(prefix)}


def config_of(variant: str, **changes: Any) -> dict[str, Any]:
    name, start, cat = NETS[variant]
    net = {"name": name, "alt_start": start, "qknorm_start": start, "rope_start": start, "cat_token": cat} | changes
    branch = {"nested_giant": "anyview", "nested_metric": "metric"}.get(variant)
    return {"config": {branch: {"net": net}} if branch else {"net": net}}


def test_there_is_no_other_variant() -> None:
    assert set(VARIANTS) == set(NETS)


@pytest.mark.parametrize("variant", NETS)
def test_the_published_names_without_remainder(variant: str) -> None:
    with torch.device("meta"):
        backbone = DA3Backbone(VARIANTS[variant].architecture)
    shapes = published(variant)
    assert {name: list(value.shape) for name, value in backbone.state_dict().items()} == shapes
    assert {name for name, _ in backbone.named_parameters()} == set(shapes)
    if "_" not in variant:
        assert len(shapes) == META[variant]["backbone_tensors"]
        assert sum(p.numel() for p in backbone.parameters()) == META[variant]["backbone_params"]


def test_the_nested_file_is_two_backbones() -> None:
    both = published("nested_giant") | {f"metric/{name}": s for name, s in published("nested_metric").items()}
    assert len(both) == META["nested"]["backbone_tensors"]
    assert {VARIANTS[name].prefix for name in ("nested_giant", "nested_metric")} == set(
        META["nested"]["backbone_prefix"]
    )


@pytest.mark.parametrize("variant", NETS)
def test_shapes_and_config_show_the_variant(variant: str) -> None:
    expected = VARIANTS[variant].architecture
    shown = from_shapes(published(variant))
    assert shown == expected
    assert from_config(config_of(variant), VARIANTS[variant].prefix, shown) == expected


@pytest.mark.parametrize(("variant", "width"), TOKEN_DIMS.items())
def test_width_of_tokens(variant: str, width: int) -> None:
    assert VARIANTS[variant].architecture.token_dim == width


@pytest.mark.parametrize(("variant", "meta"), [(name, name.partition("_")[0]) for name in NETS])
def test_model_names(variant: str, meta: str) -> None:
    assert VARIANTS[variant].model_name == META[meta]["model_name"]


def test_licences() -> None:
    free = {name for name, variant in VARIANTS.items() if variant.licence == "Apache-2.0"}
    assert free == {"small", "base", "mono", "metric"}
    assert all("BY-NC 4.0" in VARIANTS[name].licence for name in set(VARIANTS) - free)


def test_mono_and_metric_differ_by_their_config_alone() -> None:
    mono = VARIANTS["mono"]
    assert names_of(mono.architecture, mono.prefix) == ("mono", "metric")
    assert names_of(mono.architecture, mono.prefix, "da3metric-large") == ("metric",)
    assert names_of(mono.architecture, VARIANTS["nested_metric"].prefix) == ("nested_metric",)
    assert names_of(VARIANTS["giant"].architecture, mono.prefix) == ("giant",)
    assert names_of(TINY, mono.prefix) == names_of(TINY, mono.prefix, "da3-tiny") == ()


def test_an_unknown_variant() -> None:
    with pytest.raises(ValueError, match="variant=huge: use one of small, base"):
        variant_named("huge")


# --- networks that are not released -----------------------------------------------------------------------------------


def shapes_of(spec: Architecture) -> Shapes:
    with torch.device("meta"):
        return {name: list(value.shape) for name, value in DA3Backbone(spec).state_dict().items()}


@pytest.mark.parametrize(("name", "spec", "heads"), [("da3_tiny", TINY, None), ("da3_tiny_mono", MONO, 2)])
def test_shapes_and_config_of_the_fixtures(name: str, spec: Architecture, heads: int | None) -> None:
    """Their config.json has a name that is not an official one."""
    shown = from_shapes({key: list(value.shape) for key, value in weights(name).items()}, heads)
    assert shown == spec
    assert from_config(description(name)["official_like_config"], PREFIX, shown) == spec


def test_swiglu_from_an_odd_block() -> None:
    spec = replace(TINY, ffn="swiglu", alt_start=3, qknorm_start=3, rope_start=3, num_heads=2)
    assert from_shapes(shapes_of(spec)) == spec


def test_starts_that_a_config_tells_apart() -> None:
    spec = replace(TINY, alt_start=1, qknorm_start=4, rope_start=2, cat_token=False)
    net = {"name": "tiny", "alt_start": 1, "qknorm_start": 4, "rope_start": 2, "cat_token": False}
    assert from_config({"config": {"net": net}}, PREFIX, from_shapes(shapes_of(spec))) == spec


@pytest.mark.parametrize(
    ("spec", "given", "message"),
    [
        (TINY, 4, "num_heads=4: the weights have 3 heads; leave it null"),
        (MONO, None, "num_heads=null: the weights do not show it, and their width 32 is no multiple of 64"),
        (MONO, 0, "num_heads=0: the width of the weights is 32"),
        (MONO, 5, "num_heads=5: the width of the weights is 32"),
    ],
)
def test_heads(spec: Architecture, given: int | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        from_shapes(shapes_of(spec), given)


def test_heads_of_64_channels_are_assumed() -> None:
    assert from_shapes(shapes_of(replace(MONO, embed_dim=128, num_heads=4))).num_heads == 2


@pytest.mark.parametrize("name", ["cls_token", "pos_embed", "patch_embed.proj.weight", "blocks.0.attn.qkv.weight"])
def test_a_state_dict_of_something_else(name: str) -> None:
    shapes = shapes_of(MONO)
    del shapes[name]
    with pytest.raises(ValueError, match=f"missing {name}, or of another shape"):
        from_shapes(shapes, 2)
    with pytest.raises(ValueError, match=f"missing {name}, or of another shape"):
        from_shapes(shapes | {name: [48]}, 2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "vits"}, "embed_dim=384 instead of 768, num_heads=6 instead of 12"),
        ({"name": "vitl"}, "embed_dim=1024 instead of 768, depth=24 instead of 12, num_heads=16 instead of 12"),
        ({"qknorm_start": 5}, "qknorm_start=5 instead of 4"),
        ({"qknorm_start": -1}, "qknorm_start=None instead of 4"),
    ],
)
def test_a_config_of_another_network(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        from_config(config_of("base", **changes), PREFIX, from_shapes(published("base")))


@pytest.mark.parametrize("config", [{}, {"model_name": "da3-base"}, {"config": None}, {"config": {"net": "vitb"}}])
def test_a_config_that_does_not_describe_the_backbone(config: Any) -> None:
    shown = from_shapes(published("base"))
    assert from_config(config, PREFIX, shown) == shown


def test_the_model_name_of_another_network() -> None:
    with pytest.raises(ValueError, match=r"its config\.json is of another network than the weights: embed_dim=384"):
        names_of(VARIANTS["base"].architecture, PREFIX, "da3-small")
