"""timm networks as teachers: tokens are those that timm computes by another road, what does not apply is refused."""

import hashlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor

from dinoswap.teacher.base import Teacher
from options import build_option

CNN, VIT = "test_efficientnet", "test_vit"


def teacher(**settings: Any) -> Teacher:
    built: Teacher = build_option("teacher/timm", **{"ckpt_path": "", **settings})
    return built.eval()


def network(name: str, **arguments: Any) -> Any:
    """With batch statistics that matter."""
    torch.manual_seed(3)
    model = timm.create_model(name, **arguments)
    for key, buffer in model.named_buffers():
        if key.endswith(("running_mean", "running_var")):
            buffer.add_(torch.rand(buffer.shape))
    return model.eval()


def images(height: int, width: int) -> Tensor:
    return torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(1))


def rows(features: Tensor) -> Tensor:
    """A map [N, D, h, w] as tokens [N, P, D], one after another."""
    height, width = features.shape[-2:]
    return torch.stack([features[:, :, y, x] for y in range(height) for x in range(width)], dim=1)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """State dicts of both networks, classifier included."""
    folder = tmp_path_factory.mktemp("weights")
    save_file(network(CNN).state_dict(), folder / "cnn.safetensors")
    torch.save(network(VIT).state_dict(), folder / "vit.pth")
    yield {CNN: str(folder / "cnn.safetensors"), VIT: str(folder / "vit.pth")}


@torch.no_grad()
@pytest.mark.parametrize(("layer", "index", "stride"), [(None, 4, 32), (3, 3, 16), (-5, 0, 2)])
def test_a_convolutional_network(layer: int | None, index: int, stride: int, files: dict[str, str]) -> None:
    """Its tokens are the map that timm's own feature extractor gives."""
    extractor = timm.create_model(CNN, features_only=True, out_indices=(index,)).eval()
    extractor.load_state_dict(network(CNN).state_dict(), strict=False)
    found = teacher(variant=CNN, ckpt_path=files[CNN], layer=layer)
    (expected,) = extractor(images(64, 96))
    assert found.patch_size == stride
    assert found.embed_dim == expected.shape[1]
    assert torch.equal(found(images(64, 96)), rows(expected))


@torch.no_grad()
def test_a_vision_transformer(files: dict[str, str]) -> None:
    """Images of its own size and of another: the patch tokens before timm's pooling."""
    model = network(VIT, dynamic_img_size=True)
    found = teacher(variant=VIT, ckpt_path=files[VIT])
    assert (found.patch_size, found.embed_dim) == (16, model.embed_dim)
    for side in (160, 64):
        torch.testing.assert_close(
            found(images(side, 96)), model.forward_features(images(side, 96))[:, 1:], rtol=0, atol=1e-6
        )


@torch.no_grad()
def test_a_block_of_a_vision_transformer_goes_through_the_norm(files: dict[str, str]) -> None:
    model = network(VIT, dynamic_img_size=True)
    model.blocks = model.blocks[:2]
    found = teacher(variant=VIT, ckpt_path=files[VIT], layer=1)
    torch.testing.assert_close(found(images(64, 64)), model.forward_features(images(64, 64))[:, 1:], rtol=0, atol=1e-6)


@torch.no_grad()
@pytest.mark.parametrize("name", [CNN, VIT])
def test_an_image_does_not_depend_on_its_batch_mates(name: str, files: dict[str, str]) -> None:
    """Nor in training mode's batch statistics: the teacher comes in evaluation mode."""
    found = teacher(variant=name, ckpt_path=files[name])
    torch.testing.assert_close(found(images(64, 64))[:1], found(images(64, 64)[:1]), rtol=0, atol=1e-5)


@torch.no_grad()
def test_layers_behind_the_one_that_is_read_do_not_run(files: dict[str, str]) -> None:
    found: Any = teacher(variant=CNN, ckpt_path=files[CNN], layer=1)
    ran: list[str] = []
    for name, module in found.network.named_modules():
        module.register_forward_hook(lambda *_, name=name: ran.append(name))
    found(images(64, 64))
    assert "conv_stem" in ran
    stages = {name.split(".")[1] for name in ran if name.startswith("blocks.")}
    last = max(map(int, stages))
    assert last < len(found.network.blocks) - 1
    assert not {"conv_head", "bn2", "classifier"} & set(ran)


