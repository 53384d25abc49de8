"""Frozen features of whole images: what k-NN, the linear probe and the diagnostics read.

The clean transform is that of the official evaluation: the shorter side is resized to `resize` (bicubic, antialiased)
and the centre is cropped to `size`, with no other change. Both are done in one resampling of the centre box.
Two feature vectors are kept per image: the class token and the mean of the patch tokens, after the final norm.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from dinoswap import rng
from dinoswap.data.images import CorruptImage, Images

Pixel = Sequence[float] | Tensor
"""One value per channel, [3], for pixels in 0..1."""

SMALL = 96
"""Sizes below this are those of thumbnails: their objects fill the frame, so the margin is not cut off."""


@dataclass(frozen=True)
class EvalImages:
    """Images of one split, ready for a backbone. Those that cannot be decoded are left out and listed."""

    pixels: Tensor  # uint8 [n, 3, S, S]
    labels: Tensor | None  # int64 [n]
    corrupt: tuple[tuple[int, str], ...]  # (row, reason)


def default_resize(size: int) -> int:
    """Shorter side before the crop: 256 for 224 and in proportion (official), `size` itself below `SMALL` pixels."""
    return size if size < SMALL else round(size * 256 / 224)


def eval_rows(total: int, limit: int | None = None) -> NDArray[np.int64]:
    """The rows that are evaluated: all of them, or the same `limit` of them in every run; ascending int64 [n]."""
    if limit is not None and limit < 1:
        raise ValueError(f"limit={limit}: at least one image is needed; use None for all of them")
    if limit is None or limit >= total:
        return np.arange(total)
    # The seed is fixed: runs with different seeds are compared on the same images.
    return np.sort(rng.numpy_generator(0, "evaluation/rows", total).permutation(total)[:limit])


def clean_crop(pixels: NDArray[np.uint8], size: int, resize: int) -> NDArray[np.uint8]:
    """uint8 [H, W, 3] to [size, size, 3]: shorter side to `resize`, then the centre, in one resampling."""
    height, width = pixels.shape[:2]
    side = min(height, width) * size / resize
    left, top = (width - side) / 2, (height - side) / 2
    box = (left, top, left + side, top + side)
    return np.asarray(Image.fromarray(pixels).resize((size, size), Image.Resampling.BICUBIC, box=box))


def eval_images(images: Images, size: int, resize: int | None = None, limit: int | None = None) -> EvalImages:
    """The rows `eval_rows(len(images), limit)` through the clean transform, `size` pixels square, in that order.

    Raises ValueError when `resize` is below `size`, and when not one image can be decoded.
    """
    resize = default_resize(size) if resize is None else resize
    if not 0 < size <= resize:
        raise ValueError(f"resize={resize}: must be at least the crop size {size}, or the crop would leave the image")
    crops, rows, corrupt = [], [], []
    for row in eval_rows(len(images), limit).tolist():
        try:
            crops.append(clean_crop(images.load(row), size, resize))
            rows.append(row)
        except CorruptImage as error:
            corrupt.append((row, error.reason))
    if not crops:
        raise ValueError(f"evaluation: none of {len(corrupt)} images could be decoded {corrupt[:3]}; check the data")
    pixels = torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2).contiguous()  # [n, S, S, 3] -> [n, 3, S, S]
    labels = None if images.labels is None else torch.from_numpy(images.labels[rows])
    return EvalImages(pixels, labels, tuple(corrupt))


@contextmanager
def evaluating(
    module: nn.Module, device: torch.device | str = "cpu", autocast: torch.dtype | None = None
) -> Iterator[None]:
    """Evaluation mode and autocast inside; every submodule's own training flag back afterwards."""
    flags = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        with torch.autocast(torch.device(device).type, dtype=autocast, enabled=autocast is not None):
            yield
    finally:
        for part, training in flags:
            part.training = training


def normalise(images: Tensor, mean: Pixel, std: Pixel) -> Tensor:
    """uint8 [n, 3, H, W] to float32 in units of `std` around `mean`."""
    centre, scale = (torch.as_tensor(v, dtype=torch.float32, device=images.device).view(3, 1, 1) for v in (mean, std))
    return (images.float() - centre * 255).div_(scale * 255)


# no_grad and not inference_mode: a backbone may keep what it computes here (an interpolated position table), and an
# inference tensor could not be used in the next training step.
@torch.no_grad()
def extract(
    backbone: nn.Module,
    images: Tensor,
    mean: Pixel,
    std: Pixel,
    batch_size: int = 256,
    device: torch.device | str = "cpu",
    autocast: torch.dtype | None = None,
) -> dict[str, Tensor]:
    """Features of uint8 [n, 3, H, W]: `cls` and `patch_mean`, float32 [n, D] on the CPU.

    The backbone (on `device`) is called as `backbone([crops])[0]` and keeps its training flags; nothing is drawn
    from any generator. `autocast` is the type to compute in, None for the parameters' own.
    """
    parts: dict[str, list[Tensor]] = {"cls": [], "patch_mean": []}
    with evaluating(backbone, device, autocast):
        for chunk in torch.split(images, batch_size):
            tokens = backbone([normalise(chunk.to(device, non_blocking=True), mean, std)])[0]
            parts["cls"].append(tokens.cls.float().cpu())
            parts["patch_mean"].append(tokens.patch.float().mean(1).cpu())  # [n, N, D] -> [n, D]
    return {name: torch.cat(part) for name, part in parts.items()}


@torch.no_grad()
def patch_tokens(
    backbone: nn.Module,
    images: Tensor,
    mean: Pixel,
    std: Pixel,
    device: torch.device | str = "cpu",
    autocast: torch.dtype | None = None,
) -> Tensor:
    """Patch tokens of a few images for the pictures, in one batch: uint8 [n, 3, H, W] to float32 [n, N, D], CPU."""
    with evaluating(backbone, device, autocast):
        patch: Tensor = backbone([normalise(images.to(device), mean, std)])[0].patch
    return patch.float().cpu()
