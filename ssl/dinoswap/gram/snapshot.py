"""Gram anchoring to an earlier teacher: a frozen copy of the EMA teacher's backbone, renewed now and then.

Long training improves class tokens while patch tokens lose what is local in them, so similarities are held at those of
a teacher from before. It sees the same crops without mask and photometric changes, `crop_scale` times as large, and its
finer grid of tokens is resized to the student's, which smooths them. The copy is renewed before each step that is a
multiple of `refresh_every`, from `refresh_first` on. Before it holds anything to anchor to, the weight is 0.
Follows dinov3/train/ssl_meta_arch.py (update_gram, get_gram_teacher_output) of facebookresearch/dinov3 @ 6876159, whose
student gets its crop resized from the larger one; Siméoni et al. (arXiv 2508.10104). There the teacher's crop may also
have the photometric changes of the student's (gram_teacher_no_distortions=false); no shipped recipe does so, nor is it
done here.
"""

import copy
from collections.abc import Mapping, Sequence
from typing import Literal, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from dinoswap.distributed.sharding import own_share
from dinoswap.files.weights import digest_of, weight_file
from dinoswap.gram.base import WEIGHT, GramAnchoring, Negatives, Which
from dinoswap.nn.block import Block
from dinoswap.nn.vit import VisionTransformer
from dinoswap.nn.weights.load import load_backbone, load_into
from dinoswap.objectives.base import Context
from dinoswap.optim.schedules import Phases, Schedule, steps
from dinoswap.values import Hyper

Grid = tuple[int, int]
Resize = Literal["bicubic", "bilinear"]
REFRESH, PATH = "gram_refresh", "objectives.gram.path"


