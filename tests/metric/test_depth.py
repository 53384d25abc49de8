"""Depth by patch tokens, against loops over pixels, scikit-learn, and tokens that are the depth itself or nothing."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sklearn.linear_model import Ridge
from torch import Tensor

from dinoswap.data.images import Images
from dinoswap.dense.base import Scene
from dinoswap.depth.base import DepthParts, DepthRange, DepthSource
from dinoswap.metric import patch_regression as regression
from dinoswap.metric.depth import Depth
from dinoswap.metric.patch_regression import (
    PatchRegressors,
    coloured,
    depth_figure,
    depth_of_bins,
    depth_of_patches,
    errors,
    mean_of_bins,
    patches_of_known_depth,
    picked,
    ridge,
)

VALID = DepthRange(0.5, 8.0)


class Slopes:
    """Scenes whose depth is a plane of its own; a fifth of the pixels are unknown."""

    shape = (1, 16, 16)

    def __init__(self, count: int, seed: int) -> None:
        self.count, self.seed = count, seed

    def __len__(self) -> int:
        return self.count

    def load(self, index: int) -> Scene:
        draw = np.random.default_rng([self.seed, index])
        y, x = np.mgrid[0:16, 0:16] / 16
        depth = draw.uniform(2, 5) + draw.uniform(-1.4, 1.4) * y + draw.uniform(-1.4, 1.4) * x
        depth[draw.random((16, 16)) < 0.2] = np.nan
        return Scene(np.full((1, 3, 16, 16), index, dtype=np.uint8), depth.astype(np.float32))


class SlopeSource(DepthSource):
    def parts(self, train: Images, test: Images | None, size: int, patch: int) -> DepthParts:
        return DepthParts(Slopes(20, 0), Slopes(10, 1), VALID)


def metric(**settings: int) -> Depth:
    return Depth(**({"patches": 100_000, "bins": 32} | settings), in_loop=False, depth=SlopeSource())


def truths(scenes: Slopes) -> list[NDArray[np.float32]]:
    return [scenes.load(index).truth for index in range(len(scenes))]


def measured(family: Depth, tokens: dict[str, Tensor]) -> dict[str, float]:
    """What the family finds in one batch of all training and two of test scenes. Tokens are [n, rows, columns, D]."""
    parts = family.scenes(Slopes(1, 0), None, 8, 4)  # type: ignore[arg-type]
    assert parts is not None
    train, test = truths(parts.train), truths(parts.test)  # type: ignore[arg-type]
    fitted = family.fit(family.keep(tokens["train"][:, None], train, 0))
    batches = [family.judge(fitted, tokens["test"][part, None], test[part]) for part in (slice(4), slice(4, None))]
    return dict(family.values(torch.stack(batches).sum(0)))


def whole(depth: NDArray[np.float32]) -> NDArray[np.float32]:
    """The plane that the known pixels lie in."""
    y, x = np.nonzero(np.isfinite(depth))
    plane = np.linalg.lstsq(np.stack([np.ones_like(y), y, x], 1), depth[y, x], rcond=None)[0]
    rows, columns = np.mgrid[0:16, 0:16]
    return (plane[0] + plane[1] * rows + plane[2] * columns).astype(np.float32)


def test_tokens_that_are_the_depth_have_next_to_no_error() -> None:
    """At a token a pixel nothing is lost at borders. Bins are fitted in a limited number of steps."""

    def tokens(count: int, seed: int) -> Tensor:
        depth = torch.from_numpy(np.stack([whole(truth) for truth in truths(Slopes(count, seed))]))
        noise = torch.randn(*depth.shape, 2, generator=torch.Generator().manual_seed(seed))
        return torch.cat([depth[..., None], noise], -1)

    values = measured(metric(), {"train": tokens(20, 0), "test": tokens(10, 1)})
    assert set(values) == set(Depth.scores)
    assert values["depth_rmse"] < 1e-3
    assert values["depth_abs_rel"] < 1e-3
    assert values["depth_bins_rmse"] < 0.15
    assert values["depth_bins_abs_rel"] < 0.03
    assert values["depth_delta1"] == 100
    assert values["depth_bins_delta1"] > 95


def test_tokens_that_know_nothing_have_the_error_of_the_mean() -> None:
    tokens = {
        name: torch.randn(count, 4, 4, 3, generator=torch.Generator().manual_seed(count))
        for name, count in (("train", 20), ("test", 10))
    }
    values = measured(metric(), tokens)
    mean = np.nanmean(np.stack(truths(Slopes(20, 0))))
    pixels = np.stack(truths(Slopes(10, 1)))
    known = pixels[np.isfinite(pixels)]
    assert values["depth_rmse"] == pytest.approx(float(np.sqrt(((known - mean) ** 2).mean())), rel=0.03)
    assert values["depth_abs_rel"] == pytest.approx(float((np.abs(known - mean) / known).mean()), rel=0.05)
    assert values["depth_bins_rmse"] == pytest.approx(values["depth_rmse"], rel=0.1)


def test_errors_are_those_of_a_loop_over_pixels() -> None:
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randn(3, 2, 4, 5, generator=generator)
    heads = PatchRegressors(
        torch.randn(5, generator=generator), torch.tensor(3.0), torch.randn(6, 5), torch.ones(6), VALID, 0.1
    )
    truth = [np.random.default_rng(n).uniform(0.5, 8, (4, 8)).astype(np.float32) for n in range(3)]
    truth[1][1:3, 2:5] = np.nan
    sums = np.zeros((2, 4))
    for n, row, column in np.ndindex(3, 4, 8):
        right = float(truth[n][row, column])
        if right != right:
            continue
        for head, predict in enumerate((heads.linear, heads.binned)):
            patches = predict(tokens[n]).numpy()
            # between the centres of patches, of 2 x 2 pixels each; beyond them the nearest one's
            y, x = min(max((row + 0.5) / 2 - 0.5, 0), 1), min(max((column + 0.5) / 2 - 0.5, 0), 3)
            top, left = int(y), int(x)
            below, beside = min(top + 1, 1), min(left + 1, 3)
            upper = patches[top, left] + (x - left) * (patches[top, beside] - patches[top, left])
            lower = patches[below, left] + (x - left) * (patches[below, beside] - patches[below, left])
            depth = float(upper + (y - top) * (lower - upper))
            ratio = max(depth / right, right / depth)
            sums[head] += (depth - right) ** 2, abs(depth - right) / right, ratio < 1.25, 1
    assert np.allclose(errors(heads, tokens, truth).numpy(), sums, rtol=1e-5)
    values = metric().values(torch.from_numpy(sums))
    assert values["depth_rmse"] == pytest.approx((sums[0, 0] / sums[0, 3]) ** 0.5)
    assert values["depth_bins_abs_rel"] == pytest.approx(sums[1, 1] / sums[1, 3])
    assert values["depth_bins_delta1"] == pytest.approx(100 * sums[1, 2] / sums[1, 3])
    assert metric().values(torch.zeros(2, 4, dtype=torch.float64)) == {}, "no pixel is known"


def test_the_depth_of_a_patch_is_the_mean_of_its_known_pixels() -> None:
    depth = np.random.default_rng(0).uniform(1, 5, (6, 9)).astype(np.float32)
    depth[0, 0], depth[4:, 6:] = np.nan, np.nan
    found = depth_of_patches(depth, (3, 3))
    for row, column in np.ndindex(3, 3):
        pixels = [p for p in depth[2 * row : 2 * row + 2, 3 * column : 3 * column + 3].ravel().tolist() if p == p]
        assert found[row, column] == pytest.approx(sum(pixels) / len(pixels)) if pixels else np.isnan(found[2, 2])


def test_patches_of_unknown_depth_are_left_out() -> None:
    truth = [np.full((4, 4), depth, dtype=np.float32) for depth in (2.0, np.nan, 3.0)]
    truth[0][:2] = np.nan
    tokens = torch.arange(12).reshape(3, 2, 2, 1).float()
    kept = patches_of_known_depth(tokens, truth, 3, 7)
    assert kept["depths"].tolist() == [2, 2, 3, 3, 3]
    assert kept["scenes"].tolist() == [7, 7, 9, 9, 9]
    assert set(kept["tokens"][:2, 0].tolist()) == {2, 3}, "its lower half"


def test_ridge_is_scikit_learns() -> None:
    draw = np.random.default_rng(0)
    x, y = draw.normal(size=(50, 6)), draw.normal(size=50) + 4
    penalties = (1e-3, 0.5)
    weights, constants = ridge(torch.from_numpy(x), torch.from_numpy(y), penalties)
    for penalty, weight, constant in zip(penalties, weights, constants, strict=True):
        truth = Ridge(alpha=penalty * 50).fit(x, y)
        assert np.allclose(weight, truth.coef_) and constant == pytest.approx(truth.intercept_)


def test_the_penalty_is_the_best_on_held_out_patches() -> None:
    draw = np.random.default_rng(1)
    x, y, held = draw.normal(size=(40, 20)), draw.normal(size=40), np.arange(40) % 5 == 4
    error = [
        ((Ridge(alpha=p * 32).fit(x[~held], y[~held]).predict(x[held]) - y[held]) ** 2).mean()
        for p in regression.PENALTIES
    ]
    found = picked(torch.from_numpy(x), torch.from_numpy(y), torch.from_numpy(held))
    assert found == regression.PENALTIES[int(np.argmin(error))]
    none = torch.zeros(40, dtype=torch.bool)
    assert picked(torch.from_numpy(x), torch.from_numpy(y), none) == regression.PENALTIES[3]


def test_bins_are_weighted_as_in_dinov2() -> None:
    depths = depth_of_bins(VALID, 4)
    assert depths.tolist() == [0.5, 3.0, 5.5, 8.0]
    scores = torch.tensor([[-3.0, 1.0, 0.0, 2.0], [-1.0, -1.0, -1.0, -1.0]])
    expected = (0.1 * 0.5 + 1.1 * 3 + 0.1 * 5.5 + 2.1 * 8) / (0.1 + 1.1 + 0.1 + 2.1)
    assert mean_of_bins(scores, depths).tolist() == pytest.approx([expected, 4.25])


def test_heads_read_tokens_as_they_are_and_keep_to_the_valid_range() -> None:
    """They are fitted on standardised tokens; scale, offset and a constant feature change nothing."""
    draw = torch.Generator().manual_seed(0)
    tokens = torch.randn(200, 3, generator=draw)
    depths, scenes = (4 + tokens[:, 0] + 0.2 * tokens[:, 1]).double(), torch.arange(200) // 10
    plain = PatchRegressors.fitted(tokens, depths, scenes, VALID, 16)
    other = torch.cat([tokens * torch.tensor([100.0, 0.01, 1.0]) + 5, torch.full((200, 1), 7.0)], 1)
    moved = PatchRegressors.fitted(other, depths, scenes, VALID, 16)
    assert torch.allclose(plain.linear(tokens), moved.linear(other), atol=1e-3)
    assert torch.allclose(plain.linear(tokens), depths.float().clamp(0.5, 8), atol=0.01)
    assert (plain.binned(tokens) - depths).square().mean() < 0.05
    far = plain.linear(torch.tensor([[100.0, 0, 0], [-100.0, 0, 0]]))
    assert far.tolist() == [8.0, 0.5]
    with pytest.raises(ValueError, match="0 training patches have a depth within"):
        PatchRegressors.fitted(tokens[:0], depths[:0], scenes[:0], VALID, 16)


def test_a_picture_has_one_scale_of_colours_in_a_row() -> None:
    heads = PatchRegressors(torch.zeros(2), torch.tensor(4.0), torch.zeros(8, 2), torch.ones(8), VALID, 0.1)
    scenes = [Slopes(2, 0).load(index) for index in range(2)]
    assert depth_figure(heads, torch.zeros(2, 4, 4, 2), scenes, cell=16).dtype == np.uint8
    colours = coloured(np.array([[2.0, np.nan, 6.0, 9.0]], dtype=np.float32), 2.0, 6.0)[0].astype(int)
    assert colours[1].tolist() == [255, 255, 255]
    assert colours[0].sum() > colours[2].sum() == colours[3].sum()


def test_wrong_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="bins=1: must be at least 2"):
        metric(bins=1)
    with pytest.raises(ValueError, match="patches=99: must be at least 100"):
        metric(patches=99)
