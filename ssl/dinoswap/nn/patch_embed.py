"""Computes patch tokens from pixels, and resamples a position table to another grid of patches.

Follows dinov2/layers/patch_embed.py and dinov2/models/vision_transformer.py of facebookresearch/dinov2 @ b8931f7.
"""

import math

from torch import Tensor, nn
from torch.nn import functional

Stem = tuple[tuple[int, int], ...]
"""The convolutions before that of patches, each as (channels, stride)."""


class PatchEmbed(nn.Module):
    """A linear map of non-overlapping patches, as a convolution to have the official parameter shapes and init.

    With a `stem` it maps what convolutions make of the pixels: 3 x 3 ones, each with a norm over its channels and all
    places, and GELU. Their strides are a part of the patch size, which stays the pixels along a token's side. A token
    then sees some pixels around its patch, and through the norms the mean and scale of the crop: of masked patches too.

    The stem follows "Early Convolutions Help Transformers See Better" (Xiao et al., NeurIPS 2021), which has batch norm
    and ReLU in it.
    """

    def __init__(self, patch_size: int, dim: int, stem: Stem = ()) -> None:
        """Raises ValueError for a stem whose strides do not divide the patch size."""
        super().__init__()
        if patch_size < 1 or dim < 1:
            raise ValueError(f"patch_size={patch_size}, embed_dim={dim}: both must be at least 1")
        _check_stem(stem, patch_size)
        self.patch_size = patch_size
        self.stem_layers = stem
        self.stem = nn.Sequential()
        channels, side = 3, patch_size
        for width, stride in self.stem_layers:
            self.stem.append(StemLayer(channels, width, stride))
            channels, side = width, side // stride
        self.proj = nn.Conv2d(channels, dim, kernel_size=side, stride=side)

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Returns the rows and columns of patches of a crop of height x width pixels. Raises ValueError where a side is
        no multiple of the patch size."""
        rows, columns = height // self.patch_size, width // self.patch_size
        if not rows or not columns or height % self.patch_size or width % self.patch_size:
            raise ValueError(
                f"crop of {height} x {width} pixels: both sides must be multiples of patch_size={self.patch_size}; "
                f"the nearest such size is {self._nearest(height)} x {self._nearest(width)}"
            )
        return rows, columns

    def _nearest(self, side: int) -> int:
        """Returns the positive multiple of the patch size that is nearest to a side in pixels."""
        return max(round(side / self.patch_size), 1) * self.patch_size

    def forward(self, x: Tensor) -> Tensor:
        """Returns the tokens [b, N, D] of crops [b, 3, H, W], in row-major order and in the type of the weights."""
        tokens: Tensor = self.proj(self.stem(x.to(self.proj.weight.dtype)))
        return tokens.flatten(2).transpose(1, 2)  # [b, D, h, w] -> [b, N, D]


class StemLayer(nn.Sequential):
    """A 3 x 3 convolution, a norm over channels and places of each crop, and GELU."""

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, width, kernel_size=3, stride=stride, padding=1)
        self.norm = nn.GroupNorm(1, width)
        self.activation = nn.GELU()


def _check_stem(stem: Stem, patch_size: int) -> None:
    """Raises ValueError for convolutions that do not exist, and for strides that do not divide the patch size."""
    given = f"stem={[list(layer) for layer in stem]}"
    if any(width < 1 or stride < 1 for width, stride in stem):
        raise ValueError(f"{given}: channels and stride of each convolution must be at least 1")
    strides = math.prod(stride for _, stride in stem)
    if patch_size % strides:
        raise ValueError(f"{given}: strides of {strides} in all do not divide patch_size={patch_size}")


def resample_positions(
    table: Tensor, table_grid: tuple[int, int], grid: tuple[int, int], offset: float = 0.0, antialias: bool = False
) -> Tensor:
    """Returns a position table [1, H * W, D] of `table_grid` (H, W) resampled to `grid` (h, w): [1, h * w, D], bicubic
    in float32.

    A non-zero `offset` o samples with the scale (h + o) / H, as the official code does (0.1), instead of h / H. Raises
    ValueError for an offset that gives another grid.
    """
    if table_grid == grid:
        return table
    image = table.float().view(1, *table_grid, -1).permute(0, 3, 1, 2)  # [1, h w, D] -> [1, D, h, w]
    if offset:
        scale = ((grid[0] + offset) / table_grid[0], (grid[1] + offset) / table_grid[1])
        image = functional.interpolate(image, scale_factor=scale, mode="bicubic", antialias=antialias)
    else:
        image = functional.interpolate(image, size=grid, mode="bicubic", antialias=antialias)
    if tuple(image.shape[-2:]) != grid:
        raise ValueError(
            f"interpolate_offset={offset}: gives a grid of {tuple(image.shape[-2:])} for {grid}; use 0 or 0.1"
        )
    return image.permute(0, 2, 3, 1).flatten(1, 2).to(table.dtype)  # [1, D, h, w] -> [1, h w, D]
