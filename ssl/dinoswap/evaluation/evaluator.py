"""The evaluations of a run: a quick one while it trains, the whole one at its end.

Judged are frozen features of a data set's labelled test images with its training images as memory. Without labels or
test images there is no accuracy; pictures and diagnostics need neither.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import cast

import torch
from rich.table import Table
from torch import Tensor, nn

from dinoswap.data.images import Images
from dinoswap.evaluation import visualise
from dinoswap.evaluation.baselines import evaluate_baselines, evaluate_network
from dinoswap.evaluation.diagnostics import feature_diagnostics, target_diagnostics, verdict
from dinoswap.evaluation.features import EvalImages, eval_images, evaluating, extract, patch_tokens
from dinoswap.evaluation.knn import PRIMARY_K, knn_accuracy
from dinoswap.evaluation.summary import Results, summary_table
from dinoswap.model import SelfDistillation
from dinoswap.nn.vit import VisionTransformer
from dinoswap.values import Batch, Hyper

TRAINED, RANDOM = "trained", "random init"
SHOWN = 8
"""Images in a picture of patch tokens."""
SHORT_NAMES = {"cls": "", "patch_mean": "patch_"}
"""Kind of features -> what stands for it in a metric's name: eval/knn_top1, eval/knn_patch_top1."""


@dataclass(frozen=True, kw_only=True)
class EvaluationSettings:
    """`size` of the crops in pixels, None for that of the global crops; `resize` as in `features.eval_images`.

    `in_loop_images` bounds the images of the quick evaluation, of train and of test each, `images` those of the whole.
    """

    size: int | None = None
    resize: int | None = None
    in_loop_images: int = 2000
    images: int = 20000
    batch_size: int = 256
    linear_probe: bool = True

    def __post_init__(self) -> None:
        for name in ("size", "resize", "in_loop_images", "images", "batch_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name}={value}: must be at least 1")


@dataclass
class Evaluation:
    """Metrics by the name that metrics.jsonl and run.json give them, pictures by name, what is going wrong, and the
    accuracies as the table has them."""

    metrics: dict[str, float] = field(default_factory=dict)
    pictures: dict[str, visualise.Picture] = field(default_factory=dict)
    warning: str | None = None
    results: Results = field(default_factory=dict)

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
    labels: tuple[Tensor, Tensor] | None  # of train and test; None where accuracy has no meaning

    @property
    def corrupt(self) -> int:
        return len(self.train.corrupt) + (len(self.test.corrupt) if self.test is not self.train else 0)


class Evaluator:
    """Evaluates backbones on one data set."""

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
    ) -> None:
        """`size` in pixels is used where the settings have none; `mean` and `std` [3] are those of the training."""
        self.settings = settings
        self.train, self.test = train, test
        self.size = settings.size or size
        self.mean, self.std = mean, std
        self.device, self.autocast = device, autocast

    def in_loop(self, model: SelfDistillation, hyper: Hyper, probe: Batch) -> Evaluation:
        """The teacher on at most `in_loop_images`: k-NN, diagnostics of features and targets, pictures.

        `probe` is a uint8 batch, the same in every evaluation of a run.
        """
        found, split, backbone = Evaluation(), self._quick, backbone_of(model.teacher)
        features = self._diagnosed(found, backbone, split)
        if split.labels and usable(features):
            memory = self._features(backbone, split.train)
            k = min(PRIMARY_K, len(split.labels[0]))
            for kind, short in SHORT_NAMES.items():
                accuracy = knn_accuracy(memory[kind], split.labels[0], features[kind], split.labels[1], ks=(k,))
                found.metrics[f"eval/knn_{short}top1"] = accuracy[f"top1_k{k}"]
        self.diagnose_targets(found, model, hyper, probe)
        return found

    def diagnose_targets(self, found: Evaluation, model: SelfDistillation, hyper: Hyper, probe: Batch) -> None:
        """Adds diagnostics of the targets that the teacher gives for `probe`, and the picture of its crops."""
        batch = probe.to(self.device).normalised(self.mean, self.std)
        with evaluating(model, self.device, self.autocast):
            targets = model.teacher_targets(batch, hyper)
        for name, rows in targets.items():
            values = target_diagnostics(rows)
            found.metrics |= {f"eval/{name}/{key}": value for key, value in values.items()}
            found.warn(verdict(values, f"{name}'s teacher targets"))
        crops = probe.extra_crops if len(probe.extra_crops) else probe.global_crops  # those that carry the masks
        patch = backbone_of(model.student).patch_size
        grid = (crops.shape[-2] // patch, crops.shape[-1] // patch)
        found.pictures["crops"] = visualise.crops_figure(probe, grid, self.mean, self.std)

    def final(self, backbone: nn.Module, random_init: nn.Module | None) -> Evaluation:
        """k-NN and linear probe of the network, of `random_init`, and of features that need no network; diagnostics
        and pictures."""
        found, split = Evaluation(), self._split(self.settings.images)
        if split.corrupt:
            found.warn(f"{split.corrupt} images that cannot be decoded were left out")
        features = self._diagnosed(found, backbone, split)
        if split.labels is None:
            found.warn("no accuracies: the data set has no labelled test images of two classes or more")
        elif usable(features):
            linear = self.settings.linear_probe
            results = {TRAINED: self._accuracies(self._features(backbone, split.train), features, split.labels)}
            if random_init is not None:
                parts = [self._features(random_init, part) for part in (split.train, split.test)]
                results[RANDOM] = self._accuracies(parts[0], parts[1], split.labels)
            train, test = split.labels
            results |= evaluate_baselines(split.train.pixels, train, split.test.pixels, test, linear)
            found.results = results
            found.metrics |= flat(results)
            found.pictures["accuracy"] = visualise.accuracy_bars(results)
        return found

    @cached_property
    def _quick(self) -> _Split:
        return self._split(self.settings.in_loop_images)

    def _split(self, limit: int) -> _Split:
        def images(part: Images) -> EvalImages:
            return eval_images(part, self.size, self.settings.resize, limit)

        train = images(self.train)
        if self.test is None:
            return _Split(train, train, None)
        test = images(self.test)
        if train.labels is None or test.labels is None or len(torch.unique(train.labels)) < 2:
            return _Split(train, test, None)
        return _Split(train, test, (train.labels, test.labels))

    def _features(self, backbone: nn.Module, part: EvalImages) -> dict[str, Tensor]:
        size = self.settings.batch_size
        return extract(backbone, part.pixels, self.mean, self.std, size, self.device, self.autocast)

    def _diagnosed(self, found: Evaluation, backbone: nn.Module, split: _Split) -> dict[str, Tensor]:
        """Features of the test images; adds their diagnostics and the picture of patch tokens."""
        pixels = split.test.pixels
        features = self._features(backbone, split.test)
        if len(pixels) > 1:
            values = feature_diagnostics(features["cls"])
            found.metrics |= {f"eval/{name}": value for name, value in values.items()}
            found.warn(verdict(values))
        shown = pixels[:: max(len(pixels) // SHOWN, 1)][:SHOWN]
        tokens = patch_tokens(backbone, shown, self.mean, self.std, self.device, self.autocast)
        side = self.size // cast(VisionTransformer, backbone).patch_size
        if tokens.isfinite().all():
            found.pictures["pca"] = visualise.pca_figure(shown, tokens, (side, side))
        return features

    def _accuracies(
        self, memory: Mapping[str, Tensor], held_out: Mapping[str, Tensor], labels: tuple[Tensor, Tensor]
    ) -> dict[str, float]:
        return evaluate_network(memory, labels[0], held_out, labels[1], self.settings.linear_probe)


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
