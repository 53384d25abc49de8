"""Frozen features of whole images, which k-NN, the linear probe and the diagnostics read.

The clean transform is that of the official evaluation: the shorter side is resized to `resize` (bicubic, antialiased)
and the centre is cropped to `size`, with no other change. Both are done in one resampling of the centre box.
The kinds of features that the metrics read are kept, after the final norm: class tokens, means of patch tokens, or all.
Pixels are kept for one batch: every kind of features is computed from it before the next is decoded.

With R ranks each decodes every R-th batch. Which images a batch has depends neither on the number of ranks nor on which
images can be decoded, and so no feature does. Each rank keeps the features that it computed; those of all images are
put together where they are needed, one kind of one reader at a time, as all of them may be more than a host can hold
once for each rank.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import Dataset

from dinoswap import rng
from dinoswap.data.clean_crop import clean_crop as clean_crop
from dinoswap.data.images import CorruptImage, Images
from dinoswap.data.workers import in_order
from dinoswap.distributed import any_rank, gathered, rank, rows_of_ranks, world_size
from dinoswap.distributed.preemption import Preemption, StopAsked
from dinoswap.values import normalise

SMALL = 96
"""Crops of fewer pixels a side are thumbnails, whose objects fill the frame, so no margin is cut off."""

IN_PROCESS = 64
"""Up to so many images are decoded in this process, in less time than a worker takes to start."""
AHEAD = 32
"""Number of images that workers decode ahead while a batch is read."""

Reader = Callable[[Tensor], Mapping[str, Tensor]]
"""A function from images, uint8 [n, 3, S, S], to their features by kind, float32 [n, ...] on the CPU."""
Features = Mapping[str, Mapping[str, Tensor]]
"""Features by reader and kind, float32 [n, ...] each."""
KINDS: Mapping[str, Callable[[Any], Tensor]] = {
    "cls": lambda tokens: tokens.cls.float(),  # [n, D]
    "patch_mean": lambda tokens: tokens.patch.float().mean(1),  # [n, N, D] -> [n, D]
    "patch": lambda tokens: tokens.patch.float(),  # [n, N, D]
}
"""The kinds of features that a metric can read, as functions of a backbone's tokens."""


def default_resize(size: int) -> int:
    """Returns the shorter side in pixels before the crop: 256 for 224 and in proportion (official), and `size` itself
    below `SMALL` pixels."""
    return size if size < SMALL else round(size * 256 / 224)


@dataclass(frozen=True)
class EvalBatch:
    """Images ready for a backbone."""

    pixels: Tensor  # uint8 [n, 3, S, S]
    rows: list[int]  # of the data set, [n]


