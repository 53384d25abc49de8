"""teacher=package with a module in place of `depth_anything_3.model.dinov2.dinov2` that records how it is called."""

import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from da3_fixture import FOLDER, MONO, TINY, arrays
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from dinoswap.nn.sizes import SIZES
from dinoswap.teacher import package
from dinoswap.teacher.base import Teacher
from dinoswap.teacher.depth_anything.backbone import DA3Backbone
from dinoswap.teacher.depth_anything.variants import VARIANTS
from options import build_option

FILE = FOLDER / "da3_tiny.safetensors"
IMAGES = arrays("da3_tiny")["in_70x42"]
STARTS = {"alt_start": 2, "qknorm_start": 2, "rope_start": 2}


class FakeDinoV2(nn.Module):
    """With the package's signatures, parameter names and shapes of outputs, for scenes of one view."""

    made: list[dict[str, Any]]
    calls: list[tuple[tuple[int, ...], dict[str, Any]]]

    def __init__(self, name: str, out_layers: list[int], cat_token: bool = True, **starts: int) -> None:
        super().__init__()
        self.made.append({"name": name, "out_layers": out_layers, "cat_token": cat_token, **starts})
        self.out_layers = out_layers
        self.pretrained = DA3Backbone(TINY if cat_token else MONO)

    def forward(self, x: Tensor, export_feat_layers: list[int]) -> Any:
        self.calls.append((tuple(x.shape), {"export_feat_layers": export_feat_layers}))
        assert x.shape[1] == 1
        pairs = self.pretrained.out_layers(x[:, 0], self.out_layers)
        exported = [self.pretrained(x[:, 0], layer)[:, None] for layer in export_feat_layers]
        return tuple((patches[:, None], special[:, None]) for patches, special in pairs), exported


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> type[FakeDinoV2]:
    """Whose vits is the tiny network, which is also the released small one."""
    monkeypatch.setattr(FakeDinoV2, "made", [], raising=False)
    monkeypatch.setattr(FakeDinoV2, "calls", [], raising=False)
    module = ModuleType(package.MODULE)
    module.DinoV2 = FakeDinoV2  # type: ignore[attr-defined]
    parents = [package.MODULE.rsplit(".", n)[0] for n in (3, 2, 1)]
    for name in parents:
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, package.MODULE, module)
    monkeypatch.setitem(SIZES, "small", (48, 6, 3, "mlp"))
    monkeypatch.setitem(SIZES, "large", (32, 4, 2, "mlp"))
    monkeypatch.setitem(VARIANTS, "small", replace(VARIANTS["small"], architecture=TINY))
    return FakeDinoV2


def build(path: Path | str, **given: Any) -> Teacher:
    built: Teacher = build_option("teacher/package", ckpt_path=str(path), **given)
    return built.requires_grad_(False).eval()


@pytest.mark.parametrize("given", [{}, {"token_part": "local"}, {"normalise_halves": True}, {"layer": 3}], ids=str)
def test_it_is_the_native_teacher(given: dict[str, Any], fake: type[FakeDinoV2]) -> None:
    teacher, ours = build(FILE, **given), build_option("teacher/native", ckpt_path=str(FILE), **given).eval()
    assert torch.equal(teacher(IMAGES), ours(IMAGES))
    assert teacher.embed_dim == ours.embed_dim
    assert teacher.identity == ours.identity.replace("native", "package")
    assert teacher.identity.startswith("package small sha256:")
    assert teacher.notice == ours.notice


def test_every_image_is_a_scene(fake: type[FakeDinoV2]) -> None:
    build(FILE)(IMAGES)
    build(FILE, layer=-2)(IMAGES)
    assert fake.calls == [
        ((4, 1, 3, 70, 42), {"export_feat_layers": []}),
        ((4, 1, 3, 70, 42), {"export_feat_layers": [4]}),
    ]
    assert fake.made == [{"name": "vits", "out_layers": [5], "cat_token": True, **STARTS}] * 2


def test_starts_that_there_are_none_of(fake: type[FakeDinoV2]) -> None:
    stored = arrays("da3_tiny_mono")
    teacher = build(FOLDER / "da3_tiny_mono.safetensors", num_heads=2)
    assert fake.made == [{"name": "vitl", "out_layers": [3], "cat_token": False} | dict.fromkeys(STARTS, -1)]
    assert (teacher(stored["in_56x56"]) - stored["s1_tokens_56x56"]).abs().max() < 2e-5


def test_loading_is_strict(fake: type[FakeDinoV2], tmp_path: Path) -> None:
    file = load_file(FILE)
    del file["model.backbone.pretrained.norm.bias"]
    save_file(file, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"missing norm\.bias"):
        build(tmp_path)


def test_random_weights(fake: type[FakeDinoV2]) -> None:
    before = torch.random.get_rng_state()
    one, two = build(""), build("", variant="small")
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(one(IMAGES), two(IMAGES))
    assert one.identity == "package small random weights"


def test_sides_that_are_no_multiples_of_the_patch(fake: type[FakeDinoV2]) -> None:
    with pytest.raises(ValueError, match=r"images of \[70, 43\] pixels: give multiples of 14"):
        build(FILE)(torch.zeros(1, 3, 70, 43))


def test_a_network_that_the_package_does_not_have(fake: type[FakeDinoV2], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SIZES, "small", (384, 12, 6, "mlp"))
    with pytest.raises(ValueError, match=r"the package has no network of .*; choose teacher@da3.teacher=native"):
        build(FILE)


def test_without_the_package(fake: type[FakeDinoV2], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, package.MODULE, None)
    with pytest.raises(ValueError, match=r"cannot import .*; choose teacher@da3.teacher=native"):
        build(FILE)
