"""The clean transform against torchvision's, how many decoded images are alive at once, and that extraction leaves no
trace in the network or the generators."""

import tracemalloc
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms import functional as TF

from dinoswap import rng
from dinoswap.data.images import CorruptImage, Images
from dinoswap.evaluation import features
from dinoswap.evaluation.features import EvalImages, FrozenBackbone
from dinoswap.nn.vit import VisionTransformer


class Stored(Images):
    """Smooth images of the given shapes; row `broken` cannot be decoded."""

    classes: Sequence[str] | None = None
    blocks: Sequence[int] = ()

    def __init__(self, shapes: list[tuple[int, int]], broken: int = -1) -> None:
        self.labels: NDArray[np.int64] | None = np.arange(len(shapes)) * 10
        self.broken = broken
        self.loads = 0
        knots = [np.random.default_rng(i).integers(0, 256, (4, 4, 3), dtype=np.uint8) for i in range(len(shapes))]
        self.pixels = [
            np.asarray(Image.fromarray(k).resize((w, h), Image.Resampling.BICUBIC))
            for k, (h, w) in zip(knots, shapes, strict=True)
        ]

    def __len__(self) -> int:
        return len(self.pixels)

    def load(self, row: int) -> NDArray[np.uint8]:
        self.loads += 1
        if row == self.broken:
            raise CorruptImage("x.png", "no bytes")
        return self.pixels[row]

    def name(self, row: int) -> str:
        return str(row)

    def label(self, row: int) -> int | None:
        return None if self.labels is None else int(self.labels[row])


@dataclass
class Tokens:
    cls: Tensor
    patch: Tensor


class Backbone(nn.Module):
    """CLS = mean pixel, patches = 4 x 4 means; draws random numbers in training mode only."""

    def __init__(self) -> None:
        super().__init__()
        self.dropout = nn.Dropout(0.5)
        self.frozen = nn.BatchNorm2d(3).eval()
        self.scale = nn.Parameter(torch.ones(1))
        self.batches: list[int] = []

    def forward(self, crops: list[Tensor]) -> list[Tokens]:
        out = []
        for x in crops:
            self.batches.append(len(x))
            x = self.dropout(x * self.scale)
            patch = nn.functional.avg_pool2d(x, 4).flatten(2).transpose(1, 2)
            out.append(Tokens(x.mean((2, 3)), patch.square()))
        return out


def pixels_of(images: EvalImages) -> Tensor:
    return torch.cat([batch.pixels for batch in images])


def brightness(pixels: Tensor) -> Mapping[str, Tensor]:
    return {"mean": pixels.float().mean((1, 2, 3))}


def torchvision_clean(data: Stored, size: int, resize: int) -> NDArray[np.int64]:
    image = TF.resize(Image.fromarray(data.load(0)), [resize], TF.InterpolationMode.BICUBIC, antialias=True)
    return np.asarray(TF.center_crop(image, [size])).astype(int)


def ours_clean(data: Stored, size: int, resize: int) -> NDArray[np.int64]:
    return pixels_of(EvalImages(data, size, resize))[0].permute(1, 2, 0).numpy().astype(int)


@pytest.mark.parametrize("shape", [(64, 64), (96, 64), (64, 128), (300, 200)])
@pytest.mark.parametrize(("size", "resize"), [(32, 32), (28, 32), (224, 256)])
def test_equals_resize_then_centre_crop(shape: tuple[int, int], size: int, resize: int) -> None:
    data = Stored([shape])
    error = np.abs(ours_clean(data, size, resize) - torchvision_clean(data, size, resize))
    assert error.max() <= 2  # 8-bit levels: the passes round their weights separately
    assert error.mean() < 0.1


def test_near_resize_then_centre_crop_where_the_corner_is_no_whole_pixel() -> None:
    data = Stored([(50, 128)])  # torchvision rounds the long side and then the corner: up to a pixel apart
    assert np.abs(ours_clean(data, 224, 256) - torchvision_clean(data, 224, 256)).mean() < 1


