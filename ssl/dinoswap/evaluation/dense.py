"""Lets the families that read patch tokens measure them, on scenes of their own: a batch of scenes at a time.

No tokens are kept but those that a classifier is fitted on. With R ranks each reads every R-th batch; which scenes a
batch has depends neither on the number of ranks nor on which images can be decoded.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from dinoswap.data.images import CorruptImage
from dinoswap.data.workers import in_order
from dinoswap.dense.base import Scene, Scenes
from dinoswap.distributed import any_rank, gathered, rank, world_size
from dinoswap.distributed.preemption import Preemption, StopAsked
from dinoswap.evaluation.features import AHEAD, IN_PROCESS
from dinoswap.metric.base import DenseMetric

Encoder = Callable[[Tensor], Tensor]
"""A function from images, uint8 [n, 3, H, W], to their patch tokens, float32 [n, rows, columns, D] on the CPU."""
OnMain = Callable[[Callable[[], Any]], Any]
"""A function that calls another one on the first rank and returns its result on all ranks."""
SHOWN = 6
"""Number of scenes in a picture."""
PIXELS = 224**2
"""A batch has as many pixels as `batch_size` images of so many at most: scenes may be large, and what a network makes
of a batch takes about a hundred bytes for each pixel."""


class SceneReader(Dataset[Scene | CorruptImage]):
    """Reads scenes in batches of about `batch_size` images, fewer where they have more than PIXELS, and keeps them when
    they take at most `keep_bytes`. A scene that cannot be decoded is missing in its batch and noted in `corrupt`."""

    def __init__(self, scenes: Scenes, batch_size: int, keep_bytes: int = 0, workers: int = 0) -> None:
        self.scenes, self.workers = scenes, workers
        views, height, width = scenes.shape
        self.batch_size = max(batch_size * PIXELS // (views * max(height * width, PIXELS)), 1)
        self.keep = len(scenes) * 3 * math.prod(scenes.shape) <= keep_bytes
        self.corrupt: dict[str, str] = {}  # image -> reason
        self._kept: list[list[Scene]] = []

    @property
    def rounds(self) -> int:
        """Number of rounds of reading, in each of which every rank has at most one batch."""
        return math.ceil(len(self.scenes) / (self.batch_size * world_size()))

    @property
    def starts(self) -> range:
        """The indices of the first scenes of this rank's batches."""
        return range(0, len(self.scenes), self.batch_size)[rank() :: world_size()]

    def __getitem__(self, index: int) -> Scene | CorruptImage:
        """Returns what a worker sends back: a scene, or why it cannot be decoded."""
        try:
            return self.scenes.load(index)
        except CorruptImage as error:
            return error

    def __iter__(self) -> Iterator[list[Scene]]:
        """Yields this rank's batches."""
        if self._kept:
            yield from self._kept
            return
        indices = [range(start, min(start + self.batch_size, len(self.scenes))) for start in self.starts]
        flat = [index for batch in indices for index in batch]
        decoded = in_order(self, flat, self.workers if len(flat) > IN_PROCESS else 0, ahead=AHEAD)
        batches = []
        for batch in indices:
            items = [next(decoded) for _ in batch]
            self.corrupt |= {item.name: item.reason for item in items if isinstance(item, CorruptImage)}
            scenes = [item for item in items if isinstance(item, Scene)]
            batches += [scenes] if self.keep else []
            if len(batches) == len(indices):
                self._kept = batches
            yield scenes


@dataclass
class DenseResult:
    """What a family found: numbers by row of the table and name, pictures by name, images that could not be decoded."""

    rows: dict[str, Mapping[str, float]]
    pictures: Mapping[str, NDArray[np.uint8]] = field(default_factory=dict)
    corrupt: dict[str, str] = field(default_factory=dict)


