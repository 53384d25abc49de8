"""A frozen teacher as the trainer uses it: on crops with the student's normalisation, at the student's grid of patches.

How two grids are made one, for a student grid of h x w patches and a teacher with patches of p pixels:

    resize_image   the crop is resized to h p x w p: a token of the teacher is one of the student
    pool           the crop is resized to k times that, and k x k tokens are averaged: more detail, about k^2 the cost
    resize_tokens  the crop is resized to multiples of p nearby, or to `input_size`, and its tokens to h x w (bilinear,
                   align_corners False): for a teacher whose tokens are coarser than the student's

Images are resized bicubically with antialiasing. The token counts are compared whatever is chosen: masked positions are
flat indices, and against another grid they would pick other patches without a word.
"""

from contextlib import AbstractContextManager, nullcontext
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from dinoswap.da3.protocol import Teacher, Triple

GridMatching = Literal["resize_image", "pool", "resize_tokens"]
TeacherPrecision = Literal["fp32", "bf16"]
Grid = tuple[int, int]


def autocast(device: torch.device, enabled: bool) -> AbstractContextManager[None]:
    """To bfloat16, or off. The meta device, on which FLOPs are counted, has none."""
    if device.type == "meta":
        return nullcontext()
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=enabled)


def check_input_size(input_size: int, patch_size: int, grid_matching: GridMatching) -> None:
    if grid_matching != "resize_tokens":
        raise ValueError(
            f"input_size={input_size}: with grid_matching={grid_matching} the student's grid decides; set null, or "
            "grid_matching=resize_tokens"
        )
    if input_size < patch_size or input_size % patch_size:
        nearest = max(round(input_size / patch_size), 1) * patch_size
        raise ValueError(
            f"input_size={input_size}: must be a multiple of the teacher's {patch_size}, such as {nearest}"
        )


class FrozenTeacher(nn.Module):
    """A teacher that is always in evaluation mode and never has a gradient."""

    scale: Tensor
    shift: Tensor

    def __init__(
        self,
        teacher: Teacher,
        mean: Triple,
        std: Triple,
        grid_matching: GridMatching = "resize_image",
        pool: int = 2,
        input_size: int | None = None,
        precision: TeacherPrecision = "fp32",
    ) -> None:
        """Crops come in units of `std` around `mean`. `pool` is the k above, `input_size` the side in pixels of the
        teacher's input, None for the multiples nearest to the crop's own sides. `precision` bf16 is autocast's."""
        super().__init__()
        if pool < 1:
            raise ValueError(f"pool={pool}: must be at least 1; 2 averages 2 x 2 tokens")
        if input_size is not None:
            check_input_size(input_size, teacher.patch_size, grid_matching)
        self.input_size = input_size
        self.network = teacher.requires_grad_(False)
        self.grid_matching = grid_matching
        self.pool = pool if grid_matching == "pool" else 1
        self.bf16 = precision == "bf16"
        ours, theirs = (torch.tensor([m, s]).view(2, 3, 1, 1) for m, s in ((mean, std), (teacher.mean, teacher.std)))
        self.same_statistics = torch.equal(ours, theirs)
        self.register_buffer("scale", ours[1] / theirs[1], persistent=False)
        self.register_buffer("shift", (ours[0] - theirs[0]) / theirs[1], persistent=False)
        self.train(False)

    def train(self, mode: bool = True) -> "FrozenTeacher":
        """There is no other mode than evaluation."""
        return super().train(False)

    def size_of_input(self, crop: tuple[int, int], grid: Grid) -> tuple[int, int]:
        """Pixels (H, W) that the teacher is given of a crop (H, W) that the student cuts into `grid` patches."""
        patch = self.network.patch_size
        if self.input_size is not None:
            return self.input_size, self.input_size
        if self.grid_matching == "resize_tokens":  # a half is rounded up, as in the official preprocessing
            height, width = (max((2 * side + patch) // (2 * patch), 1) * patch for side in crop)
            return height, width
        return grid[0] * self.pool * patch, grid[1] * self.pool * patch

    @torch.no_grad()
    def forward(self, crops: Tensor, grid: Grid) -> Tensor:
        """Crops [C, 3, H, W] to tokens float32 [C, h w, D], row by row."""
        height, width = size = self.size_of_input((crops.shape[-2], crops.shape[-1]), grid)
        patch = self.network.patch_size
        with autocast(crops.device, enabled=False):
            images = crops.float()
            if not self.same_statistics:
                images = images * self.scale + self.shift
            if images.shape[-2:] != size:
                images = functional.interpolate(images, size, mode="bicubic", antialias=True)
        with autocast(crops.device, enabled=self.bf16):
            tokens: Tensor = self.network(images).float()
        tokens = self._matched(tokens, (height // patch, width // patch), grid)
        if tokens.shape[1] != grid[0] * grid[1]:
            raise ValueError(
                f"da3: the teacher gives {tokens.shape[1]} tokens an image and the student has {grid[0]} x {grid[1]}; "
                "with resize_image, pool and resize_tokens they agree if a teacher keeps to its patch_size"
            )
        return tokens

    def _matched(self, tokens: Tensor, own: Grid, grid: Grid) -> Tensor:
        """Tokens [C, P, D] on the grid `own` brought to `grid`."""
        if own == grid or tokens.shape[1] != own[0] * own[1]:
            return tokens
        planes = torch.unflatten(tokens.transpose(1, 2), 2, own)  # [C, P, D] -> [C, D, P] -> [C, D, h', w']
        if self.pool > 1:
            planes = functional.avg_pool2d(planes, self.pool)
        else:
            planes = functional.interpolate(planes, grid, mode="bilinear", align_corners=False)
        return planes.flatten(2).transpose(1, 2)  # [C, D, h, w] -> [C, h w, D]