def test_image_of_the_right_size_is_untouched() -> None:
    data = Stored([(32, 32)])
    assert np.array_equal(pixels_of(EvalImages(data, 32))[0].permute(1, 2, 0).numpy(), data.load(0))


@pytest.mark.parametrize("shape", [(1, 1), (1, 5000), (5000, 1), (3, 2)])
def test_extreme_shapes(shape: tuple[int, int]) -> None:
    assert pixels_of(EvalImages(Stored([shape]), 224)).shape == (1, 3, 224, 224)


def test_default_resize() -> None:
    assert [features.default_resize(s) for s in (28, 32, 64, 96, 224, 518)] == [28, 32, 64, 110, 256, 592]


def test_rows_are_the_same_every_time_and_independent_of_generators() -> None:
    np.random.seed(1)  # noqa: NPY002
    first = rng.fixed_subset(100, 10)
    np.random.seed(2)  # noqa: NPY002
    assert np.array_equal(first, rng.fixed_subset(100, 10))
    assert len(set(first.tolist())) == 10
    assert first.tolist() == sorted(first.tolist())
    assert np.array_equal(rng.fixed_subset(7, 10), np.arange(7))
    assert first.tolist() != list(range(10))


def test_limit_takes_the_images_and_labels_of_the_fixed_subset() -> None:
    data = Stored([(16, 16)] * 20)
    rows = rng.fixed_subset(20, 6)
    taken = EvalImages(data, 16, limit=6)
    assert torch.equal(pixels_of(taken), torch.stack([torch.tensor(data.load(int(i))).permute(2, 0, 1) for i in rows]))
    assert features.extract(taken, {}).labels.tolist() == [10 * i for i in rows]
    assert taken.corrupt == {}


def test_corrupt_images_are_left_out_with_their_labels() -> None:
    data = EvalImages(Stored([(16, 16)] * 3, broken=1), 16)
    taken = features.extract(data, {"brightness": brightness})
    assert (len(taken.features["brightness"]["mean"]), taken.labels.tolist(), data.corrupt) == (
        2,
        [0, 20],
        {1: "no bytes"},
    )
    with pytest.raises(ValueError, match=r"none of 1 images .*no bytes"):
        features.extract(EvalImages(Stored([(16, 16)], broken=0), 16), {})


@pytest.mark.parametrize(("broken", "sizes"), [(0, [3, 4, 1]), (3, [3, 4, 1]), (4, [4, 3, 1]), (8, [4, 4, 0])])
def test_an_image_that_is_left_out_moves_no_other_one_into_another_batch(broken: int, sizes: list[int]) -> None:
    batches = list(EvalImages(Stored([(8, 8)] * 9, broken), 8, batch_size=4))
    assert [len(batch.pixels) for batch in batches] == sizes
    assert [row for batch in batches for row in batch.rows] == [row for row in range(9) if row != broken]


def test_workers_decode_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features, "IN_PROCESS", 0)
    here, there = (EvalImages(Stored([(20, 30)] * 9, broken=3), 8, batch_size=4, workers=count) for count in (0, 2))
    assert torch.equal(pixels_of(here), pixels_of(there))
    assert here.corrupt == there.corrupt == {3: "no bytes"}
    assert (here.images.loads, there.images.loads) == (9, 0)  # in this process


def test_unlabelled_images() -> None:
    data = Stored([(16, 16)])
    data.labels = None
    assert not EvalImages(data, 16).labelled
    assert features.extract(EvalImages(data, 16), {}).labels.tolist() == [-1]


def test_mistakes_are_named() -> None:
    with pytest.raises(ValueError, match="resize=16"):
        EvalImages(Stored([(8, 8)]), 32, 16)
    with pytest.raises(ValueError, match="limit=0"):
        rng.fixed_subset(5, 0)


def peak_images(images: EvalImages) -> float:
    """Memory at most in use while features are extracted, in decoded images."""
    tracemalloc.start()
    features.extract(images, {"brightness": brightness})
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak / (3 * images.size**2)


