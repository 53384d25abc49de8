"""Regression of depth on patch tokens, and how far the maps of pixels that it gives are from the truth.

Two linear heads read the standardised tokens. The plain one is a ridge regression. The other one is that of dinov2
(`BNHead` with `classify`, facebookresearch/dinov2 @ b8931f7): a linear layer gives a score for each of many depths,
evenly spaced from the least to the greatest, and the depth is their mean, weighted by the scores, which are cut at 0
and then raised by 0.1. Its loss is dinov2's squared: the variance of the error of the logarithm, and 0.15 times the
squared mean of the error.

What differs: dinov2 takes many steps of AdamW on augmented images, compares pixels, and lets the head read the class
token beside each patch token, of one layer or four. Here the head reads the patch tokens of the last layer, of all
training patches at once, is compared with their mean depth, and takes 100 steps of L-BFGS, with a small penalty of the
weights, from equal scores everywhere: a result is the same each time and takes seconds.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from matplotlib import colormaps
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from dinoswap.dense.base import Scene
from dinoswap.depth.base import DepthRange
from dinoswap.files.pictures import Picture, laid_out, resized
from dinoswap.metric.logistic_regression import HOLD_OUT
from dinoswap.metric.patches import drawn, in_patches

PENALTIES = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
"""The factors of the squared weights of standardised tokens beside the mean squared error, of which one is picked."""
RAISED, OF_MEAN = 0.1, 0.15
"""What dinov2 adds to the score of each bin, and the weight of the squared mean in its loss."""
STEPS, PENALTY_OF_BINS = 100, 1e-4
"""The largest number of steps of L-BFGS, and the factor of the squared weights beside the loss."""
WITHIN = 1.25
"""The depth of a pixel counts as right up to this factor."""


def depth_of_patches(truth: NDArray[np.float32], grid: tuple[int, int]) -> NDArray[np.float64]:
    """Returns the mean depth of the known pixels of each patch, NaN where there are none: [h, w] to [rows, columns]."""
    with warnings.catch_warnings(action="ignore", category=RuntimeWarning):  # of a mean of nothing
        mean: NDArray[np.float64] = np.nanmean(in_patches(truth, grid), axis=-1, dtype=np.float64)
    return mean


def patches_of_known_depth(
    tokens: Tensor, truth: Sequence[NDArray[np.float32]], limit: int, first: int
) -> dict[str, Tensor]:
    """Returns tokens, float32 [m, D], of at most `limit` patches of each scene, their depths, float64 [m], and the
    numbers of their scenes, int64 [m]. Tokens are [n, rows, columns, D] of the scenes from number `first` on; patches
    without a pixel of known depth are left out."""
    depths = [depth_of_patches(depth, (tokens.shape[1], tokens.shape[2])) for depth in truth]
    kept = drawn(tokens, depths, [np.isfinite(depth) for depth in depths], limit, first)
    return dict(zip(("tokens", "depths", "scenes"), kept, strict=True))


@dataclass(frozen=True)
class PatchRegressors:
    """Both heads, which map tokens [..., D] to depths in metres [...], within the valid range."""

    weight: Tensor  # float32 [D] of the ridge regression
    bias: Tensor  # []
    of_bins: Tensor  # float32 [bins, D]
    bias_of_bins: Tensor  # [bins]
    valid: DepthRange
    penalty: float  # the one that was picked for the ridge regression

    @classmethod
    def fitted(cls, tokens: Tensor, depths: Tensor, scenes: Tensor, valid: DepthRange, bins: int) -> "PatchRegressors":
        """Returns heads fitted on tokens, float32 [m, D], and their depths, float64 [m]. The penalty of the ridge
        regression is picked on the patches of every fifth scene. Raises ValueError with fewer than two patches."""
        if len(tokens) < 2:
            raise ValueError(
                f"depth: {len(tokens)} training patches have a depth within {valid.least} to {valid.greatest} m; at "
                "least two are needed"
            )
        x = tokens.double()
        mean, deviation = x.mean(0), x.std(0, correction=0)
        scale = torch.where(deviation > 1e-6, deviation, torch.inf)  # a constant feature counts nothing
        x = (x - mean) / scale
        penalty = picked(x, depths, scenes % HOLD_OUT == HOLD_OUT - 1)
        (weight,), (bias,) = ridge(x, depths, [penalty])
        of_bins, bias_of_bins = fitted_bins(x.float(), depths.float(), depth_of_bins(valid, bins))
        of_bins = of_bins.double() / scale
        return cls(
            (weight / scale).float(),
            (bias - mean @ (weight / scale)).float(),
            of_bins.float(),
            (bias_of_bins - of_bins @ mean).float(),
            valid,
            penalty,
        )

    def linear(self, tokens: Tensor) -> Tensor:
        """Returns the depths of the ridge regression."""
        return (tokens @ self.weight + self.bias).clamp(self.valid.least, self.valid.greatest)

    def binned(self, tokens: Tensor) -> Tensor:
        """Returns the depths of dinov2's head."""
        return mean_of_bins(tokens @ self.of_bins.T + self.bias_of_bins, depth_of_bins(self.valid, len(self.of_bins)))

    def maps(self, tokens: Tensor, height: int, width: int) -> list[NDArray[np.float32]]:
        """Returns the depth of each pixel by each head, interpolated between patches: [rows, columns, D] to two of
        [height, width]."""
        patches = torch.stack([self.linear(tokens), self.binned(tokens)])[:, None]  # [2, 1, rows, columns]
        return list(F.interpolate(patches, size=(height, width), mode="bilinear", align_corners=False)[:, 0].numpy())