class EvalImages(Dataset[NDArray[np.uint8] | str]):
    """The rows `rng.fixed_subset(len(images), limit)` after the clean transform, `size` pixels square, in that order.

    They are cut into batches of `batch_size` rows, the last one smaller. Iterating yields this rank's batches. They are
    decoded again each time, by `workers` processes, unless the pixels of all take at most `keep_bytes`. An image that
    cannot be decoded is missing in its batch, which may become empty, and is noted in `corrupt`.
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
        self.rows = rng.fixed_subset(len(images), limit)
        self.batch_size = min(batch_size, len(self.rows))
        self.keep = len(self.rows) * 3 * size**2 <= keep_bytes
        self.workers = workers
        self.corrupt: dict[int, str] = {}  # row -> reason
        self._kept: list[EvalBatch] = []

    @property
    def rounds(self) -> int:
        """Number of rounds of reading, in each of which every rank has at most one batch."""
        return math.ceil(len(self.rows) / (self.batch_size * world_size()))

    @property
    def _starts(self) -> range:
        """Positions in `rows` where this rank's batches start."""
        return range(0, len(self.rows), self.batch_size)[rank() :: world_size()]

    def __iter__(self) -> Iterator[EvalBatch]:
        return iter(self._kept or self._keeping()) if self.keep else self.batches(self._starts)

    def batches(self, starts: Sequence[int]) -> Iterator[EvalBatch]:
        """Returns an iterator over the batches of up to `batch_size` rows that start at these positions in `rows`. It
        is no generator: that would keep a reference to a batch while the next one is decoded."""
        batches = [self.rows[start : start + self.batch_size].tolist() for start in starts]
        rows = [row for batch in batches for row in batch]
        workers = self.workers if len(rows) > IN_PROCESS else 0
        decoded = in_order(self, rows, workers, ahead=AHEAD)
        return iter(partial(self._next, iter(batches), decoded), None)

    @property
    def labelled(self) -> bool:
        """Whether the images have labels."""
        return self.images.labels is not None

    def labels(self, rows: Sequence[int]) -> Tensor:
        """Returns the labels of these rows, int64 [len(rows)], -1 in a data set without labels."""
        known = self.images.labels
        return torch.full((len(rows),), -1) if known is None else torch.from_numpy(known[list(rows)])

    def crop(self, row: int) -> NDArray[np.uint8]:
        """Returns the clean crop of a row, uint8 [3, S, S]. Raises CorruptImage where it cannot be decoded."""
        return self.crops(row, [self.size])[0]

    def crops(self, row: int, sizes: Sequence[int]) -> list[NDArray[np.uint8]]:
        """Returns the clean crop of a row at several sizes S, uint8 [3, S, S] each. Raises CorruptImage where it cannot
        be decoded."""
        pixels = self.images.load(row)
        crops = [clean_crop(pixels, size, round(size * self.resize / self.size)) for size in sizes]
        return [crop.transpose(2, 0, 1) for crop in crops]  # [S, S, 3] -> [3, S, S]

    def __getitem__(self, row: int) -> NDArray[np.uint8] | str:
        """Returns what a worker sends back: the crop of a row, or why it cannot be decoded."""
        try:
            return self.crop(row)
        except CorruptImage as error:
            return error.reason

    def _keeping(self) -> Iterator[EvalBatch]:
        """Yields the decoded batches and keeps them once all have been decoded."""
        batches = []
        for batch in self.batches(self._starts):
            batches.append(batch)
            if len(batches) == len(self._starts):
                self._kept = batches
            yield batch

    def _next(self, batches: Iterator[list[int]], decoded: Iterator[NDArray[np.uint8] | str]) -> EvalBatch | None:
        """Returns the next batch, decoded, and None when there are no more."""
        rows = next(batches, None)
        if rows is None:
            return None
        pixels = np.empty((len(rows), 3, self.size, self.size), dtype=np.uint8)
        decoded_rows: list[int] = []
        for row in rows:
            crop = next(decoded)
            if isinstance(crop, str):
                self.corrupt[row] = crop
                continue
            pixels[len(decoded_rows)] = crop
            decoded_rows.append(row)
        return EvalBatch(torch.from_numpy(pixels[: len(decoded_rows)]), decoded_rows)


@dataclass(frozen=True)
class Extracted:
    """Features of the images that could be decoded: those that this rank computed. `batches` has the rows of every
    batch of all ranks, in the order of the data; the rank that computed batch i is i modulo the number of ranks."""

    features: Features
    batches: list[list[int]]
    labels: Tensor  # int64 [n] of all images, -1 in a data set without labels

    @property
    def rows(self) -> list[int]:
        """The rows of all images that could be decoded."""
        return [row for batch in self.batches for row in batch]

    def of_all(self, reader: str, kind: str) -> Tensor:
        """Returns the features of all images, [n, ...] in the order of `rows`, on every rank. Ranks call it
        together."""
        own, ranks = self.features[reader][kind], world_size()
        if ranks == 1:
            return own
        sizes = [len(batch) for batch in self.batches]
        shares = [sizes[number::ranks] for number in range(ranks)]
        parts = rows_of_ranks(own, [sum(share) for share in shares])
        batches = [iter(torch.split(part, share)) for part, share in zip(parts, shares, strict=True)]
        return torch.cat([next(batches[number % ranks]) for number in range(len(sizes))])


