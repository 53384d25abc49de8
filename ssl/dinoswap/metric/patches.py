"""What is known of the pixels of scenes, patch by patch, and the patches that are fitted on."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dinoswap import rng
from dinoswap.dense.base import Scene, Scenes


class SomeScenes:
    """Those scenes of a list whose numbers are in `rows`, int64 [n]."""

    def __init__(self, scenes: Scenes, rows: NDArray[np.int64]) -> None:
        self.scenes, self.rows, self.shape = scenes, rows, scenes.shape

    def __len__(self) -> int:
        return len(self.rows)

    def load(self, index: int) -> Scene:
        return self.scenes.load(int(self.rows[index]))


def at_most(scenes: Scenes, patches: int) -> Scenes:
    """Returns the scenes, or as many of them as patches are wanted, since each gives at least one."""
    if len(scenes) <= patches:
        return scenes
    return SomeScenes(scenes, rng.fixed_subset(len(scenes), patches))


def in_patches(truth: NDArray[Any], grid: tuple[int, int]) -> NDArray[Any]:
    """Returns the pixels of each patch: [h, w] to [rows, columns, pixels]. A resolution that is no multiple of the grid
    is resized to one, each pixel being repeated or left out."""
    height, width = (-(-side // cells) * cells for side, cells in zip(truth.shape, grid, strict=True))
    rows, columns = np.arange(height) * truth.shape[0] // height, np.arange(width) * truth.shape[1] // width
    blocks = truth[rows[:, None], columns].reshape(grid[0], height // grid[0], grid[1], width // grid[1])
    patches: NDArray[Any] = blocks.transpose(0, 2, 1, 3).reshape(*grid, -1)
    return patches


def drawn(
    tokens: Tensor, targets: Sequence[NDArray[Any]], known: Sequence[NDArray[np.bool_]], limit: int, first: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns tokens, float32 [m, D], of at most `limit` patches of each scene, their targets [m] and the numbers of
    their scenes, int64 [m]. Tokens are [n, rows, columns, D] of the scenes from number `first` on, targets
    [rows, columns] each, and so is `known`, which is False where a patch is left out."""
    kept_tokens: list[Tensor] = []
    kept_targets: list[NDArray[Any]] = []
    scenes: list[NDArray[np.int64]] = []
    for number, (map_of_tokens, target, is_known) in enumerate(zip(tokens, targets, known, strict=True), start=first):
        chosen = rng.numpy_generator(0, "evaluation/patches", number).permutation(np.flatnonzero(is_known))[:limit]
        kept_tokens.append(map_of_tokens.flatten(0, 1)[chosen])
        kept_targets.append(target.ravel()[chosen])
        scenes.append(np.full(len(chosen), number))
    return (
        torch.cat(kept_tokens),
        torch.from_numpy(np.concatenate(kept_targets)),
        torch.from_numpy(np.concatenate(scenes)),
    )
