"""The teacher from an official file or folder: what is read, what is refused, which tokens it gives."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from da3_fixture import ATOL, FOLDER, MONO, PREFIX, TINY, arrays, description, official, weights
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional

from dinoswap.da3 import native, source
from dinoswap.da3.protocol import Teacher, TeacherSettings
from dinoswap.da3.variants import VARIANTS
from dinoswap.da3.weights import sha256

File = dict[str, Tensor]
TINY_FILE = FOLDER / "da3_tiny.safetensors"
IMAGES = arrays("da3_tiny")["in_70x42"]
TOKENS = arrays("da3_tiny")["s1_tokens_70x42"]


def build(path: Path | str, **settings: Any) -> Teacher:
    return native.build(TeacherSettings(ckpt_path=str(path), **settings)).requires_grad_(False).eval()


def tiny() -> File:
    return load_file(TINY_FILE)


def saved(folder: Path, tensors: File, config: Any = None) -> Path:
    """A folder as it is on the hub."""
    save_file(tensors, folder / "model.safetensors")
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config))
    return folder


def nested(folder: Path) -> Path:
    """Both tiny networks in one file, with tensors of a head and of a camera decoder."""
    both = {VARIANTS["nested_giant"].prefix + name: value for name, value in weights("da3_tiny").items()}
    both |= {VARIANTS["nested_metric"].prefix + name: value for name, value in weights("da3_tiny_mono").items()}
    both |= {"model.da3.cam_dec.backbone.0.weight": torch.ones(2), "model.da3_metric.head.norm.weight": torch.ones(2)}
    net = description("da3_tiny")["official_like_config"]["config"]["net"]
    mono = description("da3_tiny_mono")["official_like_config"]["config"]["net"]
    config = {"anyview": {"net": net}, "metric": {"net": mono}}
    return saved(folder, both, {"model_name": "da3nested-giant-large", "config": config})


@pytest.fixture
def small_releases(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the fixtures' networks were released."""
    for names, spec in ((("small", "nested_giant"), TINY), (("mono", "metric", "nested_metric"), MONO)):
        for name in names:
            monkeypatch.setitem(VARIANTS, name, replace(VARIANTS[name], architecture=spec))


@contextmanager
def refused(*parts: str) -> Iterator[None]:
    with pytest.raises(ValueError) as caught:
        yield
    for part in parts:
        assert part in str(caught.value)


# --- tokens -----------------------------------------------------------------------------------------------------------


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
        ({"token_part": "half"}, ["token_part=half", "full, local, global"]),
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


# --- strict loading ---------------------------------------------------------------------------------------------------


def without(name: str) -> Callable[[File], object]:
    return lambda file: file.pop(PREFIX + name)


def with_tensor(name: str, value: Tensor) -> Callable[[File], object]:
    return lambda file: file.update({PREFIX + name: value})


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (without("norm.bias"), "missing norm.bias"),
        (without("camera_token"), "missing camera_token"),
        (without("blocks.2.attn.q_norm.weight"), "missing blocks.2.attn.q_norm.weight"),
        (without("blocks.0.mlp.fc1.weight"), "missing blocks.0.mlp.fc1.weight"),
        (without("pos_embed"), "missing pos_embed"),
        (with_tensor("mask_token", torch.zeros(1, 48)), "unexpected mask_token"),
        (with_tensor("blocks.1.attn.q_norm.weight", torch.zeros(16)), "missing blocks.1.attn.q_norm.bias"),
        (with_tensor("blocks.3.ls1.gamma", torch.zeros(47)), "blocks.3.ls1.gamma is [47], not [48]"),
        (with_tensor("pos_embed", torch.zeros(1, 48, 48)), "pos_embed is [1, 48, 48], not [1, 37, 48]"),
        (with_tensor("norm.weight", torch.zeros(48, dtype=torch.int32)), "norm.weight is torch.int32"),
    ],
)
def test_a_file_that_does_not_fit(change: Callable[[File], object], problem: str, tmp_path: Path) -> None:
    file = tiny()
    change(file)
    with refused("ckpt_path=", str(tmp_path), problem):
        build(saved(tmp_path, file))


