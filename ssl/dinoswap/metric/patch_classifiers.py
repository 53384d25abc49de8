"""Classifiers of patch tokens, and how well the maps of pixels that they give agree with the truth."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from matplotlib import colormaps
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from dinoswap.dense.base import Scene
from dinoswap.files.pictures import Picture, laid_out, resized
from dinoswap.metric.logistic_regression import GRID, HOLD_OUT, fit, pick_c
from dinoswap.metric.neighbours import PRIMARY_K, class_votes
from dinoswap.metric.patches import drawn, in_patches

TEMPERATURE = 0.07
PLANES = 16
ROWS = 4096
"""Number of patches whose neighbours are sought at a time."""


def majority(truth: NDArray[np.int16], grid: tuple[int, int], classes: int) -> NDArray[np.int64]:
    """Returns the class that most pixels of each patch have, IGNORE included: int16 [h, w] to int64 [rows, columns].
    Of equally frequent classes it is the one with the smallest number."""
    cells = in_patches(truth, grid).reshape(grid[0] * grid[1], -1).astype(np.int64)  # [N, pixels]
    place = np.arange(len(cells))[:, None] * (classes + 1) + cells + 1  # IGNORE is -1
    counts = np.bincount(place.ravel(), minlength=len(cells) * (classes + 1)).reshape(len(cells), -1)
    majority_class: NDArray[np.int64] = counts.argmax(1).reshape(grid) - 1
    return majority_class


def labelled_patches(
    tokens: Tensor, truth: Sequence[NDArray[np.int16]], classes: int, limit: int, first: int
) -> dict[str, Tensor]:
    """Returns tokens, float32 [m, D], of at most `limit` patches of each scene, their labels and the numbers of their
    scenes, int64 [m] each. Tokens are [n, rows, columns, D] of the scenes from number `first` on; patches most of whose
    pixels are ignored are left out."""
    grid = tokens.shape[1], tokens.shape[2]
    labels = [majority(classes_of_pixels, grid, classes) for classes_of_pixels in truth]
    kept = drawn(tokens, labels, [label >= 0 for label in labels], limit, first)
    return dict(zip(("tokens", "labels", "scenes"), kept, strict=True))


@dataclass(frozen=True)
class PatchClassifiers:
    """A logistic regression of patch tokens, logits = tokens @ weight.T + bias, and the training patches that k-nearest
    neighbours vote among."""

    weight: Tensor  # float32 [classes, D]
    bias: Tensor  # [classes], -inf of a class without patches
    memory: Tensor  # [m, D], rows of norm 1
    labels: Tensor  # int64 [m]
    c: float  # the inverse strength of the penalty that was picked

    @classmethod
    def fitted(cls, tokens: Tensor, labels: Tensor, scenes: Tensor, classes: int) -> "PatchClassifiers":
        """Returns classifiers of tokens, float32 [m, D], by their labels, int64 [m]. The penalty is picked on the
        patches of every fifth scene. Raises ValueError where there are fewer than two classes."""
        x, y = tokens.numpy(), labels.numpy()
        if len(np.unique(y)) < 2:
            raise ValueError("segmentation: training patches of one class only; at least two are needed")
        c = pick_c(x, y, GRID, held=scenes.numpy() % HOLD_OUT == HOLD_OUT - 1)
        model = fit(x, y, c)
        scaler, regression = model[0], model[-1]
        coefficients, intercepts = regression.coef_, regression.intercept_
        if len(regression.classes_) == 2:  # scikit-learn then keeps the second class alone
            coefficients, intercepts = (
                np.stack([-coefficients[0], coefficients[0]]) / 2,
                np.outer([-0.5, 0.5], intercepts),
            )
        scaled = coefficients / scaler.scale_
        weight, bias = torch.zeros(classes, x.shape[1]), torch.full((classes,), -torch.inf)
        weight[regression.classes_] = torch.from_numpy(scaled).float()
        bias[regression.classes_] = torch.from_numpy(intercepts.ravel() - scaled @ scaler.mean_).float()
        return cls(weight, bias, F.normalize(tokens, dim=1), labels, c)

    def logits(self, tokens: Tensor) -> Tensor:
        """Returns the regression's scores: [..., D] to [..., classes]."""
        return tokens @ self.weight.T + self.bias

    def votes(self, tokens: Tensor) -> Tensor:
        """Returns the share of the neighbours' votes for each class: [..., D] to [..., classes]."""
        rows = torch.split(F.normalize(tokens.reshape(-1, tokens.shape[-1]), dim=1), ROWS)
        k, classes = min(PRIMARY_K, len(self.labels)), len(self.bias)
        nearest = [(part @ self.memory.T).topk(k, dim=1) for part in rows]
        votes = [class_votes(values, self.labels[places], classes, (k,), TEMPERATURE)[0] for values, places in nearest]
        return F.normalize(torch.cat(votes), p=1, dim=1).reshape(*tokens.shape[:-1], classes)