def extract(images: EvalImages, readers: Mapping[str, Reader], preemption: Preemption | None = None) -> Extracted:
    """Returns the features of every reader, computed in one pass over the images, which ranks share.

    Raises ValueError when not one image can be decoded, and StopAsked between two batches, on every rank, when
    `preemption` has noted a signal on one of them.
    """
    batches_here = iter(images)

    def read_next() -> tuple[list[int], Features]:
        """Returns rows and features of the next batch. A rank without one computes features of no row: sharded weights
        are gathered in the forward pass, in which all ranks take part."""
        if any_rank(preemption is not None and preemption.requested is not None)[0]:
            raise StopAsked
        batch = next(batches_here, None)
        if batch is not None and batch.rows:
            return batch.rows, {name: reader(batch.pixels) for name, reader in readers.items()}
        if world_size() == 1:
            return [], {}
        black = torch.zeros(1, 3, images.size, images.size, dtype=torch.uint8)
        of_black = {name: reader(black) for name, reader in readers.items()}
        return [], {name: {kind: values[:0] for kind, values in kinds.items()} for name, kinds in of_black.items()}

    # A loop variable would keep a batch in memory while the next one is decoded
    parts = [read_next() for _ in range(images.rounds)]
    per_rank = gathered(([rows for rows, _ in parts], images.corrupt))
    for _, corrupt in per_rank:
        images.corrupt |= corrupt
    rounds = zip(*(batches for batches, _ in per_rank), strict=True)
    batches = [batch for batches_of_round in rounds for batch in batches_of_round]
    rows = [row for batch in batches for row in batch]
    if not rows:
        first = list(images.corrupt.items())[:3]
        raise ValueError(f"evaluation: none of {len(images.corrupt)} images could be decoded {first}; check the data")
    computed = [features for _, features in parts if features]
    features = {
        name: {kind: torch.cat([part[name][kind] for part in computed]) for kind in computed[0][name]}
        for name in readers
    }
    return Extracted(features, batches, images.labels(rows))


@contextmanager
def evaluating(
    module: nn.Module, device: torch.device | str = "cpu", autocast: torch.dtype | None = None
) -> Iterator[None]:
    """Has a module in evaluation mode, under autocast, within the context. Afterwards every submodule has its own
    training flag again."""
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
    """Computes the features of a backbone for uint8 images [n, 3, H, W].

    The backbone is called as `backbone([crops])[0]` and keeps its training flags; nothing is drawn from any generator.
    It and `mean` and `std` [3] are on `device`. `autocast` is the type to compute in, None for that of the parameters.
    `kinds` are names of KINDS.
    """

    backbone: nn.Module
    mean: Tensor
    std: Tensor
    device: torch.device | str = "cpu"
    autocast: torch.dtype | None = None
    kinds: Sequence[str] = ("cls", "patch_mean")

    # no_grad and not inference_mode: a backbone may keep what it computes here (an interpolated position table), and
    # an inference tensor could not be used in the next training step.
    @torch.no_grad()
    def features(self, images: Tensor) -> dict[str, Tensor]:
        """Returns the features of these images by kind, float32 on the CPU."""
        with evaluating(self.backbone, self.device, self.autocast):
            tokens = self._tokens(images)
            return {kind: KINDS[kind](tokens).cpu() for kind in self.kinds}

    @torch.no_grad()
    def patch_tokens(self, images: Tensor) -> Tensor:
        """Returns the patch tokens of a few images, for pictures: float32 [n, N, D] on the CPU."""
        with evaluating(self.backbone, self.device, self.autocast):
            patch: Tensor = self._tokens(images).patch
        return patch.float().cpu()

    def patch_map(self, images: Tensor) -> Tensor:
        """Returns the patch tokens of images in their places: float32 [n, rows, columns, D] on the CPU."""
        patch: int = cast(Any, self.backbone).patch_size
        grid = images.shape[-2] // patch, images.shape[-1] // patch
        return torch.unflatten(self.patch_tokens(images), 1, grid)

    def _tokens(self, images: Tensor) -> Any:
        """Returns the tokens of images [n, 3, S, S], which are moved to the device and normalised."""
        return self.backbone([normalise(images.to(self.device, non_blocking=True), self.mean, self.std)])[0]
