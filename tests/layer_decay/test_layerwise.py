"""layer_decay=layerwise against every official multiplier; parameter names map chunked blocks to plain ones."""

import re
from functools import partial

import pytest

from dinoswap.layer_decay.layerwise import layer_id
from fixtures import load_json
from options import build_option

layerwise = partial(build_option, "layer_decay/layerwise")

CASES = {name: case for name, case in load_json("param_groups.json").items() if name.startswith("dinov2")}
BACKBONE = "backbone."


@pytest.mark.parametrize("case", CASES)
def test_multipliers_are_the_official_ones(case: str) -> None:
    settings = CASES[case]["settings"]
    decay = layerwise(rate=settings["layerwise_decay"], patch_embed_lr_mult=settings["patch_embed_lr_mult"])
    of_backbone = {name: fields for name, fields in CASES[case]["params"].items() if name.startswith(BACKBONE)}
    assert of_backbone
    for name, fields in of_backbone.items():
        plain = re.sub(r"blocks\.\d+\.(\d+)\.", r"blocks.\1.", name.removeprefix(BACKBONE))
        assert decay.multiplier(plain, settings.get("depth", 12)) == fields["lr_multiplier"], name


def test_layers_count_from_the_embeddings_to_the_final_norm() -> None:
    names = {
        "cls_token": 0, "pos_embed": 0, "mask_token": 0, "register_tokens": 0, "patch_embed.proj.bias": 0,
        "blocks.0.norm1.weight": 1, "blocks.11.mlp.fc2.bias": 12, "blocks.23.ls2.gamma": 24, "norm.weight": 25,
    }  # fmt: skip
    assert {name: layer_id(name, depth=24) for name in names} == names


def test_rate_1_is_uniform_but_for_the_patch_embedding() -> None:
    decay = layerwise(rate=1.0)
    assert {decay.multiplier(n, 12) for n in ("cls_token", "blocks.0.norm1.weight", "norm.bias")} == {1.0}
    assert decay.multiplier("patch_embed.proj.weight", 12) == 0.2
    assert layerwise(rate=1.0, patch_embed_lr_mult=1.0).multiplier("patch_embed.proj.weight", 12) == 1.0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"rate": 0.0}, "rate=0.0"), ({"rate": 1.1}, "rate=1.1"), ({"patch_embed_lr_mult": -1.0}, "patch_embed_lr_mult")],
)
def test_bad_values_are_named(arguments: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        layerwise(**arguments)