class SnapshotGram(GramAnchoring):
    """The objective with the similarities of an earlier teacher, which is a part of the checkpoint."""

    backbone: VisionTransformer

    def __init__(
        self,
        *,
        loss_weight: float,
        weight_schedule: Phases,
        normalise: bool,
        per_image: bool,
        tokens: Which,
        negatives: Negatives,
        stats: bool,
        path: str | None,
        crop_scale: float,
        refresh_first: int | float,
        refresh_every: int | float,
        refresh_times: int | None,
        resize: Resize,
        resize_antialias: bool,
    ) -> None:
        """`path` is a file of the weights to begin with, None for none. `refresh_times` None means any number. Raises
        ValueError for a value out of range."""
        super().__init__(
            loss_weight=loss_weight,
            weight_schedule=weight_schedule,
            normalise=normalise,
            per_image=per_image,
            tokens=tokens,
            negatives=negatives,
            stats=stats,
        )
        if not crop_scale > 0:
            raise ValueError(f"crop_scale={crop_scale}: must be above 0; 2 doubles the side of the teacher's crops")
        if refresh_times is not None and refresh_times < 0:
            raise ValueError(f"refresh_times={refresh_times}: must be 0 or more, or null for any number")
        if not refresh_every > 0:
            raise ValueError(f"refresh_every={refresh_every}: must be at least one step, or a share of the run above 0")
        if refresh_times == 0 and path is None:
            raise ValueError("refresh_times=0: leaves no teacher to anchor to; give path=FILE too, or at least 1")
        self.path, self.crop_scale = path, crop_scale
        self.refresh_first, self.refresh_every, self.refresh_times = refresh_first, refresh_every, refresh_times
        self.resize: Resize = resize
        self.resize_antialias = resize_antialias

    def adopt(self, teacher: nn.ModuleDict) -> None:
        """Copies the backbone of the EMA teacher, and reads the weights at `path` into the copy, unless that is on the
        meta device and has none. Raises ValueError for weights that do not fit."""
        self.backbone = cast(VisionTransformer, copy.deepcopy(teacher["backbone"])).requires_grad_(False)
        if self.path is not None and not self.backbone.cls_token.is_meta:
            heads = cast(Block, self.backbone.blocks[0]).attn.num_heads
            load_into(self.backbone, load_backbone(weight_file(self.path, PATH), heads).state)

    def train(self, mode: bool = True) -> "SnapshotGram":
        """Keeps evaluation mode, whatever `mode` is."""
        return super().train(False)

    def identity(self) -> Mapping[str, str]:
        """Returns the digest of the weights to begin with."""
        return {} if self.path is None else {"weights": f"sha256:{digest_of(weight_file(self.path, PATH))[:16]}"}

    def inference_only_models(self) -> Sequence[nn.Module]:
        """Returns the copy, which is sharded as the teacher is, so that one is copied into the other shard by shard."""
        return [self.backbone]

    def clean_size(self, crop_size: int) -> int:
        """Returns the side of the teacher's crops. Raises ValueError where it is no multiple of the patch size."""
        size, patch = round(self.crop_scale * crop_size), self.backbone.patch_size
        if size < patch or size % patch:
            raise ValueError(
                f"objectives.gram.crop_scale={self.crop_scale}: makes crops of {size} pixels of those of {crop_size}, "
                f"no multiple of model.patch_size={patch}; try {max(round(size / patch), 1) * patch / crop_size:g}"
            )
        return size

    def schedules(self, total: int) -> Mapping[str, Schedule]:
        """Returns the weight by step, and 1 at each step that begins with a new copy."""
        first = steps(self.refresh_first, total, "objectives.gram.refresh_first")
        every = max(steps(self.refresh_every, total, "objectives.gram.refresh_every"), 1)
        refreshed = [step for step in range(every, total, every) if step >= first][: self.refresh_times]
        if self.path is None and not refreshed:
            raise ValueError(
                f"objectives.gram.refresh_first={self.refresh_first}: no step of trainer.max_steps={total} is a "
                f"multiple of refresh_every={self.refresh_every} and not before it, so there never is a teacher to "
                "anchor to"
            )
        refresh = np.zeros(total)
        refresh[refreshed] = 1
        weights = super().schedules(total)[WEIGHT]
        by_step = np.array([weights[step] for step in range(total)])
        if self.path is None:
            by_step[: refreshed[0]] = 0
        return {WEIGHT: Schedule(by_step, weights.final), REFRESH: Schedule(refresh, 0.0)}

    @torch.no_grad()
    def begin_step(self, teacher: nn.ModuleDict, hyper: Hyper) -> None:
        """Copies the EMA teacher's backbone at the steps that begin with a new copy. To do so twice changes nothing."""
        if hyper[REFRESH]:
            copied, current = (
                [own_share(parameter) for parameter in network.parameters()]
                for network in (self.backbone, teacher["backbone"])
            )
            torch._foreach_copy_(copied, current)

    @torch.no_grad()
    def teacher_tokens(self, context: Context) -> Tensor:
        """Returns the copy's tokens of the clean crops, resized to the student's grid, [P, B, N, D]."""
        crops, patch = context.batch.patch_crops, self.backbone.patch_embed
        clean = context.batch.clean_crops[self.clean_size(crops.shape[-1])]  # [P, B, 3, s, s]
        tokens: Tensor = self.backbone(clean.flatten(0, 1)).patch  # [P, B, 3, s, s] -> [P B, n, D]
        grid, own_grid = patch.grid(*crops.shape[-2:]), patch.grid(*clean.shape[-2:])
        if grid != own_grid:
            tokens = resized(tokens, own_grid, grid, self.resize, self.resize_antialias)
        return torch.unflatten(tokens, 0, clean.shape[:2])


def resized(tokens: Tensor, grid: Grid, new: Grid, method: Resize, antialias: bool) -> Tensor:
    """Returns tokens [b, n, D] on `grid` resized to the grid `new`, [b, N, D]."""
    planes = torch.unflatten(tokens.transpose(1, 2), 2, grid)  # [b, n, D] -> [b, D, n] -> [b, D, h, w]
    planes = functional.interpolate(planes, new, mode=method, align_corners=False, antialias=antialias)
    return planes.flatten(2).transpose(1, 2)  # [b, D, H, W] -> [b, D, N] -> [b, N, D]
