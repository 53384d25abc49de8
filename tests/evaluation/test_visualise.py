"""Pictures laid out by hand are checked pixel by pixel, charts by what they must and must not depend on."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib import colormaps
from PIL import Image
from torch import Tensor

from dinoswap.evaluation import visualise as v
from dinoswap.evaluation.summary import Column
from dinoswap.files import pictures
from dinoswap.metric.base import Score
from dinoswap.values import Batch, masked_positions

MEAN, STD = [0.4, 0.5, 0.6], [0.2, 0.25, 0.3]


def batch(extra: int = 0, local: int = 3, images: int = 3) -> Batch:
    g = torch.Generator().manual_seed(0)

    def crops(count: int, size: int) -> Tensor:
        return torch.randint(0, 256, (count, images, 3, size, size), generator=g, dtype=torch.uint8)

    mask = torch.zeros(1 if extra else 2, images, 16, dtype=torch.bool)
    mask[0, 0, 5] = True  # row 1, column 1 of the first carrier of the first image
    return Batch(
        global_crops=crops(2, 32),
        local_crops=crops(local, 16),
        extra_crops=crops(extra, 32),
        mask=mask,
        **masked_positions(mask),
        indices=torch.arange(images),
    )


def test_mask_covers_exactly_its_patches() -> None:
    image = np.random.default_rng(0).integers(0, 256, (32, 64, 3), dtype=np.uint8)
    mask = np.zeros((4, 4), dtype=np.bool_)
    mask[1, 2] = True
    drawn = v.mask_drawn(image, mask)
    patch = np.zeros((32, 64), dtype=np.bool_)
    patch[8:16, 32:48] = True
    assert np.array_equal(drawn[~patch], image[~patch])
    grey = np.ptp(drawn[patch].astype(int), axis=1) - np.ptp(image[patch].astype(int), axis=1) / 4
    assert np.abs(grey).max() <= 1  # a quarter of the colour is left
    assert len(np.unique((drawn[patch].astype(int) - image[patch] / 4).round() // 30)) == 2  # lines and ground


def test_crops_are_to_scale_and_masks_on_the_carriers() -> None:
    b = batch()
    picture = v.crops_figure(b, (4, 4), MEAN, STD, images=2, cell_size=64)
    first = picture[pictures.HEADER : pictures.HEADER + 64, pictures.GAP : pictures.GAP + 64]
    plain = np.asarray(b.global_crops[0, 0].permute(1, 2, 0)).repeat(2, 0).repeat(2, 1)
    hidden = np.zeros((64, 64), dtype=np.bool_)
    hidden[16:32, 16:32] = True
    assert np.array_equal(first[~hidden], plain[~hidden])
    assert not np.array_equal(first[hidden], plain[hidden])
    left = pictures.GAP + 2 * (64 + pictures.GAP)
    local = picture[pictures.HEADER : pictures.HEADER + 32, left : left + 32]
    assert np.array_equal(local, np.asarray(b.local_crops[0, 0].permute(1, 2, 0)).repeat(2, 0).repeat(2, 1))


def test_the_extra_crop_carries_the_mask_where_there_is_one() -> None:
    b = batch(extra=1)
    picture = v.crops_figure(b, (4, 4), MEAN, STD, cell_size=64)
    plain = np.asarray(b.global_crops[0, 0].permute(1, 2, 0)).repeat(2, 0).repeat(2, 1)
    assert np.array_equal(picture[pictures.HEADER : pictures.HEADER + 64, pictures.GAP : pictures.GAP + 64], plain)
    left = pictures.GAP + 2 * (64 + pictures.GAP)
    plain = np.asarray(b.extra_crops[0, 0].permute(1, 2, 0)).repeat(2, 0).repeat(2, 1)
    changed = (picture[pictures.HEADER : pictures.HEADER + 64, left : left + 64] != plain).any(2)
    assert set(np.argwhere(changed)[:, 0]) | set(np.argwhere(changed)[:, 1]) <= set(range(16, 32))
    assert changed.sum() > 200


def test_neighbours_stand_beside_their_query() -> None:
    """Above text that is as wide as an image, and in any script."""
    images = np.random.default_rng(0).integers(0, 256, (2, 3, 16, 16, 3), dtype=np.uint8)
    long = "a long name of a file that is a photograph of a cat.jpeg"
    rows = [[(image, ["0.987  猫", long[place:]]) for image in row] for place, row in enumerate(images)]
    picture = v.neighbours_figure(rows, cell_size=64)
    high, wide = 64 + 2 * pictures.HEADER + pictures.GAP, 64 + pictures.GAP
    assert picture.shape == (2 * high + pictures.HEADER + pictures.GAP, 3 * wide + pictures.GAP, 3)
    for row in range(2):
        for place in range(3):
            top, left = pictures.HEADER + row * high, pictures.GAP + place * wide
            assert np.array_equal(
                picture[top : top + 64, left : left + 64], images[row, place].repeat(4, 0).repeat(4, 1)
            )
            below = picture[top + 64 : top + high - pictures.GAP, left : left + 64]
            assert (below[pictures.HEADER :] < 128).any()
        assert (picture[:, pictures.GAP + 64 + 1 : pictures.GAP + wide - 1] == 255).all(2)[pictures.HEADER :].all()


def test_normalised_crops_give_the_same_picture() -> None:
    b = batch()
    normalised = b.normalised(torch.tensor(MEAN), torch.tensor(STD))
    assert np.array_equal(v.crops_figure(normalised, (4, 4), MEAN, STD), v.crops_figure(b, (4, 4), MEAN, STD))


def test_no_local_crops() -> None:
    assert v.crops_figure(batch(local=0), (4, 4), MEAN, STD).shape == (3 * 100 + 20, 2 * 100 + 4, 3)


@pytest.mark.parametrize("seed", range(6))
def test_pca_recovers_three_planted_directions(seed: int) -> None:
    """Tokens = orthogonal directions times known maps of falling variance: the colours are these maps."""
    g = torch.Generator().manual_seed(seed)
    maps = torch.rand(2, 12, 3, generator=g).double() * torch.tensor([9.0, 3.0, 1.0])
    directions = torch.linalg.qr(torch.randn(8, 3, generator=g).double()).Q.T
    directions *= directions.gather(1, directions.abs().argmax(1, keepdim=True)).sign()
    colours = v.pca_rgb(maps @ directions + 5, (3, 4)).reshape(24, 3)
    for c in range(3):
        assert np.corrcoef(colours[:, c], maps.flatten(0, 1)[:, c].numpy())[0, 1] > 0.8
    assert colours.min() == 0
    assert colours.max() == 1


def test_pca_of_identical_tokens_is_grey() -> None:
    assert (v.pca_rgb(torch.ones(2, 4, 5), (2, 2)) == 0.5).all()
    one = torch.zeros(1, 4, 5)
    one[0, :, 2] = torch.arange(4)
    assert (v.pca_rgb(one, (2, 2))[..., 1:] == 0.5).all()


def test_an_outlier_does_not_take_all_the_contrast() -> None:
    tokens = torch.zeros(4, 100, 3)
    tokens[..., 1] = torch.rand(4, 100, generator=torch.Generator().manual_seed(0))
    tokens[0, 0, 1] = 1000.0
    assert v.pca_rgb(tokens, (10, 10))[..., 0].std() > 0.2


def test_pca_stands_beside_its_image() -> None:
    images = torch.randint(0, 256, (5, 3, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    tokens = torch.randn(5, 4, 6, generator=torch.Generator().manual_seed(1))
    picture = v.pca_figure(images, tokens.unflatten(1, (2, 2)), cell_size=64, pairs=2)
    step = 64 + pictures.GAP
    assert picture.shape[:2] == (pictures.HEADER + pictures.GAP + 3 * step, pictures.GAP + 4 * step)
    third = picture[pictures.HEADER + step : pictures.HEADER + step + 64, pictures.GAP : pictures.GAP + 64]
    assert np.array_equal(third, images[2].permute(1, 2, 0).numpy().repeat(8, 0).repeat(8, 1))
    beside = picture[
        pictures.HEADER + step : pictures.HEADER + step + 64, pictures.GAP + step : pictures.GAP + step + 64
    ]
    expected = (v.pca_rgb(tokens, (2, 2))[2] * 255).round().astype(np.uint8)
    assert np.array_equal(beside, expected.repeat(32, 0).repeat(32, 1))


ROWS = [{"step": float(s), "loss": 9 - s / 10, "dino/global": 7 - s / 10} for s in range(10)]
RESULTS = {"trained": {"knn_top1": 60.0, "knn_patch_top1": 50.0}, "raw pixels": {"knn_top1": 40.0}}
ACCURACY = Score("higher", "%")
COLUMNS = {
    "k-NN CLS": Column(("knn_top1",), ACCURACY),
    "k-NN patch mean": Column(("knn_patch_top1", "knn_top1"), ACCURACY),
}


def test_charts_are_repeatable_and_use_no_global_state() -> None:
    rows = [*ROWS, {"step": 9.0, "eval/knn_top1": 50.0}]
    pyplot_before = "matplotlib.pyplot" in sys.modules
    curves = [v.curves_figure(rows, ["loss"], ["eval/knn_top1"], {"pixels": 40.0}) for _ in range(2)]
    pairs = [curves, [v.accuracy_bars(RESULTS, COLUMNS) for _ in range(2)]]
    for first, second in pairs:
        assert first.dtype == np.uint8
        assert np.array_equal(first, second)
        assert first.std() > 5
    assert ("matplotlib.pyplot" in sys.modules) == pyplot_before


def test_charts_show_what_they_are_given() -> None:
    one = v.curves_figure(ROWS, ["loss"], [], {})
    assert not np.array_equal(one, v.curves_figure(ROWS, ["loss", "dino/global"], [], {}))
    assert np.array_equal(one, v.curves_figure(ROWS, ["loss", "absent"], [], {}))
    assert v.curves_figure([], ["loss"], [], {}).shape == one.shape
    network_alone = v.accuracy_bars({"trained": RESULTS["trained"]}, COLUMNS)
    assert not np.array_equal(v.accuracy_bars(RESULTS, COLUMNS), network_alone)


def test_png_is_whole_or_absent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    target = tmp_path / "picture.png"
    pictures.save_png(target, picture)
    assert np.array_equal(np.asarray(Image.open(target)), picture)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        pictures.save_png(target, 255 - picture)
    assert np.array_equal(np.asarray(Image.open(target)), picture)


def test_similarity_maps_are_the_cosines_with_framed_patches() -> None:
    """Two images of 2 x 4 tokens, four queries in each; the middle of a cell has the colour of its cosine."""
    images = torch.full((2, 3, 8, 16), 90, dtype=torch.uint8)
    tokens = torch.randn(2, 2, 4, 5, generator=torch.Generator().manual_seed(0))
    picture = v.similarity_figure(images, tokens, queries=4, cell_size=64)  # images of 64 x 128
    viridis = colormaps["viridis"]
    for row, query in np.ndindex(2, 4):
        place = 2 * query + 1  # of 8 patches every second one
        top, left = pictures.HEADER + row * (64 + pictures.GAP), pictures.GAP + (query + 1) * (128 + pictures.GAP)
        map_of_query = picture[top : top + 64, left : left + 128]
        for index in range(8):
            y, x = divmod(index, 4)
            one, other = tokens[row].reshape(8, 5)[[place, index]].double()
            cosine = float(one @ other / one.norm() / other.norm())
            expected = np.array(viridis(max(cosine, 0.0))[:3]) * 255
            assert np.abs(map_of_query[32 * y + 16, 32 * x + 16] - expected).max() <= 2
        framed = (map_of_query == (255, 0, 0)).all(-1)
        y, x = divmod(place, 4)
        assert framed[32 * y : 32 * y + 32, 32 * x : 32 * x + 32].sum() == framed.sum() == 4 * 31
