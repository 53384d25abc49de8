"""The evaluations of a run: a quick one while it trains, a complete one at its end.

What is measured is up to the families of metrics (`metric.base.Metric`), which name the features that they read, or
bring scenes of their own whose patch tokens they judge. Those that need labels compare the test images with the
training images, of the network and of its baselines; without labels or test images pictures and the other families
remain.

Ranks evaluate together: each reads its part of the images. A family computes its numbers from the features of all on
the first rank, which sends them to the others, or on all ranks, which share the work.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import TypeVar, cast

import numpy as np
import torch
from rich.table import Table
from torch import Tensor, nn

from dinoswap.config.sections import EvaluationSettings
from dinoswap.data.images import Images
from dinoswap.dense.base import Scenes
from dinoswap.distributed import any_rank, on_main, world_size
from dinoswap.distributed.preemption import Preemption, StopAsked
from dinoswap.evaluation import visualise
from dinoswap.evaluation.baselines import BASELINES, DENSE_BASELINES
from dinoswap.evaluation.dense import Encoder, SceneReader, measure_dense
from dinoswap.evaluation.features import EvalImages, FrozenBackbone, Reader, evaluating, extract
from dinoswap.evaluation.measure import RANDOM, TRAINED, baseline_features, measure, named
from dinoswap.evaluation.summary import Columns, Results, at_size, cell, columns_of, filled, percentages, summary_table
from dinoswap.evaluation.teacher_tokens import compare_with_teachers
from dinoswap.files.pictures import Picture, save_png
from dinoswap.metric.base import DenseMetric, ImageMetric, Metric
from dinoswap.metric.diagnostics import target_diagnostics, verdict
from dinoswap.model import SelfDistillation
from dinoswap.nn.vit import VisionTransformer
from dinoswap.values import Batch, Hyper

T = TypeVar("T")
SHOWN = 8
"""Number of images in a picture of patch tokens."""
KEEP_BYTES = 2**29
"""Up to this many bytes, of train and of test each, the quick evaluation keeps its crops: decoding them each time would
take longer than all the rest. 2,000 crops of 224 pixels are 0.3 GB."""


@dataclass
class Evaluation:
    """The result of an evaluation: metrics by their name in metrics.jsonl and run.json, pictures by name, a warning
    where something is wrong, and the scores by row of the table."""

    metrics: dict[str, float] = field(default_factory=dict)
    pictures: dict[str, Picture] = field(default_factory=dict)
    warning: str | None = None
    corrupt: dict[str, str] = field(default_factory=dict)  # images that could not be decoded -> why
    results: Results = field(default_factory=dict)
    columns: Columns = field(default_factory=dict)  # of the table
    finite: bool = True  # whether all features of the network are
    examples: Tensor = field(default_factory=lambda: torch.empty(0, 3, 0, 0, dtype=torch.uint8))  # of the pictures

    def warn(self, *sentences: str | None) -> None:
        """Appends sentences to the warning; None is skipped."""
        self.warning = "; ".join(sentence for sentence in (self.warning, *sentences) if sentence) or None

    def save_pictures(self, folder: Path) -> None:
        """Writes every picture as `<name>.png` into `folder`, which is made."""
        folder.mkdir(parents=True, exist_ok=True)
        for name, picture in self.pictures.items():
            save_png(folder / f"{name}.png", picture)

    @property
    def headline(self) -> str:
        """The first number of the network in the table, with its heading, as in "k-NN CLS 61.2"; "" without one."""
        for heading, column in self.columns.items():
            value = cell(self.metrics, [f"eval/{name}" for name in column.names])
            if value is not None:
                return f"{heading} {column.text(value)}"
        return ""

    def table(self) -> Table:
        """Returns the table of results."""
        return summary_table(self.results, self.columns)


@dataclass(frozen=True)
class _Split:
    """Training and test images. Without test images `test` is `train`, as diagnostics and pictures need some."""

    train: EvalImages
    test: EvalImages

    @property
    def labelled(self) -> bool:
        """Whether training and test images are different ones and both have labels."""
        return self.test is not self.train and self.train.labelled and self.test.labelled

    @property
    def corrupt(self) -> int:
        """Number of images that could not be decoded so far."""
        return len(self.train.corrupt) + (len(self.test.corrupt) if self.test is not self.train else 0)

    def reasons(self) -> dict[str, str]:
        """Returns why images could not be decoded, by image name."""
        parts = (self.train, self.test)
        return {part.images.name(row): reason for part in parts for row, reason in part.corrupt.items()}


class Evaluator:
    """Evaluates backbones on one data set. When `preemption` notes a signal, an evaluation raises StopAsked on all
    ranks."""

    def __init__(
        self,
        settings: EvaluationSettings,
        metrics: Mapping[str, Metric],
        train: Images,
        test: Images | None,
        *,
        size: int,
        mean: Tensor,
        std: Tensor,
        device: torch.device,
        autocast: torch.dtype | None,
        workers: int = 0,
    ) -> None:
        """`metrics` are the families that are measured. `size` is the side of a crop in pixels, used where the settings
        have none. `mean` and `std` [3] are those of training. `workers` is the number of processes that decode
        images."""
        self.settings, self.metrics = settings, metrics
        self.train, self.test = train, test
        self.size = settings.size or size
        self.mean, self.std = mean, std
        self.device, self.autocast = device, autocast
        self.workers = workers
        self.preemption = Preemption()  # a run sets its own while it trains
        self._scenes: dict[tuple[DenseMetric, int], tuple[SceneReader | None, SceneReader] | None] = {}

    def prepare(self, patch: int) -> None:
        """Lists the scenes of the families that bring some, so that what is wrong with them is told before anything is
        computed. Raises ValueError for what a family refuses."""
        for metric in self.metrics.values():
            if isinstance(metric, DenseMetric):
                for size in (self.size, *self.settings.more_sizes):
                    self._scene_readers(metric, size, patch)

    @property
    def scene_counts(self) -> dict[str, list[int]]:
        """Returns the numbers of training and test scenes of the families that were prepared, by class and size. Ranks
        evaluate together only where these are the same on all of them."""
        return {
            f"the scenes of {type(metric).__name__} at {size} pixels": [
                len(reader.scenes) for reader in readers or () if reader is not None
            ]
            for (metric, size), readers in self._scenes.items()
        }

    def in_loop(self, model: SelfDistillation, hyper: Hyper, probe: Batch) -> Evaluation:
        """Returns the evaluation of the teacher on at most `in_loop_images`: the families that belong to the loop,
        diagnostics of targets, pictures. Raises StopAsked after a signal.

        `probe` is a uint8 batch, the same in every evaluation of a run.
        """
        metrics = [metric for metric in self.metrics.values() if metric.in_loop]
        evaluation = self._measured(metrics, self._quick, {TRAINED: backbone_of(model.teacher)}, complete=False)
        self.diagnose_objectives(evaluation, model, hyper, probe)
        return evaluation

    def diagnose_objectives(self, evaluation: Evaluation, model: SelfDistillation, hyper: Hyper, probe: Batch) -> None:
        """Adds to `evaluation` the diagnostics of the teacher's targets for `probe`, the picture of its crops, and the
        comparison of the student's tokens of `evaluation.examples` with those of frozen teachers."""
        batch = probe.to(self.device).normalised(self.mean, self.std)
        with evaluating(model, self.device, self.autocast):
            targets = model.teacher_targets(batch, hyper)
        for name, rows in targets.items():
            values = target_diagnostics(rows)
            evaluation.metrics |= {f"eval/{name}/{key}": value for key, value in values.items()}
            evaluation.warn(verdict(values, f"{name}'s teacher targets"))
        patch = backbone_of(model.student).patch_size
        grid = (probe.patch_crops.shape[-2] // patch, probe.patch_crops.shape[-1] // patch)
        evaluation.pictures["crops"] = visualise.crops_figure(probe, grid, self.mean, self.std)
        with evaluating(model, self.device, self.autocast):
            metrics, pictures = compare_with_teachers(model, evaluation.examples, self.mean, self.std)
        evaluation.metrics |= metrics
        evaluation.pictures |= pictures

    def final(self, backbone: nn.Module, random_init: nn.Module | None) -> Evaluation:
        """Returns the complete evaluation: every family, of the backbone, and where it compares labelled images and the
        settings ask for baselines also of `random_init` and of features that need no network; pictures. Raises
        StopAsked after a signal."""
        metrics, split = [*self.metrics.values()], self._split(self.settings.images)
        compared = {} if random_init is None or not self.settings.baselines else {RANDOM: random_init}
        networks = {TRAINED: backbone, **compared}
        evaluation = self._measured(metrics, split, networks, complete=True)
        if split.corrupt:
            evaluation.warn(f"{split.corrupt} images that cannot be decoded were left out")
        if accuracies := percentages(filled(evaluation.results, evaluation.columns)):
            evaluation.pictures["accuracy"] = visualise.accuracy_bars(evaluation.results, accuracies)
        elif evaluation.finite and any(metric.supervised for metric in metrics):
            evaluation.warn("no accuracies: the data set has no labelled test images of two classes or more")
        return evaluation

    @cached_property
    def _quick(self) -> _Split:
        """Returns the images of evaluations while training, whose crops are kept in memory up to KEEP_BYTES."""
        return self._split(self.settings.in_loop_images, KEEP_BYTES)

    def _split(self, limit: int, keep_bytes: int = 0) -> _Split:
        """Returns at most `limit` training and test images, of whose crops `keep_bytes` are kept in memory. Where there
        are no test images, training images take their place."""

        def images(part: Images) -> EvalImages:
            settings = self.settings
            return EvalImages(part, self.size, settings.resize, limit, settings.batch_size, keep_bytes, self.workers)

        train = images(self.train)
        return _Split(train, train if self.test is None else images(self.test))

    def _measured(
        self, metrics: Sequence[Metric], split: _Split, networks: Mapping[str, nn.Module], *, complete: bool
    ) -> Evaluation:
        """Returns what these families measure, and the picture of patch tokens. The first of `networks` is the one that
        is evaluated; all others, and the baselines, get the families that compare. Further sizes, and the baselines if
        the settings ask for them, are part of a `complete` evaluation."""
        with_baselines = complete and self.settings.baselines
        of_images = [metric for metric in metrics if isinstance(metric, ImageMetric)]
        supervised = any(metric.supervised for metric in of_images) and split.labelled
        kinds = tuple(dict.fromkeys(kind for metric in of_images for kind in metric.reads)) or ("cls",)
        frozen = {row: self._frozen(network, kinds) for row, network in networks.items()}
        readers: dict[str, Reader] = {row: network.features for row, network in frozen.items() if row == TRAINED}
        if supervised:
            readers |= {row: network.features for row, network in frozen.items()}
            readers |= {
                row: partial(baseline_features, read, self.device)
                for row, read in (BASELINES if with_baselines else {}).items()
            }
        test = extract(split.test, readers, self.preemption)
        finite = not any_rank(not all(bool(part.isfinite().all()) for part in test.features[TRAINED].values()))[0]
        train = extract(split.train, readers, self.preemption) if supervised and finite else None
        if train is not None and len(torch.unique(train.labels)) < 2:
            train = None
        more_sizes = self.settings.more_sizes if complete else ()
        evaluation = Evaluation(corrupt=split.reasons(), finite=finite, columns=columns_of(metrics, more_sizes))
        rows, warnings = measure(of_images, train, test, self.device, self._on_ranks)
        evaluation.warn(*warnings)
        dense = [metric for metric in metrics if isinstance(metric, DenseMetric)] if finite else []
        measured = [
            self._add_dense(metric, size, evaluation, frozen, rows, with_baselines)
            for metric in dense
            for size in (self.size, *more_sizes)
        ]
        evaluation.metrics = named(rows)
        if train is not None or any(measured):
            evaluation.results = rows
        self._add_examples(evaluation, frozen[TRAINED], split.test, test.rows, more_sizes)
        return evaluation

    def _add_dense(
        self,
        metric: DenseMetric,
        size: int,
        evaluation: Evaluation,
        frozen: Mapping[str, FrozenBackbone],
        rows: dict[str, dict[str, float]],
        with_baselines: bool,
    ) -> bool:
        """Adds to `rows` what a family measures on its scenes at one size, and to `evaluation` its pictures and, where
        it is the first size, its verdict; returns whether there are scenes."""
        patch, further = cast(VisionTransformer, frozen[TRAINED].backbone).patch_size, size != self.size
        readers = self._scene_readers(metric, size, patch)
        if readers is None:
            return False
        encoders: dict[str, Encoder] = {row: network.patch_map for row, network in frozen.items()}
        if with_baselines:
            encoders |= {row: _with_patch(read, patch) for row, read in DENSE_BASELINES.items()}
        result = measure_dense(metric, readers, encoders, self._on_main, self.preemption)
        for row, values in result.rows.items():
            named_by_size = {at_size(name, size) if further else name: value for name, value in values.items()}
            rows.setdefault(row, {}).update(named_by_size)
        evaluation.pictures |= {f"{name}_{size}" if further else name: shown for name, shown in result.pictures.items()}
        evaluation.corrupt |= result.corrupt
        evaluation.warn(None if further else metric.verdict(result.rows[TRAINED]))
        return True

    def _scene_readers(
        self, metric: DenseMetric, size: int, patch: int
    ) -> tuple[SceneReader | None, SceneReader] | None:
        """Returns the readers of a family's training and test scenes at one size, the same in all evaluations, or None
        where these images allow no scenes. Raises ValueError for scenes whose views are the same at a further size."""
        if (metric, size) not in self._scenes:
            parts = metric.scenes(self.train, self.test, size, patch)
            keep = KEEP_BYTES if metric.in_loop and size == self.size else 0

            def reader(scenes: Scenes) -> SceneReader:
                return SceneReader(scenes, self.settings.batch_size, keep, self.workers)

            readers = None
            if parts is not None:
                readers = (None if parts.train is None else reader(parts.train), reader(parts.test))
                _require_of_its_size(parts.test, size, self._scenes.get((metric, self.size)))
            self._scenes[metric, size] = readers
        return self._scenes[metric, size]

    def _frozen(self, backbone: nn.Module, kinds: Sequence[str]) -> FrozenBackbone:
        """Returns the frozen backbone that computes these kinds of features."""
        return FrozenBackbone(backbone, self.mean, self.std, self.device, self.autocast, kinds)

    def _add_examples(
        self,
        evaluation: Evaluation,
        backbone: FrozenBackbone,
        images: EvalImages,
        rows: Sequence[int],
        more_sizes: Sequence[int],
    ) -> None:
        """Adds a few images to `evaluation`, spread evenly over `rows`, and pictures of their patch tokens: principal
        components, at twice the resolution and at further sizes too, and similarities."""
        shown = rows[:: max(len(rows) // SHOWN, 1)][:SHOWN]
        sizes = {"pca": self.size, "pca_2x": 2 * self.size, **{f"pca_{size}": size for size in more_sizes}}
        by_size = self._on_main(lambda: _stacked(images, shown, list(sizes.values())))
        tokens = [backbone.patch_map(crops) for crops in by_size]
        evaluation.examples = by_size[0]
        if all(part.isfinite().all() for part in tokens):
            for name, crops, part in zip(sizes, by_size, tokens, strict=True):
                evaluation.pictures[name] = visualise.pca_figure(crops, part)
            evaluation.pictures["similarity"] = visualise.similarity_figure(by_size[0], tokens[0])

    def _on_ranks(self, metric: ImageMetric, work: Callable[[], T]) -> T:
        """Calls `work` of a family on every rank where they share it, and otherwise as `_on_main` does. Ranks that
        share it leave before they begin after a signal to one of them."""
        if world_size() == 1 or not metric.shares_work(self.device):
            return self._on_main(work)
        if any_rank(self.preemption.requested is not None)[0]:
            raise StopAsked
        return work()

    def _on_main(self, work: Callable[[], T]) -> T:
        """Calls `work`, which must have no side effects, on the first rank and returns its result on all ranks. A
        signal to the first rank interrupts it."""

        def interruptible() -> T:
            with self.preemption.at_once():
                return work()

        return on_main(interruptible)


def _stacked(images: EvalImages, rows: Sequence[int], sizes: Sequence[int]) -> list[Tensor]:
    """Returns clean crops of these rows at several sizes S, uint8 [n, 3, S, S] each."""
    by_size = zip(*(images.crops(row, sizes) for row in rows), strict=True)
    return [torch.from_numpy(np.stack(crops)) for crops in by_size]


def _require_of_its_size(scenes: Scenes, size: int, first: tuple[SceneReader | None, SceneReader] | None) -> None:
    """Raises ValueError for scenes at a further size whose views have as many pixels as those at the first size."""
    if first is not None and first[1].scenes.shape == scenes.shape:
        height, width = scenes.shape[1:]
        raise ValueError(
            f"evaluation.more_sizes: has {size}, but these scenes are {width} x {height} pixels at each size; where "
            "evaluation.dense.size says so, null lets them have the sizes of the evaluation"
        )


def _with_patch(read: Callable[[Tensor, int], Tensor], patch: int) -> Encoder:
    """Returns the encoder that calls `read` with this patch size."""
    return lambda images: read(images, patch)


def backbone_of(networks: nn.ModuleDict) -> VisionTransformer:
    """Returns the backbone of a student or teacher."""
    return cast(VisionTransformer, networks["backbone"])