def test_many_problems_are_cut_short(tmp_path: Path) -> None:
    file = {name: value for name, value in tiny().items() if ".ls" not in name}
    with refused("missing blocks.0.ls1.gamma", "and 4 more"):
        build(saved(tmp_path, file))


def test_nothing_but_the_backbone_is_read(tmp_path: Path) -> None:
    """The camera decoder has a part that is called backbone as well."""
    file = tiny()
    file |= {
        "model.cam_dec.backbone.pretrained.norm.weight": torch.full((48,), 9.0),
        "model.cam_dec.backbone.0.weight": torch.ones(3, 3),
        "model.head.scale": torch.tensor(1.0),
        "backbone.pretrained.norm.weight": torch.full((48,), 9.0),
    }
    assert torch.equal(build(saved(tmp_path, file))(IMAGES), build(TINY_FILE)(IMAGES))


@pytest.mark.parametrize("rename", [lambda name: name.removeprefix("model."), lambda name: f"module.{name}"])
def test_other_names_load_nothing(rename: Callable[[str], str], tmp_path: Path) -> None:
    file = {rename(name): value for name, value in tiny().items()}
    kind = rename("model.backbone.pretrained").rpartition(".pretrained")[0]
    with refused("no name begins with model.backbone.pretrained.", "model.da3.backbone.pretrained.", kind):
        build(saved(tmp_path, file))


def test_files_that_are_no_safetensors(tmp_path: Path) -> None:
    torch.save(tiny(), tmp_path / "weights.pth")
    with refused("ckpt_path=", "not a whole safetensors file"):
        build(tmp_path / "weights.pth")
    (tmp_path / "cut.safetensors").write_bytes(TINY_FILE.read_bytes()[:-8])
    with refused("ckpt_path=", "not a whole safetensors file"):
        build(tmp_path / "cut.safetensors")
    with refused("no such file"):
        build(tmp_path / "absent")


def test_other_precisions_become_float32(tmp_path: Path) -> None:
    file = {name: value.bfloat16() for name, value in tiny().items()}
    teacher = build(saved(tmp_path, file))
    assert {p.dtype for p in teacher.parameters()} == {torch.float32}
    expected = official("da3_tiny").to(torch.bfloat16).float()
    assert torch.equal(teacher(IMAGES), expected(IMAGES))


def test_the_weights_outlive_their_file(tmp_path: Path) -> None:
    teacher = build(saved(tmp_path, tiny()))
    expected = teacher(IMAGES)
    with (tmp_path / "model.safetensors").open("r+b") as file:
        file.write(b"\0" * TINY_FILE.stat().st_size)
    assert torch.equal(teacher(IMAGES), expected)


# --- which network ----------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("small_releases")
def test_variants(tmp_path: Path) -> None:
    folder = saved(tmp_path, tiny())
    for variant in (None, "small"):
        teacher = build(folder, variant=variant)
        assert teacher.identity == f"native small sha256:{sha256(folder / 'model.safetensors')[:16]}"
        assert "small" in teacher.notice
        assert "Apache-2.0" in teacher.notice
    with refused("variant=base", "small", "embed_dim=48 instead of 768", "set variant=small"):
        build(folder, variant="base")


def test_an_unreleased_network_has_no_variant_and_no_known_licence() -> None:
    teacher = build(TINY_FILE)
    assert teacher.identity == f"native unreleased, 6 blocks of width 48 sha256:{sha256(TINY_FILE)[:16]}"
    assert "licence: not known" in teacher.notice
    with refused("variant=small", "unreleased", "set variant=null"):
        build(TINY_FILE, variant="small")


