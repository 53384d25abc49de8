"""Baselines for a network: features that need no training, evaluated by the same classifiers on the same split.

There are features of whole images, and features of each patch for what is judged on patch tokens. The further baseline,
the same network at its random initialisation, is built by the caller and evaluated like the trained one.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.nn import functional as F


def pixel_features(images: Tensor, side: int = 32) -> Tensor:
    """Returns pixels in 0..1, averaged down to at most side x side: uint8 [n, 3, H, W] to float32 [n, 3 * h * w].

    Without the bound a linear probe of 224-pixel images would fit 150,528 weights per class.
    """
    height, width = images.shape[-2:]
    small = F.adaptive_avg_pool2d(images.float() / 255, (min(height, side), min(width, side)))
    return small.flatten(1)  # [n, 3, h, w] -> [n, 3 * h * w]


def standardise(train: Tensor, test: Tensor) -> tuple[Tensor, Tensor]:
    """Returns both feature matrices [m, D] and [n, D], standardised per dimension by mean and deviation of the training
    images. Dimensions that are constant in training become 0."""
    mean, std = train.mean(0), train.std(0, correction=0)
    std = torch.where(std > 1e-6, std, torch.inf)
    return (train - mean) / std, (test - mean) / std


def colour_histogram(images: Tensor, bins: int = 8) -> Tensor:
    """Returns square roots of the joint RGB histogram: uint8 [n, 3, H, W] to float32 [n, bins ** 3], rows of norm 1.

    The cosine of two rows is then their Bhattacharyya coefficient, so that k-NN on it is k-NN by Hellinger distance.
    Raises ValueError for `bins` outside 1..256.
    """
    if not 1 <= bins <= 256:
        raise ValueError(f"bins={bins}: 1 to 256 levels per channel")
    level = images.int().mul_(bins).floor_divide_(256)  # [n, 3, H, W], 0 .. bins - 1
    cell = ((level[:, 0] * bins + level[:, 1]) * bins + level[:, 2]).flatten(1).long()  # [n, H * W]
    count = torch.zeros(len(images), bins**3, device=images.device)
    count.scatter_add_(1, cell, torch.ones_like(cell, dtype=count.dtype))
    return (count / cell.shape[1]).sqrt()


BASELINES: Mapping[str, Callable[[Tensor], Tensor]] = {
    "raw pixels": pixel_features,
    "colour histogram": colour_histogram,
}
"""Functions from uint8 [n, 3, H, W] to features float32 [n, D], by the name of their row in the table."""
STANDARDISED = ("raw pixels",)
"""Baselines whose features are standardised before they are classified."""


def patch_pixels(images: Tensor, patch: int, side: int = 8) -> Tensor:
    """Returns the pixels of each patch in -1..1, averaged down to at most side x side: uint8 [n, 3, H, W] to float32
    [n, H / patch, W / patch, 3 * s * s]."""
    patches = _patches(images, patch)
    small = F.adaptive_avg_pool2d(patches.flatten(0, 2).float() / 127.5 - 1, min(patch, side))
    return torch.unflatten(small.flatten(1), 0, patches.shape[:3])


def patch_histogram(images: Tensor, patch: int, bins: int = 4) -> Tensor:
    """Returns the `colour_histogram` of each patch: uint8 [n, 3, H, W] to float32 [n, H / patch, W / patch, bins ** 3].
    A patch has few pixels: more levels would leave most counts at 0."""
    patches = _patches(images, patch)
    return torch.unflatten(colour_histogram(patches.flatten(0, 2), bins), 0, patches.shape[:3])


def patch_position(images: Tensor, patch: int) -> Tensor:
    """Returns row and column of each patch, each as a vector with a single 1: uint8 [n, 3, H, W] to float32
    [n, rows, columns, rows + columns]. What it scores is known from the place in the image alone."""
    rows, columns = images.shape[-2] // patch, images.shape[-1] // patch
    places = torch.cat(
        [torch.eye(rows)[:, None].expand(rows, columns, rows), torch.eye(columns).expand(rows, columns, columns)], -1
    )
    return places.expand(len(images), *places.shape)


def _patches(images: Tensor, patch: int) -> Tensor:
    """Cuts images into patches: [n, 3, H, W] to [n, rows, columns, 3, patch, patch]."""
    return images.unfold(2, patch, patch).unfold(3, patch, patch).permute(0, 2, 3, 1, 4, 5)


DENSE_BASELINES: Mapping[str, Callable[[Tensor, int], Tensor]] = {
    "raw pixels": patch_pixels,
    "colour histogram": patch_histogram,
    "position alone": patch_position,
}
"""Functions from uint8 [n, 3, H, W] and the side of a patch to features of patches, float32 [n, rows, columns, D], by
the name of their row in the table."""
