"""The evaluations of a run: a quick one while it trains, the whole one at its end.

Judged are frozen features of a data set's labelled test images with its training images as memory. Without labels or
test images there is no accuracy; pictures and diagnostics need neither.

Ranks evaluate together: each reads its share of the images, and what is computed from the features of all is computed
by the first one, for all.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TypeVar, cast

import numpy as np
import torch
from rich.table import Table
from torch import Tensor, nn

from dinoswap.config.sections import EvaluationSettings
from dinoswap.data.images import Images
from dinoswap.distributed import on_main
from dinoswap.distributed.preemption import Preemption
from dinoswap.evaluation import visualise
from dinoswap.evaluation.baselines import baseline_features, evaluate_baselines, evaluate_network
from dinoswap.evaluation.diagnostics import feature_diagnostics, target_diagnostics, verdict
from dinoswap.evaluation.features import EvalImages, Extracted, FrozenBackbone, Reader, evaluating, extract
from dinoswap.evaluation.knn import PRIMARY_K, knn_accuracy
from dinoswap.evaluation.summary import Results, summary_table
from dinoswap.evaluation.teacher_tokens import compare_with_teachers
from dinoswap.model import SelfDistillation
from dinoswap.nn.vit import VisionTransformer
from dinoswap.values import Batch, Hyper

T = TypeVar("T")
TRAINED, RANDOM, BASELINES = "trained", "random init", "baselines"
SHOWN = 8
"""Images in a picture of patch tokens."""
KEEP_BYTES = 2**29
"""Up to this size the quick evaluation keeps its crops, of train and of test each: decoding them at every evaluation
would take longer than all else in it. 2,000 crops of 224 pixels are 0.3 GB."""
SHORT_NAMES = {"cls": "", "patch_mean": "patch_"}
"""Kind of features -> what stands for it in a metric's name: eval/knn_top1, eval/knn_patch_top1."""