def ridge(x: Tensor, y: Tensor, penalties: Sequence[float]) -> tuple[Tensor, Tensor]:
    """Returns the weights [P, D] and the constants [P] that minimise the mean squared error plus a penalty times the
    squared weights, in closed form, for each of P penalties: x float64 [m, D], y [m]."""
    centre, middle = x.mean(0), y.mean()
    centred = x - centre
    values, vectors = torch.linalg.eigh(centred.T @ centred / len(x))
    along = vectors.T @ (centred.T @ (y - middle)) / len(x)  # [D]
    weights = along / (values + torch.tensor(penalties, dtype=x.dtype)[:, None]) @ vectors.T
    return weights, middle - weights @ centre


def picked(x: Tensor, y: Tensor, held: Tensor) -> float:
    """Returns the penalty with the smallest squared error on the patches that are `held` out, bool [m]; the middle one
    where all or none are."""
    if held.all() or not held.any():
        return PENALTIES[len(PENALTIES) // 2]
    weights, constants = ridge(x[~held], y[~held], PENALTIES)
    error = (x[held] @ weights.T + constants - y[held, None]).square().mean(0)
    return PENALTIES[int(error.argmin())]


def depth_of_bins(valid: DepthRange, bins: int) -> Tensor:
    """Returns the depths that are weighted, evenly spaced: float32 [bins]."""
    return torch.linspace(valid.least, valid.greatest, bins)


def mean_of_bins(scores: Tensor, depths: Tensor) -> Tensor:
    """Returns the mean of `depths` [bins] by the weights that dinov2 makes of scores: [..., bins] to [...]."""
    weights = scores.relu() + RAISED
    return weights @ depths / weights.sum(-1)


def fitted_bins(x: Tensor, y: Tensor, depths: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the linear layer, [bins, D] and [bins], that gives the scores of bins: x float32 [m, D], y [m]."""
    weight = torch.zeros(len(depths), x.shape[1], requires_grad=True)
    bias = torch.ones(len(depths), requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=STEPS, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        error = mean_of_bins(F.linear(x, weight, bias), depths).log() - y.log()
        total = error.var() + OF_MEAN * error.mean().square() + PENALTY_OF_BINS * weight.square().sum()
        total.backward()  # type: ignore[no-untyped-call]
        return total

    with torch.enable_grad():
        optimizer.step(loss)  # type: ignore[no-untyped-call]
    return weight.detach(), bias.detach()


def errors(regressors: PatchRegressors, tokens: Tensor, truth: Sequence[NDArray[np.float32]]) -> Tensor:
    """Returns sums over the known pixels of all scenes for each head: of squared errors, of errors relative to the true
    depth, of pixels that are right within WITHIN, and of pixels; float64 [2, 4]. Tokens are [n, rows, columns, D]."""
    total = np.zeros((2, 4))
    for tokens_of_scene, depth in zip(tokens, truth, strict=True):
        known = np.isfinite(depth)
        right = depth[known].astype(np.float64)
        for number, predicted in enumerate(regressors.maps(tokens_of_scene, *depth.shape)):
            total[number] += sums(predicted[known].astype(np.float64), right)
    return torch.from_numpy(total)


def sums(predicted: NDArray[np.float64], right: NDArray[np.float64]) -> tuple[float, float, int, int]:
    """Returns the sums of `errors` over pixels: [pixels] each."""
    error = np.abs(predicted - right)
    within = np.maximum(predicted / right, right / predicted) < WITHIN
    return float((error**2).sum()), float((error / right).sum()), int(within.sum()), len(right)


def depth_figure(regressors: PatchRegressors, tokens: Tensor, scenes: Sequence[Scene], cell: int = 128) -> Picture:
    """Returns a picture with a row for each scene: image, truth, and what both heads say. In a row the nearest and the
    farthest true depth have the same colours in each column; unknown depths are white."""
    names = ("image", "truth", "linear", "bins")
    columns: list[list[Picture]] = [[] for _ in names]
    for tokens_of_scene, scene in zip(tokens, scenes, strict=True):
        maps = scene.truth, *regressors.maps(tokens_of_scene, *scene.truth.shape)
        known = scene.truth[np.isfinite(scene.truth)]
        ends = (known.min(), known.max()) if len(known) else (regressors.valid.least, regressors.valid.greatest)
        shown = scene.views[0].transpose(1, 2, 0), *(coloured(depth, *ends) for depth in maps)
        for column, picture in zip(columns, shown, strict=True):
            column.append(resized(picture, cell, cell))
    return laid_out(columns, names)


def coloured(depth: NDArray[np.float32], nearest: float, farthest: float) -> Picture:
    """Returns a depth map in colours, near ones bright, NaN white: [h, w] to uint8 [h, w, 3]."""
    share = ((farthest - depth) / max(farthest - nearest, 1e-6)).clip(0, 1)
    colours = colormaps["inferno"](np.nan_to_num(share))[..., :3]
    colours[np.isnan(depth)] = 1
    picture: Picture = (255 * colours).round().astype(np.uint8)
    return picture