@pytest.mark.usefixtures("small_releases")
def test_mono_or_metric(tmp_path: Path) -> None:
    file = load_file(FOLDER / "da3_tiny_mono.safetensors")
    folder = saved(tmp_path, file)
    assert "native mono or metric sha256" in build(folder, num_heads=2).identity
    assert "native metric sha256" in build(folder, num_heads=2, variant="metric").identity
    folder = saved(
        tmp_path, file, description("da3_tiny_mono")["official_like_config"] | {"model_name": "da3mono-large"}
    )
    assert "native mono sha256" in build(folder, num_heads=2).identity
    with refused("variant=metric", "mono", "as its config.json says", "set variant=mono"):
        build(folder, num_heads=2, variant="metric")


@pytest.mark.usefixtures("small_releases")
def test_nested_networks(tmp_path: Path) -> None:
    folder = nested(tmp_path)
    giant, metric = build(folder, variant="nested_giant"), build(folder, variant="nested_metric", num_heads=2)
    assert torch.equal(giant(IMAGES), build(TINY_FILE)(IMAGES))
    mono = arrays("da3_tiny_mono")
    assert (metric(mono["in_56x56"]) - mono["s1_tokens_56x56"]).abs().max() < ATOL
    for teacher, name in ((giant, "nested_giant"), (metric, "nested_metric")):
        assert name in teacher.identity
        assert "non-commercial" in teacher.notice
    for variant in (None, "small", "giant"):
        with refused(f"variant={variant or 'null'}", "nested_giant or nested_metric"):
            build(folder, variant=variant)
    with refused("variant=nested_giant", "model.da3.backbone.pretrained.", "set variant=null"):
        build(TINY_FILE, variant="nested_giant")


@pytest.mark.parametrize(
    ("config", "parts"),
    [
        ({"config": {"net": {"name": "vits", "alt_start": 2, "qknorm_start": 2}}}, ["embed_dim=384 instead of 48"]),
        ({"config": {"net": {"alt_start": 2, "qknorm_start": 3}}}, ["qknorm_start=3 instead of 2"]),
        ({"config": {"net": {"alt_start": -1, "qknorm_start": 2}}}, ["unexpected camera_token"]),
        ({"model_name": "da3-small"}, ["embed_dim=384 instead of 48"]),
        ([1], ["its config.json is no mapping"]),
    ],
)
def test_a_config_that_does_not_fit(config: Any, parts: list[str], tmp_path: Path) -> None:
    folder = saved(tmp_path, tiny(), config)
    with refused(f"ckpt_path={folder}", *parts):
        build(folder)
    build(folder / "model.safetensors")  # which is read alone


def test_a_config_that_is_no_json(tmp_path: Path) -> None:
    (saved(tmp_path, tiny()) / "config.json").write_text("{")
    with refused("ckpt_path=", "its config.json is not JSON"):
        build(tmp_path)


@pytest.mark.parametrize(("variant", "commercial"), [("small", True), ("large", False), ("nested_metric", False)])
def test_notices_name_the_licence(variant: str, commercial: bool) -> None:
    notice = source.Source(VARIANTS[variant].architecture, (variant,), Path("model.safetensors")).notice
    assert ("Apache-2.0" in notice) == commercial
    assert ("non-commercial" in notice) != commercial


# --- random weights ---------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("small_releases")
def test_random_weights_are_always_the_same() -> None:
    before = torch.random.get_rng_state()
    one = build("")
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(7)
    two = build("", variant="small")
    assert torch.equal(one(IMAGES), two(IMAGES))
    assert one.identity == "native small random weights"
    assert "RANDOM WEIGHTS" in one.notice
    assert one(IMAGES).std() > 0.1


@pytest.mark.usefixtures("small_releases")
def test_random_weights_of_another_number_of_heads() -> None:
    with refused("num_heads=4", "small has 3"):
        build("", num_heads=4)


def test_an_unknown_variant() -> None:
    with refused("variant=vits", "small, base, large"):
        build("", variant="vits")
