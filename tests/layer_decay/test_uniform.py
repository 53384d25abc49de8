"""layer_decay=uniform: every parameter learns at the same rate."""

from functools import partial

from dinoswap.layer_decay.uniform import Uniform
from options import build_option

layerwise = partial(build_option, "layer_decay/layerwise")

NAMES = (
    "patch_embed.proj.weight",
    "cls_token",
    "pos_embed",
    "blocks.0.norm1.weight",
    "blocks.11.mlp.fc2.bias",
    "norm.bias",
)


def test_multiplier_is_1_everywhere() -> None:
    assert {Uniform().multiplier(name, 12) for name in NAMES} == {1.0}


def test_layerwise_at_rate_1_is_uniform() -> None:
    same = layerwise(rate=1.0, patch_embed_lr_mult=1.0)
    assert [same.multiplier(name, 12) for name in NAMES] == [Uniform().multiplier(name, 12) for name in NAMES]
