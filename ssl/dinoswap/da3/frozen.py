"""A frozen teacher for crops with the student's normalisation, whose tokens are brought to the student's patch grid.

Ways to match the grids, for a student grid of h x w patches and a teacher with patches of p pixels:

    resize_image   the crop is resized to h p x w p: a token of the teacher is one of the student
    pool           the crop is resized to k times that, and k x k tokens are averaged: more detail, about k^2 the cost
    resize_tokens  the crop is resized to multiples of p nearby, or to `input_size`, and its tokens to h x w (bilinear,
                   align_corners False): for a teacher whose tokens are coarser than the student's

Images are resized bicubically with antialiasing. The token counts are always compared: masked positions are flat
indices, which would silently pick wrong patches of another grid.
"""

from contextlib import AbstractContextManager, nullcontext
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from dinoswap.teacher.base import Teacher, Triple

GridMatching = Literal["resize_image", "pool", "resize_tokens"]
TeacherPrecision = Literal["fp32", "bf16"]
Grid = tuple[int, int]


def autocast(device: torch.device, enabled: bool) -> AbstractContextManager[None]:
    """Returns a context with autocast to bfloat16, or off. On the meta device, where FLOPs are counted, it does
    nothing."""
    if device.type == "meta":
        return nullcontext()
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=enabled)


def check_input_size(input_size: int, patch_size: int, grid_matching: GridMatching) -> None:
    """Raises ValueError where `input_size` does not apply or is no multiple of the teacher's patch size."""
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
        """Crops come in units of `std` around `mean`. With grid_matching=pool, `pool` x `pool` tokens are averaged.
        `input_size` is the side in pixels of the teacher's input, None for the multiples of its patch size nearest to
        the crop's sides. `precision` bf16 uses autocast. Raises ValueError for a size or pool that does not fit."""
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
        statistics = (mean, std), (teacher.mean, teacher.std)
        of_crops, of_teacher = (torch.tensor(pair).view(2, 3, 1, 1) for pair in statistics)
        self.same_statistics = (tuple(mean), tuple(std)) == (tuple(teacher.mean), tuple(teacher.std))
        self.register_buffer("scale", of_crops[1] / of_teacher[1], persistent=False)
        self.register_buffer("shift", (of_crops[0] - of_teacher[0]) / of_teacher[1], persistent=False)
        self.train(False)

    def train(self, mode: bool = True) -> "FrozenTeacher":
        """Keeps evaluation mode, whatever `mode` is."""
        return super().train(False)

    def size_of_input(self, crop: tuple[int, int], grid: Grid) -> tuple[int, int]:
        """Returns the size (H, W) in pixels of the teacher's input for a `crop` of (H, W) pixels and `grid` patches."""
        patch = self.network.patch_size
        if self.input_size is not None:
            return self.input_size, self.input_size
        if self.grid_matching == "resize_tokens":  # a half is rounded up, as in the official preprocessing
            height, width = (max((2 * side + patch) // (2 * patch), 1) * patch for side in crop)
            return height, width
        return grid[0] * self.pool * patch, grid[1] * self.pool * patch

    @torch.no_grad()
    def forward(self, crops: Tensor, grid: Grid) -> Tensor:
        """Returns the tokens of crops [C, 3, H, W], float32 [C, h w, D] in row-major order. Raises ValueError where
        their number is not that of `grid`."""
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

    def _matched(self, tokens: Tensor, teacher_grid: Grid, grid: Grid) -> Tensor:
        """Returns tokens [C, P, D] on `teacher_grid` pooled or interpolated to `grid`."""
        if teacher_grid == grid or tokens.shape[1] != teacher_grid[0] * teacher_grid[1]:
            return tokens
        planes = torch.unflatten(tokens.transpose(1, 2), 2, teacher_grid)  # [C, P, D] -> [C, D, P] -> [C, D, h', w']
        if self.pool > 1:
            planes = functional.avg_pool2d(planes, self.pool)
        else:
            planes = functional.interpolate(planes, grid, mode="bilinear", align_corners=False)
        return planes.flatten(2).transpose(1, 2)  # [C, D, h, w] -> [C, h w, D]
