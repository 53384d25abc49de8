"""Frozen features of whole images: what k-NN, the linear probe and the diagnostics read.

The clean transform is that of the official evaluation: the shorter side is resized to `resize` (bicubic, antialiased)
and the centre is cropped to `size`, with no other change. Both are done in one resampling of the centre box.
Two feature vectors are kept per image: the class token and the mean of the patch tokens, after the final norm.
Pixels live for one batch: every kind of features is read from it before the next is decoded.

Of several ranks each decodes and reads every so many-th batch; which images a batch has depends neither on the number
of ranks nor on which of them can be decoded, and so no feature does. Afterwards each rank has the features of all.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import Dataset

from dinoswap import rng
from dinoswap.data.images import CorruptImage, Images
from dinoswap.data.workers import in_order
from dinoswap.distributed import any_rank, gathered, rank, world_size
from dinoswap.distributed.preemption import Preemption, StopAsked
from dinoswap.values import normalise

SMALL = 96
"""Sizes below this are those of thumbnails: their objects fill the frame, so the margin is not cut off."""

IN_PROCESS = 64
"""Up to so many images are decoded before a worker would have begun."""
AHEAD = 32
"""Images that a worker decodes while a batch is read."""

Reader = Callable[[Tensor], Mapping[str, Tensor]]
"""Features by kind, of each image on its own: uint8 [n, 3, S, S] to float32 [n, D] on the CPU."""
Features = Mapping[str, Mapping[str, Tensor]]
"""By reader and kind, float32 [n, D]."""


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


class EvalImages(Dataset[NDArray[np.uint8] | str]):
    """The rows `eval_rows(len(images), limit)` through the clean transform, `size` pixels square, in that order.

    They are cut into batches of `batch_size` rows, the last one smaller. Iterating gives this rank's batches. They are
    decoded anew each time, by `workers` processes, unless the pixels of all take at most `keep_bytes`. Images that
    cannot be decoded are missing in their batch, which may leave none, and are noted in `corrupt`.
    """

    def __init__(
        self,
        images: Images,
        size: int,
        resize: int | None = None,
        limit: int | None = None,
        batch_size: int = 256,
        keep_bytes: int = 0,
        workers: int = 0,
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
        self.workers = workers
        self.corrupt: dict[int, str] = {}  # row -> reason
        self._kept: list[EvalBatch] = []

    @property
    def rounds(self) -> int:
        """In each of them every rank has at most one batch."""
        return math.ceil(len(self.rows) / (self.batch_size * world_size()))

    @property
    def _starts(self) -> range:
        """Of this rank's batches in `rows`."""
        return range(0, len(self.rows), self.batch_size)[rank() :: world_size()]

    def __iter__(self) -> Iterator[EvalBatch]:
        return iter(self._kept or self._keeping()) if self.keep else self._decoded()

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

    def __getitem__(self, row: int) -> NDArray[np.uint8] | str:
        """What a worker makes of it: the crop, or why there is none."""
        try:
            return self.crop(row)
        except CorruptImage as error:
            return error.reason

    def _keeping(self) -> Iterator[EvalBatch]:
        """What is decoded, which is kept once it is all there."""
        batches = []
        for batch in self._decoded():
            batches.append(batch)
            if len(batches) == len(self._starts):
                self._kept = batches
            yield batch

    def _decoded(self) -> Iterator[EvalBatch]:
        """No generator: that would hold a batch of its own while the next one is decoded."""
        batches = [self.rows[start : start + self.batch_size].tolist() for start in self._starts]
        rows = [row for batch in batches for row in batch]
        workers = self.workers if len(rows) > IN_PROCESS else 0
        decoded = in_order(self, rows, workers, ahead=AHEAD)
        return iter(partial(self._next, iter(batches), decoded), None)

    def _next(self, batches: Iterator[list[int]], decoded: Iterator[NDArray[np.uint8] | str]) -> EvalBatch | None:
        """The next of `batches`, None when there are no more."""
        rows = next(batches, None)
        if rows is None:
            return None
        pixels = np.empty((len(rows), 3, self.size, self.size), dtype=np.uint8)
        used: list[int] = []
        for row in rows:
            crop = next(decoded)
            if isinstance(crop, str):
                self.corrupt[row] = crop
                continue
            pixels[len(used)] = crop
            used.append(row)
        return EvalBatch(torch.from_numpy(pixels[: len(used)]), used)


@dataclass(frozen=True)
class Extracted:
    """What was read of `rows`, the images that could be decoded."""

    features: Features
    rows: list[int]
    labels: Tensor  # int64 [n], -1 in a data set without labels


def extract(images: EvalImages, readers: Mapping[str, Reader], preemption: Preemption | None = None) -> Extracted:
    """Every reader's features, in one pass that ranks share; each has all of them afterwards.

    Raises ValueError when not one image can be decoded, and StopAsked between two batches, on every rank, where
    `preemption` has noted a signal on one.
    """
    own = iter(images)

    def read() -> tuple[list[int], Features]:
        """Of the next batch. A rank without one reads what is dropped: weights may be gathered while they compute."""
        if any_rank(preemption is not None and preemption.requested is not None)[0]:
            raise StopAsked
        batch = next(own, None)
        if batch is not None and batch.rows:
            return batch.rows, {name: reader(batch.pixels) for name, reader in readers.items()}
        for reader in readers.values() if world_size() > 1 else ():
            reader(torch.zeros(1, 3, images.size, images.size, dtype=torch.uint8))
        return [], {}

    read_here = [read() for _ in range(images.rounds)]  # a loop's variable would hold a batch beside the next one
    everywhere = gathered((read_here, images.corrupt))
    for _, corrupt in everywhere:
        images.corrupt |= corrupt
    in_order_of_rows = zip(*(batches for batches, _ in everywhere), strict=True)
    parts = [part for of_a_round in in_order_of_rows for part in of_a_round if part[0]]
    if not parts:
        some = list(images.corrupt.items())[:3]
        raise ValueError(f"evaluation: none of {len(images.corrupt)} images could be decoded {some}; check the data")
    features = {
        name: {kind: torch.cat([found[name][kind] for _, found in parts]) for kind in parts[0][1][name]}
        for name in readers
    }
    rows = [row for used, _ in parts for row in used]
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