def measure_dense(
    metric: DenseMetric,
    readers: tuple[SceneReader | None, SceneReader],
    encoders: Mapping[str, Encoder],
    on_main: OnMain,
    preemption: Preemption,
) -> DenseResult:
    """Returns what a family finds on its training scenes, None where it has none, and test scenes, for every encoder by
    its row of the table; pictures are of the first. All ranks call it together.

    Raises ValueError where not one test scene can be decoded, and StopAsked between two batches, on every rank, after a
    signal to one of them.
    """
    train, test = readers
    fitted: Mapping[str, Any] = dict.fromkeys(encoders)
    if train is not None:
        kept = _over_batches(train, encoders, metric.keep, preemption)
        fitted = on_main(lambda: {row: metric.fit(_joined(batches)) for row, batches in kept.items()})

    def judged(row: str) -> Callable[[Tensor, Sequence[NDArray[Any]], int], Tensor]:
        return lambda tokens, truth, first: metric.judge(fitted[row], tokens, truth)

    counts = _over_batches(test, encoders, {row: judged(row) for row in encoders}, preemption)
    if not all(counts.values()):
        raise ValueError(f"{type(metric).__name__}: none of its {len(test.scenes)} scenes could be decoded")
    rows = {row: metric.values(torch.stack(parts).sum(0)) for row, parts in counts.items()}
    for values in rows.values():
        metric.require_described(values)
    first = next(iter(encoders))
    pictures = _pictures(metric, fitted[first], encoders[first], test, on_main)
    return DenseResult(rows, pictures, {**(train.corrupt if train is not None else {}), **test.corrupt})


def _over_batches(
    reader: SceneReader,
    encoders: Mapping[str, Encoder],
    work: Callable[..., Any] | Mapping[str, Callable[..., Any]],
    preemption: Preemption,
) -> dict[str, list[Any]]:
    """Returns what `work`, of all rows or by row, makes of (tokens, truth, index of the first scene) of each batch, by
    row, in the order of the batches, on every rank."""
    own_batches = iter(reader)
    starts = iter(reader.starts)
    by_row: list[dict[str, Any]] = []
    for _ in range(reader.rounds):
        if any_rank(preemption.requested is not None)[0]:
            raise StopAsked
        scenes, first = next(own_batches, []), next(starts, 0)
        by_row.append({})
        if scenes:
            views = torch.from_numpy(np.stack([scene.views for scene in scenes]))
            truth = [scene.truth for scene in scenes]
            for row, encode in encoders.items():
                tokens = torch.unflatten(encode(views.flatten(0, 1)), 0, views.shape[:2])
                by_row[-1][row] = (work[row] if isinstance(work, Mapping) else work)(tokens, truth, first)
        elif world_size() > 1:  # sharded weights are gathered in the forward pass, in which all ranks take part
            for encode in encoders.values():
                encode(torch.zeros(1, 3, *reader.scenes.shape[1:], dtype=torch.uint8))
    per_rank = gathered((by_row, reader.corrupt))
    for _, corrupt in per_rank:
        reader.corrupt |= corrupt
    rounds = zip(*(batches for batches, _ in per_rank), strict=True)
    batches = [batch for parts in rounds for batch in parts if batch]
    return {row: [batch[row] for batch in batches] for row in encoders}


def _joined(batches: Sequence[Mapping[str, Tensor]]) -> Mapping[str, Tensor]:
    """Returns what was kept of all batches, concatenated by name. Raises ValueError where no scene was decoded."""
    if not batches:
        raise ValueError("dense metrics: no training scene could be decoded")
    return {name: torch.cat([batch[name] for batch in batches]) for name in batches[0]}


def _pictures(
    metric: DenseMetric, fitted: Any, encode: Encoder, reader: SceneReader, on_main: OnMain
) -> Mapping[str, NDArray[np.uint8]]:
    """Returns a family's pictures of test scenes, evenly spread over those that can be decoded."""

    def sampled() -> list[Scene]:
        count = len(reader.scenes)
        read = (reader[index] for index in range(0, count, max(count // SHOWN, 1)))
        return [scene for scene in read if isinstance(scene, Scene)][:SHOWN]

    scenes = on_main(sampled)
    if not scenes:
        return {}
    views = torch.from_numpy(np.stack([scene.views for scene in scenes]))
    tokens = torch.unflatten(encode(views.flatten(0, 1)), 0, views.shape[:2])
    return metric.pictures(fitted, tokens, scenes)
