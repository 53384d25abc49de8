"""The teacher by our own backbone: which tokens it gives, and which settings it refuses."""

from pathlib import Path
from typing import Any

import pytest
import torch
from da3_files import IMAGES, TINY_FILE, as_released, build, refused, saved, tiny
from da3_fixture import ATOL, FOLDER, arrays, description, weights
from torch import Tensor
from torch.nn import functional

TOKENS = arrays("da3_tiny")["s1_tokens_70x42"]


def test_tokens_of_the_file_and_of_its_folder(tmp_path: Path) -> None:
    folder = saved(tmp_path, tiny(), description("da3_tiny")["official_like_config"])
    for path in (TINY_FILE, folder, folder / "model.safetensors"):
        teacher = build(path)
        assert (teacher(IMAGES) - TOKENS).abs().max() < ATOL
        assert (teacher.embed_dim, teacher.patch_size) == (96, 14)


@pytest.mark.parametrize("settings", [{}, {"layer": 1}, {"token_part": "local"}, {"normalise_halves": True}], ids=str)
def test_no_image_at_all(settings: dict[str, Any]) -> None:
    teacher = build(TINY_FILE, **settings)
    assert teacher(IMAGES[:0]).shape == (0, 15, teacher.embed_dim)


def test_a_network_without_halves() -> None:
    teacher = build(FOLDER / "da3_tiny_mono.safetensors", num_heads=2)
    stored = arrays("da3_tiny_mono")
    assert teacher.embed_dim == 32
    assert (teacher(stored["in_70x42"]) - stored["s1_tokens_70x42"]).abs().max() < ATOL


def plain_norm(x: Tensor) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + 1e-6).sqrt()


@pytest.mark.parametrize("normalise", [False, True])
@pytest.mark.parametrize(("part", "columns"), [("local", slice(48)), ("global", slice(48, 96)), ("full", slice(96))])
def test_token_parts(part: str, columns: slice, normalise: bool) -> None:
    teacher = build(TINY_FILE, token_part=part, normalise_halves=normalise)
    expected = TOKENS[..., columns]
    if normalise:
        expected = torch.cat([plain_norm(half) for half in expected.split(48, dim=-1)], dim=-1)
    found = teacher(IMAGES)
    assert found.shape[-1] == teacher.embed_dim == expected.shape[-1]
    assert (found - expected).abs().max() < 5 * ATOL  # the raw half is divided by its deviation of about 0.2


@pytest.mark.parametrize(("layer", "block"), [(0, 0), (3, 3), (-1, 5), (-6, 0)])
def test_a_layer(layer: int, block: int) -> None:
    teacher = build(TINY_FILE, layer=layer)
    stored, state = arrays("da3_tiny"), weights("da3_tiny")
    raw = stored["s1_blocks_56x56"][block][:, 1:]
    expected = functional.layer_norm(raw, (48,), state["norm.weight"], state["norm.bias"], 1e-5)
    assert teacher.embed_dim == 48
    assert (teacher(stored["in_56x56"]) - expected).abs().max() < ATOL


@pytest.mark.parametrize(
    ("settings", "parts"),
    [
        ({"layer": 3, "token_part": "local"}, ["token_part=local", "layer=3", "use token_part=full"]),
        ({"layer": 3, "normalise_halves": True}, ["normalise_halves=true", "layer=3"]),
        ({"layer": 6}, ["layer=6", "6 blocks; use 0 to 5"]),
        ({"layer": -7}, ["layer=-7"]),
        ({"num_heads": 2}, ["num_heads=2", "3 heads", "da3_tiny.safetensors"]),
    ],
)
def test_settings_that_mean_nothing_here(settings: dict[str, Any], parts: list[str]) -> None:
    with refused(*parts):
        build(TINY_FILE, **settings)


@pytest.mark.parametrize("settings", [{"token_part": "global"}, {"normalise_halves": True}])
def test_halves_of_tokens_that_have_none(settings: dict[str, Any]) -> None:
    with refused(next(iter(settings)), "have no halves"):
        build(FOLDER / "da3_tiny_mono.safetensors", num_heads=2, **settings)


# --- random weights ---------------------------------------------------------------------------------------------------


def test_random_weights_are_always_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    as_released(monkeypatch)
    before = torch.random.get_rng_state()
    one = build("")
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(7)
    two = build("", variant="small")
    assert torch.equal(one(IMAGES), two(IMAGES))
    assert one.identity == "native small random weights"
    assert "RANDOM WEIGHTS" in one.notice
    assert one(IMAGES).std() > 0.1


def test_random_weights_of_another_number_of_heads(monkeypatch: pytest.MonkeyPatch) -> None:
    as_released(monkeypatch)
    with refused("num_heads=4", "small has 3"):
        build("", num_heads=4)


def test_an_unknown_variant() -> None:
    with refused("variant=vits", "small, base, large"):
        build("", variant="vits")
