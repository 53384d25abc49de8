"""The evaluations of a run: a quick one while it trains, the whole one at its end.

Judged is the teacher's backbone, as in the official recipe, on the data set's labelled test images with its training
images as memory. Without labels or test images there is no accuracy; the diagnostics need neither.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

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
SHOWN = 8  # images in a picture of patch tokens
SHORT_NAMES = {"cls": "", "patch_mean": "patch_"}


@dataclass(frozen=True, kw_only=True)
class EvaluationSettings:
    """`size` None: the size of the global crops. `in_loop_images` and `images` bound the
    train and the test images of the quick and of the whole evaluation."""

    size: int | None = None
    resize: int | None = None
    in_loop_images: int = 2000
    images: int = 20000
    batch_size: int = 256
    linear_probe: bool = True

    def __post_init__(self) -> None:
        for name in ("in_loop_images", "images", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: must be at least 1")


@dataclass
class Evaluation:
    """Metrics by the name that metrics.jsonl and run.json give them, pictures by name, and what is going wrong."""

    metrics: dict[str, float] = field(default_factory=dict)
    pictures: dict[str, visualise.Picture] = field(default_factory=dict)
    warning: str | None = None
    results: Results = field(default_factory=dict)

    def save_pictures(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        for name, picture in self.pictures.items():
            visualise.save_png(folder / f"{name}.png", picture)

    def table(self) -> Table:
        return summary_table(self.results)


class Evaluator:
    """Evaluates backbones on one data set. `probe` is the uint8 batch that target diagnostics are taken on."""

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
        self.settings = settings
        self.train, self.test = train, test
        self.size = settings.size or size
        self.mean, self.std = mean, std
        self.device, self.autocast = device, autocast

    def _images(self, images: Images, limit: int | None) -> EvalImages:
        return eval_images(images, self.size, self.settings.resize, limit)

    @cached_property
    def _quick(self) -> tuple[EvalImages, EvalImages | None]:
        limit = self.settings.in_loop_images
        return self._images(self.train, limit), None if self.test is None else self._images(self.test, limit)

    def _features(self, backbone: nn.Module, pixels: Tensor) -> dict[str, Tensor]:
        return extract(
            backbone, pixels, self.mean, self.std, self.settings.batch_size, self.device, self.autocast
        )

    def in_loop(self, model: SelfDistillation, hyper: Hyper, probe: Batch) -> Evaluation:
        """k-NN on at most `in_loop_images`, diagnostics of features and targets, pictures of patch tokens and crops."""
        backbone = model.teacher["backbone"]
        train, test = self._quick
        memory = self._features(backbone, train.pixels)
        held_out = memory if test is None else self._features(backbone, test.pixels)
        found = Evaluation()
        if test is not None and train.labels is not None and test.labels is not None:
            k = min(PRIMARY_K, len(train.labels))
            for kind, short in SHORT_NAMES.items():
                split = (memory[kind], train.labels, held_out[kind], test.labels)
                accuracy = knn_accuracy(*split, ks=(k,))
                found.metrics[f"eval/knn_{short}top1"] = accuracy[f"top1_k{k}"]
        self._diagnose(found, model, hyper, probe, held_out["cls"])
        self._picture(found, backbone, (test or train).pixels[:: max(len((test or train).pixels) // SHOWN, 1)][:SHOWN])
        found.pictures["crops"] = self._crops(model, probe)
        return found

    def _diagnose(self, found: Evaluation, model: SelfDistillation, hyper: Hyper, probe: Batch, cls: Tensor) -> None:
        values = feature_diagnostics(cls) if len(cls) > 1 else {}
        found.metrics |= {f"eval/{name}": value for name, value in values.items()}
        warnings = [verdict(values, "features")] if values else []
        batch = probe.to(self.device).normalised(self.mean, self.std)
        with evaluating(model, self.device, self.autocast):
            targets = model.teacher_targets(batch, hyper)
        for name, rows in targets.items():
            diagnostics = target_diagnostics(rows)
            found.metrics |= {f"eval/{name}/{key}": value for key, value in diagnostics.items()}
            warnings.append(verdict(diagnostics, f"{name}'s teacher targets") if diagnostics else None)
        found.warning = "; ".join(w for w in warnings if w) or None

    def _picture(self, found: Evaluation, backbone: nn.Module, pixels: Tensor) -> None:
        tokens = patch_tokens(backbone, pixels, self.mean, self.std, self.device, self.autocast)
        found.pictures["pca"] = visualise.pca_figure(pixels, tokens, self._grid(backbone))

    def _grid(self, backbone: nn.Module) -> tuple[int, int]:
        side = self.size // int(backbone.patch_size)  # type: ignore[arg-type]
        return side, side

    def _crops(self, model: SelfDistillation, probe: Batch) -> visualise.Picture:
        crops = probe.extra_crops if len(probe.extra_crops) else probe.global_crops
        patch = int(model.student["backbone"].patch_size)  # type: ignore[arg-type]
        grid = (crops.shape[-2] // patch, crops.shape[-1] // patch)
        return visualise.crops_figure(probe, grid, self.mean, self.std)

    def final(self, backbone: VisionTransformer, random_init: VisionTransformer | None) -> Evaluation:
        """Everything: k-NN and linear probe of the network, of the same network at its random
        initialisation, and of features that need no network; diagnostics and pictures of patch tokens."""
        found = Evaluation()
        train = self._images(self.train, self.settings.images)
        test = None if self.test is None else self._images(self.test, self.settings.images)
        held_out = (test or train).pixels
        self._picture(found, backbone, held_out[:: max(len(held_out) // SHOWN, 1)][:SHOWN])
        features = self._features(backbone, held_out)
        diagnostics = feature_diagnostics(features["cls"]) if len(held_out) > 1 else {}
        found.metrics |= {f"eval/{name}": value for name, value in diagnostics.items()}
        found.warning = verdict(diagnostics, "features") if diagnostics else None
        if test is None or train.labels is None or test.labels is None:
            found.warning = found.warning or "no labelled test images: accuracies were not computed"
            return found
        labels = train.labels, test.labels
        results = {TRAINED: self._accuracies(backbone, train, test, features)}
        if random_init is not None:
            results[RANDOM] = self._accuracies(random_init, train, test, None)
        results |= evaluate_baselines(train.pixels, labels[0], test.pixels, labels[1], self.settings.linear_probe)
        found.results = results
        found.metrics |= flat(results)
        found.pictures["accuracy"] = visualise.accuracy_bars(results)
        return found

    def _accuracies(
        self, backbone: nn.Module, train: EvalImages, test: EvalImages, held_out: dict[str, Tensor] | None
    ) -> dict[str, float]:
        if train.labels is None or test.labels is None:
            raise ValueError("evaluation: both parts need labels")
        memory = self._features(backbone, train.pixels)
        held_out = held_out or self._features(backbone, test.pixels)
        return evaluate_network(memory, train.labels, held_out, test.labels, self.settings.linear_probe)


def flat(results: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
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