@dataclass
class Evaluation:
    """Metrics by the name that metrics.jsonl and run.json give them, pictures by name, what is going wrong, and the
    accuracies as the table has them."""

    metrics: dict[str, float] = field(default_factory=dict)
    pictures: dict[str, visualise.Picture] = field(default_factory=dict)
    warning: str | None = None
    corrupt: dict[str, str] = field(default_factory=dict)  # images that could not be decoded -> why
    results: Results = field(default_factory=dict)
    examples: Tensor = field(default_factory=lambda: torch.empty(0, 3, 0, 0, dtype=torch.uint8))  # of the pictures

    def warn(self, *sentences: str | None) -> None:
        self.warning = "; ".join(s for s in (self.warning, *sentences) if s) or None

    def save_pictures(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        for name, picture in self.pictures.items():
            visualise.save_png(folder / f"{name}.png", picture)

    def table(self) -> Table:
        return summary_table(self.results)


@dataclass(frozen=True)
class _Split:
    """`test` stands for the training images where there are no others: diagnostics and pictures need some."""

    train: EvalImages
    test: EvalImages

    @property
    def labelled(self) -> bool:
        return self.test is not self.train and self.train.labelled and self.test.labelled

    @property
    def corrupt(self) -> int:
        """Images that were met so far and could not be decoded."""
        return len(self.train.corrupt) + (len(self.test.corrupt) if self.test is not self.train else 0)

    def reasons(self) -> dict[str, str]:
        """Why not, by the names of those images."""
        parts = (self.train, self.test)
        return {part.images.name(row): reason for part in parts for row, reason in part.corrupt.items()}


class Evaluator:
    """Evaluates backbones on one data set. Where `preemption` is set and notes a signal, an evaluation is left by
    StopAsked, on all ranks."""

    def __init__(
        self,
        settings: EvaluationSettings,
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
        """`size` in pixels is used where the settings have none; `mean` and `std` [3] are those of the training.
        `workers` processes decode."""
        self.settings = settings
        self.train, self.test = train, test
        self.size = settings.size or size
        self.mean, self.std = mean, std
        self.device, self.autocast = device, autocast
        self.workers = workers
        self.preemption = Preemption()  # that of a run, while it trains

    def in_loop(self, model: SelfDistillation, hyper: Hyper, probe: Batch) -> Evaluation:
        """The teacher on at most `in_loop_images`: k-NN, diagnostics of features and targets, pictures.

        `probe` is a uint8 batch, the same in every evaluation of a run.
        """
        found, backbone = Evaluation(), self._frozen(backbone_of(model.teacher))
        train, test = self._read(self._quick, {TRAINED: backbone.features})
        found.corrupt = self._quick.reasons()
        self._diagnose(found, backbone, self._quick.test, test)
        if train is not None:
            found.metrics |= self._by_one(lambda: neighbours_only(train, test))
        self.diagnose_objectives(found, model, hyper, probe)
        return found

    def diagnose_objectives(self, found: Evaluation, model: SelfDistillation, hyper: Hyper, probe: Batch) -> None:
        """Adds diagnostics of the targets that the teacher gives for `probe`, the picture of its crops, and how the
        student's tokens of `found.examples` compare with those of frozen teachers."""
        batch = probe.to(self.device).normalised(self.mean, self.std)
        with evaluating(model, self.device, self.autocast):
            targets = model.teacher_targets(batch, hyper)
        for name, rows in targets.items():
            values = target_diagnostics(rows)
            found.metrics |= {f"eval/{name}/{key}": value for key, value in values.items()}
            found.warn(verdict(values, f"{name}'s teacher targets"))
        patch = backbone_of(model.student).patch_size
        grid = (probe.patch_crops.shape[-2] // patch, probe.patch_crops.shape[-1] // patch)
        found.pictures["crops"] = visualise.crops_figure(probe, grid, self.mean, self.std)
        with evaluating(model, self.device, self.autocast):
            metrics, pictures = compare_with_teachers(model, found.examples, self.mean, self.std)
        found.metrics |= metrics
        found.pictures |= pictures

    def final(self, backbone: nn.Module, random_init: nn.Module | None) -> Evaluation:
        """k-NN and linear probe of the network, of `random_init`, and of features that need no network; diagnostics
        and pictures."""
        found, split, trained = Evaluation(), self._split(self.settings.images), self._frozen(backbone)
        readers: dict[str, Reader] = {TRAINED: trained.features}
        if split.labelled and random_init is not None:
            readers[RANDOM] = self._frozen(random_init).features
        if split.labelled:
            readers[BASELINES] = baseline_features
        train, test = self._read(split, readers)
        found.corrupt = split.reasons()
        if split.corrupt:
            found.warn(f"{split.corrupt} images that cannot be decoded were left out")
        self._diagnose(found, trained, split.test, test)
        if train is not None:
            found.results = self._by_one(lambda: self._results(train, test))
            found.metrics |= flat(found.results)
            found.pictures["accuracy"] = visualise.accuracy_bars(found.results)
        elif usable(test.features[TRAINED]):
            found.warn("no accuracies: the data set has no labelled test images of two classes or more")
        return found

    @cached_property
    def _quick(self) -> _Split:
        return self._split(self.settings.in_loop_images, KEEP_BYTES)

    def _split(self, limit: int, keep_bytes: int = 0) -> _Split:
        def images(part: Images) -> EvalImages:
            settings = self.settings
            return EvalImages(part, self.size, settings.resize, limit, settings.batch_size, keep_bytes, self.workers)

        train = images(self.train)
        return _Split(train, train if self.test is None else images(self.test))

    def _frozen(self, backbone: nn.Module) -> FrozenBackbone:
        return FrozenBackbone(backbone, self.mean, self.std, self.device, self.autocast)

    def _read(self, split: _Split, readers: Mapping[str, Reader]) -> tuple[Extracted | None, Extracted]:
        """Of the training and the test images, each decoded once. None where no accuracy can be had: one class, no
        labels, no test images, or features that are not finite."""
        test = extract(split.test, readers, self.preemption)
        if not split.labelled or not usable(test.features[TRAINED]):
            return None, test
        train = extract(split.train, readers, self.preemption)
        return (train if len(torch.unique(train.labels)) > 1 else None), test

    def _diagnose(self, found: Evaluation, backbone: FrozenBackbone, images: EvalImages, test: Extracted) -> None:
        """Adds diagnostics of the test images' features and the picture of patch tokens."""
        if len(test.rows) > 1:
            values = self._by_one(lambda: feature_diagnostics(test.features[TRAINED]["cls"]))
            found.metrics |= {f"eval/{name}": value for name, value in values.items()}
            found.warn(verdict(values))
        rows = test.rows[:: max(len(test.rows) // SHOWN, 1)][:SHOWN]
        found.examples = self._by_one(lambda: torch.from_numpy(np.stack([images.crop(row) for row in rows])))
        tokens = backbone.patch_tokens(found.examples)
        side = self.size // cast(VisionTransformer, backbone.backbone).patch_size
        if tokens.isfinite().all():
            found.pictures["pca"] = visualise.pca_figure(found.examples, tokens, (side, side))

    def _by_one(self, work: Callable[[], T]) -> T:
        """What `work`, which leaves nothing behind, returns on the first rank. It is broken off by a signal to that
        one."""

        def interruptible() -> T:
            with self.preemption.at_once():
                return work()

        return on_main(interruptible)

    def _results(self, train: Extracted, test: Extracted) -> Results:
        """Accuracies by row of the table, those of the two baselines last."""
        results: dict[str, dict[str, float]] = {}
        for reader, memory in train.features.items():
            split = memory, train.labels, test.features[reader], test.labels
            if reader == BASELINES:
                results |= evaluate_baselines(*split, self.settings.linear_probe)
            else:
                results[reader] = evaluate_network(*split, self.settings.linear_probe)
        return results


def neighbours_only(train: Extracted, test: Extracted) -> dict[str, float]:
    """`eval/knn_top1` and `eval/knn_patch_top1` of the trained network."""
    k, metrics = min(PRIMARY_K, len(train.labels)), {}
    for kind, short in SHORT_NAMES.items():
        memory, held_out = (part.features[TRAINED][kind] for part in (train, test))
        accuracy = knn_accuracy(memory, train.labels, held_out, test.labels, ks=(k,))
        metrics[f"eval/knn_{short}top1"] = accuracy[f"top1_k{k}"]
    return metrics


def backbone_of(networks: nn.ModuleDict) -> VisionTransformer:
    return cast(VisionTransformer, networks["backbone"])


def usable(features: Mapping[str, Tensor]) -> bool:
    """Whether a classifier can be fitted; the diagnostics have said so where not."""
    return all(bool(values.isfinite().all()) for values in features.values())


def flat(results: Results) -> dict[str, float]:
    """`eval/knn_top1`, `eval/knn_patch_top1`, `eval/linear_top1`, ... of the trained network; the same of the others as
    `baseline/<row>/...`."""
    metrics = {}
    for row, scores in results.items():
        prefix = "eval" if row == TRAINED else f"baseline/{row.replace(' ', '_')}"
        for name, score in scores.items():
            kind, _, metric = name.rpartition("/")
            family, _, rest = metric.partition("_")
            if rest in ("top1", "top5", "c"):
                metrics[f"{prefix}/{family}_{SHORT_NAMES.get(kind, '')}{rest}"] = score
    return metrics
