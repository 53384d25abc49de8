"""The evaluations of a run: a quick one while it trains, a complete one at its end.

Frozen features of the labelled test images are classified, with those of the training images as memory. Without labels
or test images there is no accuracy; pictures and diagnostics need neither.

Ranks evaluate together: each reads its part of the images, and the first rank computes the results from the features of
all and sends them to the others.
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
"""Number of images in a picture of patch tokens."""
KEEP_BYTES = 2**29
"""Up to this many bytes, of train and of test each, the quick evaluation keeps its crops: decoding them each time would
take longer than all the rest. 2,000 crops of 224 pixels are 0.3 GB."""
SHORT_NAMES = {"cls": "", "patch_mean": "patch_"}
"""Kind of features -> its short name in a metric, as in eval/knn_top1 and eval/knn_patch_top1."""


@dataclass
class Evaluation:
    """The result of an evaluation: metrics by their name in metrics.jsonl and run.json, pictures by name, a warning
    where something is wrong, and the accuracies by row of the table."""

    metrics: dict[str, float] = field(default_factory=dict)
    pictures: dict[str, visualise.Picture] = field(default_factory=dict)
    warning: str | None = None
    corrupt: dict[str, str] = field(default_factory=dict)  # images that could not be decoded -> why
    results: Results = field(default_factory=dict)
    examples: Tensor = field(default_factory=lambda: torch.empty(0, 3, 0, 0, dtype=torch.uint8))  # of the pictures

    def warn(self, *sentences: str | None) -> None:
        """Appends sentences to the warning; None is skipped."""
        self.warning = "; ".join(s for s in (self.warning, *sentences) if s) or None

    def save_pictures(self, folder: Path) -> None:
        """Writes every picture as `<name>.png` into `folder`, which is made."""
        folder.mkdir(parents=True, exist_ok=True)
        for name, picture in self.pictures.items():
            visualise.save_png(folder / f"{name}.png", picture)

    def table(self) -> Table:
        """Returns the table of accuracies."""
        return summary_table(self.results)


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
        """`size` is the side of a crop in pixels, used where the settings have none. `mean` and `std` [3] are those of
        training. `workers` is the number of processes that decode images."""
        self.settings = settings
        self.train, self.test = train, test
        self.size = settings.size or size
        self.mean, self.std = mean, std
        self.device, self.autocast = device, autocast
        self.workers = workers
        self.preemption = Preemption()  # a run sets its own while it trains

    def in_loop(self, model: SelfDistillation, hyper: Hyper, probe: Batch) -> Evaluation:
        """Returns the evaluation of the teacher on at most `in_loop_images`: k-NN, diagnostics of features and targets,
        pictures. Raises StopAsked after a signal.

        `probe` is a uint8 batch, the same in every evaluation of a run.
        """
        evaluation, backbone = Evaluation(), self._frozen(backbone_of(model.teacher))
        train, test = self._read(self._quick, {TRAINED: backbone.features})
        evaluation.corrupt = self._quick.reasons()
        self._diagnose(evaluation, backbone, self._quick.test, test)
        if train is not None:
            evaluation.metrics |= self._on_main(lambda: neighbours_only(train, test))
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
        """Returns the complete evaluation: k-NN and linear probe of the backbone, of `random_init`, and of features
        that need no network; diagnostics and pictures. Raises StopAsked after a signal."""
        evaluation, split, trained = Evaluation(), self._split(self.settings.images), self._frozen(backbone)
        readers: dict[str, Reader] = {TRAINED: trained.features}
        if split.labelled and random_init is not None:
            readers[RANDOM] = self._frozen(random_init).features
        if split.labelled:
            readers[BASELINES] = baseline_features
        train, test = self._read(split, readers)
        evaluation.corrupt = split.reasons()
        if split.corrupt:
            evaluation.warn(f"{split.corrupt} images that cannot be decoded were left out")
        self._diagnose(evaluation, trained, split.test, test)
        if train is not None:
            evaluation.results = self._on_main(lambda: self._results(train, test))
            evaluation.metrics |= flat(evaluation.results)
            evaluation.pictures["accuracy"] = visualise.accuracy_bars(evaluation.results)
        elif usable(test.features[TRAINED]):
            evaluation.warn("no accuracies: the data set has no labelled test images of two classes or more")
        return evaluation

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
        """Returns the features of the training and of the test images, each decoded once. The first is None where no
        accuracy can be computed: with one class, no labels, no test images, or features that are not finite."""
        test = extract(split.test, readers, self.preemption)
        if not split.labelled or not usable(test.features[TRAINED]):
            return None, test
        train = extract(split.train, readers, self.preemption)
        return (train if len(torch.unique(train.labels)) > 1 else None), test

    def _diagnose(self, evaluation: Evaluation, backbone: FrozenBackbone, images: EvalImages, test: Extracted) -> None:
        """Adds to `evaluation` the diagnostics of the test images' features and the picture of their patch tokens."""
        if len(test.rows) > 1:
            values = self._on_main(lambda: feature_diagnostics(test.features[TRAINED]["cls"]))
            evaluation.metrics |= {f"eval/{name}": value for name, value in values.items()}
            evaluation.warn(verdict(values))
        rows = test.rows[:: max(len(test.rows) // SHOWN, 1)][:SHOWN]
        evaluation.examples = self._on_main(lambda: torch.from_numpy(np.stack([images.crop(row) for row in rows])))
        tokens = backbone.patch_tokens(evaluation.examples)
        side = self.size // cast(VisionTransformer, backbone.backbone).patch_size
        if tokens.isfinite().all():
            evaluation.pictures["pca"] = visualise.pca_figure(evaluation.examples, tokens, (side, side))

    def _on_main(self, work: Callable[[], T]) -> T:
        """Calls `work`, which must have no side effects, on the first rank and returns its result on all ranks. A
        signal to the first rank interrupts it."""

        def interruptible() -> T:
            with self.preemption.at_once():
                return work()

        return on_main(interruptible)

    def _results(self, train: Extracted, test: Extracted) -> Results:
        """Returns the accuracies by row of the table, those of the two baselines last."""
        results: dict[str, dict[str, float]] = {}
        for reader, memory in train.features.items():
            split = memory, train.labels, test.features[reader], test.labels
            if reader == BASELINES:
                results |= evaluate_baselines(*split, self.settings.linear_probe)
            else:
                results[reader] = evaluate_network(*split, self.settings.linear_probe)
        return results


def neighbours_only(train: Extracted, test: Extracted) -> dict[str, float]:
    """Returns `eval/knn_top1` and `eval/knn_patch_top1` of the trained network, in per cent."""
    k, metrics = min(PRIMARY_K, len(train.labels)), {}
    for kind, short in SHORT_NAMES.items():
        memory, held_out = (part.features[TRAINED][kind] for part in (train, test))
        accuracy = knn_accuracy(memory, train.labels, held_out, test.labels, ks=(k,))
        metrics[f"eval/knn_{short}top1"] = accuracy[f"top1_k{k}"]
    return metrics


def backbone_of(networks: nn.ModuleDict) -> VisionTransformer:
    """Returns the backbone of a student or teacher."""
    return cast(VisionTransformer, networks["backbone"])


def usable(features: Mapping[str, Tensor]) -> bool:
    """Whether all features are finite, so that a classifier can be fitted. Where not, the diagnostics warn of it."""
    return all(bool(values.isfinite().all()) for values in features.values())


def flat(results: Results) -> dict[str, float]:
    """Returns the metrics of all results: `eval/knn_top1`, `eval/knn_patch_top1`, `eval/linear_top1`, ... of the
    trained network, and `baseline/<row>/...` of the others."""
    metrics = {}
    for row, scores in results.items():
        prefix = "eval" if row == TRAINED else f"baseline/{row.replace(' ', '_')}"
        for name, score in scores.items():
            kind, _, metric = name.rpartition("/")
            family, _, rest = metric.partition("_")
            if rest in ("top1", "top5", "c"):
                metrics[f"{prefix}/{family}_{SHORT_NAMES.get(kind, '')}{rest}"] = score
    return metrics
