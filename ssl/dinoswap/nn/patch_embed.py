"""From pixels to patch tokens, and the position table at another grid than its own.

Follows dinov2/layers/patch_embed.py and dinov2/models/vision_transformer.py of facebookresearch/dinov2 @ b8931f7.
"""

from torch import Tensor, nn
from torch.nn import functional


class PatchEmbed(nn.Module):
    """One linear map for all non-overlapping patches, a convolution for the sake of its parameter shapes and init."""

    def __init__(self, patch_size: int, dim: int) -> None:
        super().__init__()
        if patch_size < 1 or dim < 1:
            raise ValueError(f"patch_size={patch_size}, embed_dim={dim}: both must be at least 1")
        self.patch_size = patch_size
        self.proj = nn.Conv2d(3, dim, kernel_size=patch_size, stride=patch_size)

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of patches of a crop of height x width pixels."""
        rows, columns = height // self.patch_size, width // self.patch_size
        if not rows or not columns or height % self.patch_size or width % self.patch_size:
            raise ValueError(
                f"crop of {height} x {width} pixels: both sides must be multiples of patch_size={self.patch_size}; "
                f"the nearest such size is {self._nearest(height)} x {self._nearest(width)}"
            )
        return rows, columns

    def _nearest(self, side: int) -> int:
        return max(round(side / self.patch_size), 1) * self.patch_size

    def forward(self, x: Tensor) -> Tensor:
        """Crops [b, 3, H, W] to tokens [b, N, D], row by row."""
        tokens: Tensor = self.proj(x)
        return tokens.flatten(2).transpose(1, 2)  # [b, D, h, w] -> [b, N, D]


def resample_positions(
    table: Tensor, own: tuple[int, int], grid: tuple[int, int], offset: float = 0.0, antialias: bool = False
) -> Tensor:
    """Position rows [1, own h * own w, D] at another `grid`, bicubic in float32: [1, h * w, D].

    A non-zero `offset` o samples with the scale (h + o) / own h, as the official code does (0.1), instead of h / own h.
    """
    if own == grid:
        return table
    image = table.float().view(1, *own, -1).permute(0, 3, 1, 2)  # [1, h w, D] -> [1, D, h, w]
    if offset:
        scale = ((grid[0] + offset) / own[0], (grid[1] + offset) / own[1])
        image = functional.interpolate(image, scale_factor=scale, mode="bicubic", antialias=antialias)
    else:
        image = functional.interpolate(image, size=grid, mode="bicubic", antialias=antialias)
    if tuple(image.shape[-2:]) != grid:
        raise ValueError(
            f"interpolate_offset={offset}: gives a grid of {tuple(image.shape[-2:])} for {grid}; use 0 or 0.1"
        )
    return image.permute(0, 2, 3, 1).flatten(1, 2).to(table.dtype)  # [1, D, h, w] -> [1, h w, D]
