"""An official file or folder: which network is in it, what is read, what is refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from da3_files import IMAGES, TINY_FILE, File, as_released, build, nested, refused, saved, tiny
from da3_fixture import ATOL, FOLDER, PREFIX, arrays, description, official
from safetensors.torch import load_file, save_file
from torch import Tensor

from dinoswap.files.digest import sha256
from dinoswap.teacher.depth_anything.source import Source
from dinoswap.teacher.depth_anything.variants import VARIANTS

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


def test_a_file_in_parts(tmp_path: Path) -> None:
    expected = build(saved(tmp_path, tiny()))
    (tmp_path / "model.safetensors").unlink()
    tensors, listed = tiny(), dict[str, str]()
    for number, names in enumerate((sorted(tensors)[::2], sorted(tensors)[1::2])):
        save_file({name: tensors[name] for name in names}, tmp_path / f"part-{number}.safetensors")
        listed |= dict.fromkeys(names, f"part-{number}.safetensors")
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": listed}))
    teacher = build(tmp_path)
    assert torch.equal(teacher(IMAGES), expected(IMAGES))
    before = teacher.identity
    save_file(
        {name: tensors[name] + 1 for name in listed if listed[name] == "part-1.safetensors"},
        tmp_path / "part-1.safetensors",
    )
    assert build(tmp_path).identity != before
    (tmp_path / "part-1.safetensors").unlink()
    with refused(f"ckpt_path={tmp_path}: ", "lists part-1.safetensors, which is missing"):
        build(tmp_path)


# --- which network ----------------------------------------------------------------------------------------------------


def test_variants(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    as_released(monkeypatch)
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


def test_mono_or_metric(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    as_released(monkeypatch)
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


def test_nested_networks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    as_released(monkeypatch)
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
    notice = Source(VARIANTS[variant].architecture, (variant,), Path("model.safetensors")).notice
    assert ("Apache-2.0" in notice) == commercial
    assert ("non-commercial" in notice) != commercial
