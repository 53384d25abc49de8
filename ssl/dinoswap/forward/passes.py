"""Functions that the forward plans share: the backbone over groups of crops, and the features from its tokens.

The groups of one call are packed, but do not attend to each other: a second pass is one more entry of the list.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from dinoswap.nn.vit import Tokens
from dinoswap.values import Batch, Features

Entry = tuple[Tensor, Tensor | None, Tensor | None]
"""Crops [C, B, 3, h, w], where the last entry's C may be 0; their mask bool [C, B, N] or None; which of their C * B * N
patch tokens are read, or None for the class tokens alone."""


def run(backbone: nn.Module, entries: Sequence[Entry], all_patches: bool, last_is_local: bool = False) -> list[Tokens]:
    """Returns the tokens of each entry, computed in one call: with `all_patches` every token, else those read.
    `last_is_local`: whether the last entry's crops are the local ones."""
    present = [entry for entry in entries if entry[0].shape[0]]
    tokens: list[Tokens] = backbone(
        [crops.flatten(0, 1) for crops, _, _ in present],  # [C, B, ...] -> [C B, ...]
        [None if mask is None else mask.flatten(0, 1) for _, mask, _ in present],  # [C, B, N] -> [C B, N]
        None if all_patches else [rows for _, _, rows in present],
        len(entries) - 1 if last_is_local else None,
    )
    empty = Tokens(tokens[0].cls[:0], None, None)
    return [*tokens, *[empty] * (len(entries) - len(present))]


def features(cls: Tensor, local_cls: Tensor, patch: Tensor | None, batch: Batch, all_patches: bool) -> Features:
    """Returns the features from class tokens [2 B, D] and [L B, D] and from patch tokens: [P B, N, D] with
    `all_patches`, else the masked ones [M, D]."""
    global_cls = cls.view(2, batch.images, -1)  # [2 B, D] -> [2, B, D]
    local = local_cls.view(-1, batch.images, cls.shape[-1])  # [L B, D] -> [L, B, D]
    assert patch is not None
    if not all_patches:
        return Features(global_cls, local, patch)
    masked = patch.flatten(0, 1)[batch.masked_indices]  # [P B, N, D] -> [P B N, D] -> [M, D]
    return Features(global_cls, local, masked, torch.unflatten(patch, 0, batch.mask.shape[:2]))