def pixel_classes(scores: Tensor, height: int, width: int) -> NDArray[np.int64]:
    """Returns the class of each pixel, int64 [height, width]: the largest of the scores of patches,
    [rows, columns, classes], after bilinear interpolation. PLANES classes are interpolated at a time: 150 classes of a
    large image would take gigabytes."""
    possible = scores.isfinite().all(0).all(0).nonzero()[:, 0]  # a class without training patches is never chosen
    best = torch.full((height, width), -torch.inf)
    chosen = torch.zeros(height, width, dtype=torch.int64)
    for part in torch.split(possible, PLANES):
        planes = scores[..., part].movedim(-1, 0)[None]  # [1, classes, rows, columns]
        wide = F.interpolate(planes, size=(height, width), mode="bilinear", align_corners=False)
        value, place = wide[0].max(0)
        chosen = torch.where(value > best, part[place], chosen)
        best = torch.maximum(value, best)
    return chosen.numpy()


def confusion(truth: NDArray[np.int16], predicted: NDArray[np.int64], classes: int) -> NDArray[np.int64]:
    """Returns how many pixels of each class (rows) were given each class (columns), int64 [classes, classes]. Ignored
    pixels are left out."""
    known = truth >= 0
    place = truth[known].astype(np.int64) * classes + predicted[known]
    return np.bincount(place, minlength=classes**2).reshape(classes, classes)


def confusions(classifiers: PatchClassifiers, tokens: Tensor, truth: Sequence[NDArray[np.int16]]) -> Tensor:
    """Returns the sum over scenes of the confusion matrices of both classifiers, float64 [2, classes, classes]. Tokens
    are [n, rows, columns, D]."""
    classes = len(classifiers.bias)
    total = np.zeros((2, classes, classes))
    for tokens_of_scene, pixels in zip(tokens, truth, strict=True):
        for number, scores in enumerate((classifiers.logits(tokens_of_scene), classifiers.votes(tokens_of_scene))):
            total[number] += confusion(pixels, pixel_classes(scores, *pixels.shape), classes)
    return torch.from_numpy(total)


def intersection_over_union(matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    """Returns the IoU of each class in per cent from a confusion matrix, NaN for a class that neither occurs nor was
    predicted: [classes, classes] to [classes]."""
    common = np.diag(matrix)
    union = matrix.sum(0) + matrix.sum(1) - common
    share: NDArray[np.float64] = np.divide(common, union, out=np.full(len(matrix), np.nan), where=union > 0)
    return 100 * share


def segmentation_figure(
    classifiers: PatchClassifiers, tokens: Tensor, scenes: Sequence[Scene], cell: int = 128
) -> Picture:
    """Returns a picture with a row for each scene: image, truth, and what both classifiers say. Classes have colours,
    ignored pixels are white."""
    names = ("image", "truth", "linear", "k-NN")
    columns: list[list[Picture]] = [[] for _ in names]
    colours = _palette(len(classifiers.bias))
    for tokens_of_scene, scene in zip(tokens, scenes, strict=True):
        scores = classifiers.logits(tokens_of_scene), classifiers.votes(tokens_of_scene)
        maps = scene.truth, *(pixel_classes(part, *scene.truth.shape) for part in scores)
        shown = scene.views[0].transpose(1, 2, 0), *(colours[classes] for classes in maps)
        for column, picture in zip(columns, shown, strict=True):
            column.append(resized(picture, cell, cell))
    return laid_out(columns, names)


def _palette(classes: int) -> NDArray[np.uint8]:
    """Returns a colour for each class and white at -1, uint8 [classes + 1, 3]."""
    hues = (np.arange(classes) * 0.618034) % 1  # neighbours far apart
    cycle: Any = colormaps["hsv"](hues)[:, :3]
    shade = np.where(np.arange(classes) % 2, 0.65, 1.0)[:, None]
    return np.concatenate([(255 * cycle * shade).astype(np.uint8), np.full((1, 3), 255, dtype=np.uint8)])