@torch.no_grad()
def test_the_classifier_may_be_absent(files: dict[str, str], tmp_path: Path) -> None:
    state = network(CNN).state_dict()
    bare = {key: value for key, value in state.items() if not key.startswith("classifier.")}
    assert len(bare) == len(state) - 2
    save_file(bare, tmp_path / "bare.safetensors")
    found, full = (teacher(variant=CNN, ckpt_path=path) for path in (str(tmp_path / "bare.safetensors"), files[CNN]))
    assert torch.equal(found(images(64, 64)), full(images(64, 64)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bn2.weight": None}, "missing bn2.weight;"),
        ({"extra": torch.zeros(1)}, "unexpected extra;"),
        ({"conv_stem.weight": torch.zeros(8, 3, 3, 3)}, r"conv_stem.weight is \[8, 3, 3, 3\], not \[\d+, 3, 3, 3\];"),
    ],
)
def test_weights_that_do_not_fit_are_named(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    state = {key: value for key, value in (network(CNN).state_dict() | change).items() if value is not None}
    torch.save(state, tmp_path / "weights.pth")
    with pytest.raises(ValueError, match=rf"^ckpt_path=.*weights.pth: {message} give the state dict"):
        teacher(variant=CNN, ckpt_path=str(tmp_path / "weights.pth"))


def test_identity_and_statistics(files: dict[str, str]) -> None:
    found = teacher(variant=CNN, ckpt_path=files[CNN])
    digest = hashlib.sha256(Path(files[CNN]).read_bytes()).hexdigest()[:16]
    assert found.identity == f"timm {CNN} layer 4 sha256:{digest}"
    assert files[CNN] in found.notice
    lite = teacher(variant="tf_efficientnet_lite0")
    assert (lite.mean, lite.std) == ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


@torch.no_grad()
def test_random_weights_are_always_the_same_ones() -> None:
    """Whatever was drawn before, and without a trace in what is drawn afterwards."""
    torch.manual_seed(1)
    first = teacher(variant=VIT)
    after = torch.randn(1)
    torch.manual_seed(1)
    assert torch.equal(after, torch.randn(1))
    assert torch.equal(first(images(64, 64)), teacher(variant=VIT)(images(64, 64)))
    assert first.identity.endswith("random weights")
    assert "RANDOM WEIGHTS" in first.notice


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"variant": "tf_eficientnet_lite0"}, r"variant=tf_eficientnet_lite0: .*tf_efficientnet_lite0"),
        ({"variant": "hf-hub:timm/test_vit"}, r"variant=hf-hub:timm/test_vit: no network of timm"),
        ({"variant": CNN, "layer": 5}, r"layer=5: .* 5 feature maps, of strides 2, 4, 8, 16, 32; use 0 to 4, or null"),
        ({"variant": CNN, "layer": -6}, r"layer=-6: "),
        ({"variant": CNN, "ckpt_path": "nothing/here.pth"}, r"ckpt_path=nothing/here.pth: no such file"),
    ],
)
def test_what_does_not_apply_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        teacher(**settings)


def test_without_timm_the_remedy_is_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ValueError, match=r"^cannot import timm .*; pip install 'dinoswap\[timm\]'"):
        teacher(variant=CNN)


def test_images_have_to_be_multiples_of_the_stride() -> None:
    with pytest.raises(ValueError, match=r"images of \(80, 64\) pixels: .*multiples of 32"):
        teacher(variant=CNN)(images(80, 64))


@torch.no_grad()
def test_a_network_of_one_size_says_so() -> None:
    found = teacher(variant="gmlp_ti16_224")
    assert found(images(224, 224)).shape == (2, 196, 128)
    with pytest.raises(ValueError, match=r"images of \(128, 128\) pixels: .*multiples of 16, and \(224, 224\) alone"):
        found(images(128, 128))


@torch.no_grad()
def test_a_map_that_is_not_as_announced_is_refused() -> None:
    """As of networks without padding, here by a wrong announcement."""
    found = teacher(variant=CNN, layer=3)
    found.patch_size = 8
    with pytest.raises(ValueError, match=r"gives a map \[\d+, 4, 4\] where timm's feature_info says \[\d+, 8, 8\]"):
        found(images(64, 64))
