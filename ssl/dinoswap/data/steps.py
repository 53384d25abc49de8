"""Makes the batch of a micro-step as a function of its number. The data workers run this code.

Step s takes positions s * batch_size .. (s + 1) * batch_size - 1 of the endless sample sequence (order.py), cut into
accumulate * world_size consecutive slices; micro-step m of rank r takes slice m * world_size + r. Crops are drawn from
a generator keyed by the position. The masks of a step are a function of it, cut in the same way. Which sizes the crops
have is a function of the step. So neither workers nor ranks nor accumulation change what is trained on, and resuming at
a step needs its number only.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from dinoswap.data.corrupt import TooManyCorrupt
from dinoswap.data.images import CorruptImage, Images, Pixels
from dinoswap.data.order import Order
from dinoswap.data.workers import in_order
from dinoswap.rng import numpy_generator
from dinoswap.values import Batch, Views, masked_positions

Augmentation = Callable[[Pixels, np.random.Generator], Views]
Masks = Callable[[int, slice], NDArray[np.bool_]]

_ATTEMPTS = 100


@dataclass(frozen=True)
class Pipeline:
    """How crops and masks are drawn, for crops of one size. `masks(step, part)` returns bool [P, B, N], True =
    hidden, of a part of the step's batch_size images. `share`: of the steps that are made by this pipeline."""

    augmentation: Augmentation
    masks: Masks
    share: float = 1.0


@dataclass(frozen=True)
class StepDataset(Dataset[Batch]):
    """Maps the number of a micro-step to the Batch of this rank. `choose(step)` returns the index in `pipelines` of the
    one that makes the step.

    Raises ValueError when batch_size does not divide into equal slices, or order and images differ in length. An item
    raises TooManyCorrupt when too many images in a row cannot be decoded.
    """

    images: Images
    order: Order
    pipelines: Sequence[Pipeline]
    choose: Callable[[int], int]
    seed: int  # of the crops
    batch_size: int  # images per step, over all ranks and micro-steps
    rank: int = 0
    world_size: int = 1
    accumulate: int = 1

    def __post_init__(self) -> None:
        slices = self.accumulate * self.world_size
        if self.batch_size < 1 or self.batch_size % slices:
            raise ValueError(
                f"data.batch_size={self.batch_size}: it is cut into accumulate * ranks = {self.accumulate} * "
                f"{self.world_size} equal slices; choose a positive multiple of {slices}"
            )
        if len(self.order) != len(self.images):
            raise ValueError(f"the order has {len(self.order)} rows, the data set {len(self.images)}")

    def __getitem__(self, micro_step: int) -> Batch:
        return self.made_by(self.pipelines[self.choose(micro_step // self.accumulate)], micro_step)

    def made_by(self, pipeline: Pipeline, micro_step: int) -> Batch:
        """Returns the batch of a micro-step as `pipeline` makes it, whichever the step has."""
        step, micro = divmod(micro_step, self.accumulate)
        size = self.batch_size // (self.accumulate * self.world_size)
        first = (micro * self.world_size + self.rank) * size
        positions = step * self.batch_size + np.arange(first, first + size)
        corrupt: list[tuple[int, str]] = []
        rows, views = [], []
        for position, row in zip(positions.tolist(), self.order.rows(positions).tolist(), strict=True):
            row, image = self._load(position, row, corrupt)
            rows.append(row)
            views.append(pipeline.augmentation(image, numpy_generator(self.seed, "augment", position)))
        mask = np.ascontiguousarray(pipeline.masks(step, slice(first, first + size)))
        return collate(views, mask, rows, corrupt)

    def _load(self, position: int, row: int, corrupt: list[tuple[int, str]]) -> tuple[int, Pixels]:
        """Returns the row at `position` and its pixels, uint8 [H, W, 3]. A row that cannot be decoded is added to
        `corrupt` and replaced by one that is drawn by position and attempt. Raises TooManyCorrupt after `_ATTEMPTS`
        rows."""
        for attempt in range(_ATTEMPTS):
            try:
                return row, self.images.load(row)
            except CorruptImage as error:
                corrupt.append((row, error.reason))
                row = self.order.replacement(position, attempt)
        listed = "\n".join(f"  {self.images.name(row)}: {reason}" for row, reason in dict(corrupt).items())
        raise TooManyCorrupt(f"{_ATTEMPTS} images in a row could not be decoded, the data set is broken:\n{listed}")


def collate(views: Sequence[Views], mask: NDArray[np.bool_], rows: list[int], corrupt: list[tuple[int, str]]) -> Batch:
    """Returns the batch of B images: their crops [crops, B, 3, h, w], and their mask [P, B, N]."""
    return Batch(
        global_crops=_stack([view.global_crops for view in views]),
        local_crops=_stack([view.local_crops for view in views]),
        extra_crops=_stack([view.extra_crops for view in views]),
        mask=torch.from_numpy(mask),
        **masked_positions(torch.from_numpy(mask)),
        indices=torch.tensor(rows),
        clean_crops={width: _stack([view.clean_crops[width] for view in views]) for width in views[0].clean_crops},
        photometry={
            name: _stack([view.photometry[name] for view in views])
            for name, rows in views[0].photometry.items()
            if rows
        },
        corrupt=tuple(corrupt),
    )


def _stack(crops: Sequence[Sequence[Tensor]]) -> Tensor:
    """Returns crops[image][crop], each [3, h, w], as [crops, B, 3, h, w]; [0, B, 3, 0, 0] when there are no crops. Rows
    of numbers are stacked likewise."""
    count = len(crops[0])
    if count == 0:
        return torch.empty(0, len(crops), 3, 0, 0, dtype=torch.uint8)
    flat = torch.stack([image[c] for c in range(count) for image in crops])
    return flat.view(count, len(crops), *flat.shape[1:])  # [crops * B, 3, h, w] -> [crops, B, 3, h, w]


def loader(dataset: StepDataset, start: int, stop: int, workers: int, pin_memory: bool) -> Iterator[Batch]:
    """Yields the batches of steps start .. stop - 1 in order, `dataset.accumulate` of them per step.

    Raises what `dataset` raises, and DataWorkerError when `workers` is more than 0 and one of them fails.
    """
    batches = in_order(
        dataset, range(start * dataset.accumulate, stop * dataset.accumulate), workers, pin_memory=pin_memory
    )
    return batches if workers or not pin_memory else (batch.pin_memory() for batch in batches)
