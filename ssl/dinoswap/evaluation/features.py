"""Frozen features of whole images: what k-NN, the linear probe and the diagnostics read.

The clean transform is that of the official evaluation: the shorter side is resized to `resize` (bicubic, antialiased)
and the centre is cropped to `size`, with no other change. Both are done in one resampling of the centre box.
Two feature vectors are kept per image: the class token and the mean of the patch tokens, after the final norm.
Pixels live for one batch: every kind of features is read from it before the next is decoded.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from dinoswap import rng
from dinoswap.data.images import CorruptImage, Images
from dinoswap.values import normalise

SMALL = 96
"""Sizes below this are those of thumbnails: their objects fill the frame, so the margin is not cut off."""

Reader = Callable[[Tensor], Mapping[str, Tensor]]
"""Features by kind, of each image on its own: uint8 [n, 3, S, S] to float32 [n, D] on the CPU."""


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


@dataclass(frozen=True)
class EvalBatch:
    """Images ready for a backbone."""

    pixels: Tensor  # uint8 [n, 3, S, S]
    rows: list[int]  # of the data set, [n]


class EvalImages:
    """The rows `eval_rows(len(images), limit)` through the clean transform, `size` pixels square, in that order.

    Iterating gives batches of `batch_size` images, the last one smaller. They are decoded anew each time, unless the
    pixels of all take at most `keep_bytes`. Images that cannot be decoded are left out and noted in `corrupt`.
    """

    def __init__(
        self,
        images: Images,
        size: int,
        resize: int | None = None,
        limit: int | None = None,
        batch_size: int = 256,
        keep_bytes: int = 0,
    ) -> None:
        """Raises ValueError when `resize` is below `size`."""
        resize = default_resize(size) if resize is None else resize
        if not 0 < size <= resize:
            raise ValueError(
                f"resize={resize}: must be at least the crop size {size}, or the crop would leave the image"
            )
        self.images, self.size, self.resize = images, size, resize
        self.rows = eval_rows(len(images), limit)
        self.batch_size = min(batch_size, len(self.rows))
        self.keep = len(self.rows) * 3 * size**2 <= keep_bytes
        self.corrupt: dict[int, str] = {}  # row -> reason

    def __iter__(self) -> Iterator[EvalBatch]:
        return iter(self._kept) if self.keep else self._decoded()

    @property
    def labelled(self) -> bool:
        return self.images.labels is not None

    def labels(self, rows: Sequence[int]) -> Tensor:
        """int64 [len(rows)], -1 in a data set without labels."""
        known = self.images.labels
        return torch.full((len(rows),), -1) if known is None else torch.from_numpy(known[list(rows)])

    def crop(self, row: int) -> NDArray[np.uint8]:
        """[3, S, S]. Raises CorruptImage."""
        return clean_crop(self.images.load(row), self.size, self.resize).transpose(2, 0, 1)  # [S, S, 3] -> [3, S, S]

    @cached_property
    def _kept(self) -> list[EvalBatch]:
        return list(self._decoded())

    def _decoded(self) -> Iterator[EvalBatch]:
        """No generator: that would hold a batch of its own while the next one is decoded."""
        return iter(partial(self._next, iter(self.rows.tolist())), None)

    def _next(self, rows: Iterator[int]) -> EvalBatch | None:
        """The next images of `rows`, None when there are no more."""
        pixels = np.empty((self.batch_size, 3, self.size, self.size), dtype=np.uint8)
        used: list[int] = []
        for row in rows:
            try:
                pixels[len(used)] = self.crop(row)
            except CorruptImage as error:
                self.corrupt[row] = error.reason
                continue
            used.append(row)
            if len(used) == self.batch_size:
                break
        return EvalBatch(torch.from_numpy(pixels[: len(used)]), used) if used else None


@dataclass(frozen=True)
class Extracted:
    """What was read of `rows`, the images that could be decoded."""

    features: dict[str, dict[str, Tensor]]  # by reader and kind, float32 [n, D]
    rows: list[int]
    labels: Tensor  # int64 [n], -1 in a data set without labels


def extract(images: EvalImages, readers: Mapping[str, Reader]) -> Extracted:
    """Every reader's features, in one pass. Raises ValueError when not one image can be decoded."""
    rows: list[int] = []

    def read(batch: EvalBatch) -> dict[str, Mapping[str, Tensor]]:
        rows.extend(batch.rows)
        return {name: reader(batch.pixels) for name, reader in readers.items()}

    parts = list(map(read, images))  # a loop's variable would hold each batch while the next one is decoded
    if not rows:
        some = list(images.corrupt.items())[:3]
        raise ValueError(f"evaluation: none of {len(images.corrupt)} images could be decoded {some}; check the data")
    features = {
        name: {kind: torch.cat([part[name][kind] for part in parts]) for kind in parts[0][name]} for name in readers
    }
    return Extracted(features, rows, images.labels(rows))


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


@dataclass(frozen=True)
class FrozenBackbone:
    """A backbone as it reads uint8 images [n, 3, H, W].

    It is called as `backbone([crops])[0]` and keeps its training flags; nothing is drawn from any generator. It and
    `mean` and `std` [3] are on `device`. `autocast` is the type to compute in, None for the parameters' own.
    """

    backbone: nn.Module
    mean: Tensor
    std: Tensor
    device: torch.device | str = "cpu"
    autocast: torch.dtype | None = None

    # no_grad and not inference_mode: a backbone may keep what it computes here (an interpolated position table), and
    # an inference tensor could not be used in the next training step.
    @torch.no_grad()
    def features(self, images: Tensor) -> dict[str, Tensor]:
        """`cls` and `patch_mean`, float32 [n, D] on the CPU."""
        with evaluating(self.backbone, self.device, self.autocast):
            tokens = self._tokens(images)
            patch_mean = tokens.patch.float().mean(1)  # [n, N, D] -> [n, D]
            return {"cls": tokens.cls.float().cpu(), "patch_mean": patch_mean.cpu()}

    @torch.no_grad()
    def patch_tokens(self, images: Tensor) -> Tensor:
        """Those of a few images for the pictures: float32 [n, N, D], CPU."""
        with evaluating(self.backbone, self.device, self.autocast):
            patch: Tensor = self._tokens(images).patch
        return patch.float().cpu()

    def _tokens(self, images: Tensor) -> Any:
        return self.backbone([normalise(images.to(self.device, non_blocking=True), self.mean, self.std)])[0]