def test_no_more_than_one_batch_of_decoded_images_is_alive() -> None:
    data = Stored([(64, 64)] * 60)
    assert 8 <= peak_images(EvalImages(data, 128, batch_size=8)) < 12
    assert data.loads == 60


def test_decoded_images_are_kept_only_if_all_of_them_may() -> None:
    size = 20 * 3 * 32**2
    for keep_bytes, loads in ((size, 20), (size - 1, 40)):
        data = Stored([(32, 32)] * 20, broken=5)
        images = EvalImages(data, 32, batch_size=8, keep_bytes=keep_bytes)
        first, again = (features.extract(images, {"brightness": brightness}) for _ in range(2))
        assert torch.equal(first.features["brightness"]["mean"], again.features["brightness"]["mean"])
        assert (data.loads, first.rows, images.corrupt) == (loads, again.rows, {5: "no bytes"})


def test_extract_computes_cls_and_the_mean_patch() -> None:
    data = Stored([(8, 8)] * 10)
    images = torch.from_numpy(np.stack(data.pixels)).permute(0, 3, 1, 2)
    mean, std = [0.4, 0.5, 0.6], [0.2, 0.25, 0.3]
    network = Backbone()
    reader = FrozenBackbone(network, torch.tensor(mean), torch.tensor(std)).features
    out = features.extract(EvalImages(data, 8, batch_size=4), {"network": reader}).features["network"]
    pixels = (images.double() / 255 - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    cells = pixels.reshape(10, 3, 2, 4, 2, 4).mean((3, 5)).square().mean((2, 3))
    assert network.batches == [4, 4, 2]
    torch.testing.assert_close(out["cls"].double(), pixels.mean((2, 3)), rtol=0, atol=1e-5)
    torch.testing.assert_close(out["patch_mean"].double(), cells, rtol=0, atol=1e-5)


def test_extract_and_patch_tokens_of_a_vision_transformer() -> None:
    torch.manual_seed(0)
    network = VisionTransformer(
        img_size=16, patch_size=4, embed_dim=24, depth=2, num_heads=2, registers=2, drop_path=0.5
    )
    images = torch.randint(0, 256, (5, 3, 16, 16), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    frozen = FrozenBackbone(network.train(), torch.full((3,), 0.5), torch.full((3,), 0.25))
    out, patch = frozen.features(images), frozen.patch_tokens(images)
    with torch.no_grad():
        tokens = network.eval()([(images / 255 - 0.5) / 0.25])[0]
    torch.testing.assert_close(out["cls"], tokens.cls, rtol=0, atol=1e-4)
    torch.testing.assert_close(patch, tokens.patch, rtol=0, atol=1e-4)
    torch.testing.assert_close(out["patch_mean"], patch.mean(1), rtol=0, atol=1e-4)
    low = replace(frozen, autocast=torch.bfloat16).features(images)["patch_mean"]
    assert 0 < (low - out["patch_mean"]).abs().max() < 0.1


def test_reading_leaves_no_trace() -> None:
    images = torch.zeros(4, 3, 8, 8, dtype=torch.uint8)
    network = Backbone()
    network.train()
    network.frozen.eval()
    flags = [m.training for m in network.modules()]
    state = torch.get_rng_state()
    half = torch.full((3,), 0.5)
    out = FrozenBackbone(network, half, half, autocast=torch.bfloat16).features(images)
    assert torch.equal(state, torch.get_rng_state())
    assert [m.training for m in network.modules()] == flags == [True, True, False]
    assert not out["cls"].requires_grad
    assert out["cls"].dtype == out["patch_mean"].dtype == torch.float32
    assert torch.is_grad_enabled()


def test_flags_come_back_after_an_error() -> None:
    network = Backbone()

    def explode() -> None:
        with features.evaluating(network):
            assert not network.training
            raise RuntimeError("no memory")

    with pytest.raises(RuntimeError, match="no memory"):
        explode()
    assert network.training
