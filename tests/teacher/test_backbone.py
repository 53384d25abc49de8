"""The Depth Anything 3 backbone against the official code's numbers, and against its formulas written out naively."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from da3_fixture import (
    ATOL,
    NAMES,
    SIZES,
    SPECS,
    TINY,
    arrays,
    description,
    naive,
    official,
    random_backbone,
    token_error,
    weights,
    worst,
)
from torch.nn import functional

from dinoswap.teacher.depth_anything import rope
from dinoswap.teacher.depth_anything.backbone import DA3Backbone
from dinoswap.teacher.depth_anything.variants import Architecture


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", NAMES)
def test_tokens_are_the_official_ones(name: str, size: str) -> None:
    stored, backbone = arrays(name), official(name)
    assert token_error(backbone, size, name) < ATOL
    [(patches, special)] = backbone.out_layers(stored[f"in_{size}"], [backbone.architecture.depth - 1])
    assert worst(patches, stored[f"s1_tokens_{size}"]) < ATOL
    assert worst(special, stored[f"s1_cam_{size}"]) < ATOL


@pytest.mark.parametrize("name", NAMES)
def test_every_stage_is_the_official_one(name: str) -> None:
    stored, backbone = arrays(name), official(name)
    images, layers = stored["in_56x56"], description(name)["hyper"]["out_layers"]
    assert worst(backbone.prepare_tokens_with_masks(images), stored["s1_embed_56x56"]) < 2e-6
    assert worst(torch.stack(list(backbone.stream(images))), stored["s1_blocks_56x56"]) < ATOL
    for layer, (patches, special) in zip(layers, backbone.out_layers(images, layers), strict=True):
        assert worst(patches, stored[f"s1_tokens_56x56_layer{layer}"]) < ATOL
        assert worst(special, stored[f"s1_cam_56x56_layer{layer}"]) < ATOL


@pytest.mark.parametrize("block", [0, 3, 5])
def test_a_layer_is_the_normed_stream_behind_its_block(block: int) -> None:
    stored, backbone = arrays("da3_tiny"), official("da3_tiny")
    raw = stored["s1_blocks_56x56"][block][:, 1:]
    normed = functional.layer_norm(
        raw, (48,), weights("da3_tiny")["norm.weight"], weights("da3_tiny")["norm.bias"], 1e-5
    )
    assert worst(backbone(stored["in_56x56"], block), normed) < ATOL


@pytest.mark.parametrize("name", NAMES)
def test_names_and_shapes_are_the_official_ones(name: str) -> None:
    own = {key: value.shape for key, value in DA3Backbone(SPECS[name]).state_dict().items()}
    assert own == {key: value.shape for key, value in weights(name).items()}


# --- networks that no fixture has -------------------------------------------------------------------------------------

ODD = Architecture(
    embed_dim=32,
    depth=6,
    num_heads=2,
    ffn="swiglu",
    alt_start=3,
    qknorm_start=3,
    rope_start=3,
    cat_token=True,
    img_size=70,
)
NAIVE = {
    "swiglu from an odd block": ODD,
    "mlp": replace(ODD, ffn="mlp", alt_start=2, qknorm_start=2, rope_start=2),
    "starts apart, no concatenation": replace(ODD, alt_start=1, qknorm_start=4, rope_start=2, cat_token=False),
    "from the first block, odd depth": replace(ODD, depth=5, alt_start=0, qknorm_start=0, rope_start=0, num_heads=4),
    "plain": replace(ODD, alt_start=None, qknorm_start=None, rope_start=None, cat_token=False),
}


@pytest.mark.parametrize("size", [(70, 70), (42, 84)], ids=str)
@pytest.mark.parametrize("spec", NAIVE.values(), ids=NAIVE)
def test_formulas(spec: Architecture, size: tuple[int, int]) -> None:
    """In float64, where the angles of `rope` and the resampling of the table alone are float32."""
    backbone = random_backbone(spec).double()
    images = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(1)).double()
    found = backbone.out_layers(images, range(spec.depth))
    for image in range(2):
        for (patches, special), expected in zip(found, naive(backbone, images[image]), strict=True):
            assert np.abs(patches[image].numpy() - expected[0]).max() < 2e-5
            assert np.abs(special[image].numpy() - expected[1]).max() < 2e-5


@pytest.mark.parametrize("name", NAMES)
def test_the_naive_formulas_are_the_official_ones(name: str) -> None:
    stored = arrays(name)
    for size in SIZES:
        patches, special = naive(official(name), stored[f"in_{size}"][0])[-1]
        assert np.abs(patches - stored[f"s1_tokens_{size}"][0].numpy()).max() < ATOL
        assert np.abs(special - stored[f"s1_cam_{size}"][0].numpy()).max() < ATOL


# --- what the fixtures would catch ------------------------------------------------------------------------------------

Change = Callable[[pytest.MonkeyPatch, DA3Backbone], Any]


def eps(value: float, *names: str) -> Change:
    def change(_: pytest.MonkeyPatch, backbone: DA3Backbone) -> None:
        found = [m for name, m in backbone.named_modules() if name.rpartition(".")[2] in names]
        assert found
        for norm in found:
            norm.eps = value

    return change


def patched(target: Any, name: str, value: Any) -> Change:
    return lambda monkeypatch, _: monkeypatch.setattr(target, name, value)


def to_a_size(_: pytest.MonkeyPatch, backbone: DA3Backbone) -> None:
    backbone.interpolate_offset = 0.0


def other_camera(_: pytest.MonkeyPatch, backbone: DA3Backbone) -> None:
    backbone.camera_token.copy_(backbone.camera_token.flip(1))


PLACES = rope.positions
MUTANTS: dict[str, Change] = {
    "final norm eps": eps(1e-6, "norm"),
    "query and key norm eps": eps(1e-6, "q_norm", "k_norm"),
    "block norm eps": eps(1e-5, "norm1", "norm2"),
    "positions resampled to a size": to_a_size,
    "rope base": patched(rope, "BASE", 1e4),
    "global blocks see the grid": patched(rope, "positions", lambda grid, _, device: PLACES(grid, False, device)),
    "local blocks do not": patched(rope, "positions", lambda grid, _, device: PLACES(grid, True, device)),
    "rows and columns swapped": patched(rope, "positions", lambda *a: PLACES(*a).flip(1)),
    "positions from 0": patched(rope, "positions", lambda *a: PLACES(*a) - float(not a[1])),
    "tanh GELU": patched(functional, "gelu", partial(functional.gelu, approximate="tanh")),
    "camera token of a source view": other_camera,
}


@pytest.fixture
def new_rotations() -> Iterator[None]:
    """None that were made before, and none of these for later tests."""
    rope.kept_rotation.cache_clear()
    yield
    rope.kept_rotation.cache_clear()


@pytest.mark.usefixtures("new_rotations")
@pytest.mark.parametrize("change", MUTANTS.values(), ids=MUTANTS)
def test_mutants_are_caught(change: Change, monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = official("da3_tiny")
    change(monkeypatch, backbone)
    assert max(token_error(backbone, size) for size in SIZES) > 10 * ATOL


@pytest.mark.parametrize("start", ["alt_start", "rope_start", "qknorm_start"])
def test_a_property_that_starts_a_block_later_is_caught(start: str) -> None:
    backbone = DA3Backbone(replace(TINY, **{start: 3}))
    backbone.load_state_dict(weights("da3_tiny"), strict=False)
    assert token_error(backbone, "98x98") > 10 * ATOL


# --- scenes of one view -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_an_image_does_not_depend_on_its_batch_mates(name: str) -> None:
    images = arrays(name)["in_70x42"]
    others = torch.cat([images[:1], torch.randn(3, *images.shape[1:])])
    backbone = official(name)
    assert torch.equal(backbone(images)[0], backbone(others)[0])
    assert worst(backbone(images[:1]), backbone(images)[:1]) < 2e-6
    assert worst(backbone(images.flip(0)).flip(0), backbone(images)) < 2e-6


def test_sides_that_are_no_multiples_of_the_patch() -> None:
    with pytest.raises(ValueError, match="56 x 57 pixels: both sides must be multiples of patch_size=14"):
        official("da3_tiny")(torch.randn(1, 3, 56, 57))


@pytest.mark.parametrize(("num_heads", "message"), [(5, "must divide embed_dim=48"), (8, "multiples of 4 channels")])
def test_heads_have_to_divide_the_width(num_heads: int, message: str) -> None:
    with pytest.raises(ValueError, match=f"num_heads={num_heads}: .*{message}"):
        DA3Backbone(replace(TINY, num_heads=num_heads))


def test_what_it_has_of_any_vision_transformer_knows_the_camera_token() -> None:
    """The tokens of a single block are those that the teacher gives for it."""
    backbone, images = official("da3_tiny"), arrays("da3_tiny")["in_56x56"]
    for block, tokens in enumerate(backbone.intermediate_tokens(images, range(6))):
        assert torch.equal(tokens.patch, backbone(images, block))
