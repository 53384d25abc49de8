"""Families that bring scenes of their own, through the evaluator: all rows, in the loop, on images that allow less."""

import weakref
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from test_evaluator import HYPER, Noise, evaluation_of, probe
from torch import Tensor

from dinoswap.config.configuration import plain
from dinoswap.config.measured import build_metrics, score_of
from dinoswap.data.images import CorruptImage, Images
from dinoswap.dense.base import Scene, SceneParts
from dinoswap.distributed.preemption import Preemption
from dinoswap.evaluation import evaluator as evaluator_module
from dinoswap.evaluation.baselines import (
    DENSE_BASELINES,
    colour_histogram,
    patch_histogram,
    patch_pixels,
    patch_position,
)
from dinoswap.evaluation.dense import SceneReader, measure_dense
from dinoswap.evaluation.evaluator import Evaluator
from dinoswap.evaluation.summary import Column
from dinoswap.metric.base import DenseMetric, Metric, Score
from dinoswap.metric.depth import Depth
from dinoswap.model import SelfDistillation
from dinoswap.values import Batch
from small_models import composed, small_trainer

__all__ = ["probe"]


class Counted:
    """Scenes of one grey image each, whose level is their number; some cannot be decoded."""

    def __init__(self, count: int, broken: tuple[int, ...] = ()) -> None:
        self.count, self.broken, self.loads = count, broken, 0
        self.shape = (1, 32, 32)

    def __len__(self) -> int:
        return self.count

    def load(self, index: int) -> Scene:
        self.loads += 1
        if index in self.broken:
            raise CorruptImage(f"image {index}", "no bytes")
        return Scene(np.full((1, 3, 32, 32), index, dtype=np.uint8), np.array(index))


class Levels(DenseMetric):
    """The mean level of test scenes, less that of training scenes, as seen by the first feature of `raw pixels`."""

    scores: ClassVar[Mapping[str, Score]] = {"level": Score("higher", column="level"), "seen": Score()}
    supervised = False

    def __init__(self, *, in_loop: bool, train: Counted, test: Counted) -> None:
        super().__init__(in_loop=in_loop)
        self.parts = SceneParts(train, test)
        self.firsts: list[int] = []

    def scenes(self, train: Images, test: Images | None, size: int, patch: int) -> SceneParts:
        return self.parts

    def keep(self, tokens: Tensor, truth: Sequence[NDArray[Any]], first: int) -> Mapping[str, Tensor]:
        self.firsts.append(first)
        return {"truth": torch.tensor([float(level) for level in truth])}

    def fit(self, kept: Mapping[str, Tensor]) -> float:
        return float(kept["truth"].mean())

    def judge(self, fitted: float, tokens: Tensor, truth: Sequence[NDArray[Any]]) -> Tensor:
        assert tokens.shape[:4] == (len(truth), 1, 4, 4)
        return torch.tensor([sum(float(level) - fitted for level in truth), len(truth)], dtype=torch.float64)

    def values(self, counts: Tensor) -> Mapping[str, float]:
        return {"level": float(counts[0] / counts[1]), "seen": float(counts[1])}

    def verdict(self, values: Mapping[str, float]) -> str | None:
        return "the level is odd" if values["level"] > 2 else None


@pytest.fixture(scope="module")
def model() -> SelfDistillation:
    return small_trainer().model


def evaluator(metrics: Mapping[str, Metric], train: Images, test: Images | None, **settings: Any) -> Evaluator:
    return Evaluator(
        evaluation_of(**settings),
        metrics,
        train,
        test,
        size=32,
        mean=torch.full((3,), 0.5),
        std=torch.full((3,), 0.5),
        device=torch.device("cpu"),
        autocast=None,
    )


def test_every_row_is_fitted_and_judged_in_batches(model: SelfDistillation) -> None:
    family = Levels(in_loop=False, train=Counted(10, broken=(0, 3)), test=Counted(15, broken=(14,)))
    judge = evaluator({"levels": family}, Noise(8, 2), Noise(8, 2), batch_size=4)
    found = judge.final(model.teacher["backbone"], small_trainer("seed=1").model.teacher["backbone"])
    level = 13 / 2 - (45 - 3) / 8
    assert list(found.results) == ["trained", "random init", *DENSE_BASELINES]
    for scores in found.results.values():
        assert scores == {"level": pytest.approx(level), "seen": 14}
    assert found.metrics["eval/level"] == found.metrics["baseline/position_alone/level"] == pytest.approx(level)
    assert found.columns == {"level": Column(("level",), Levels.scores["level"])}
    assert found.headline == f"level {level:.3g}"
    assert {name for name in found.corrupt if name.startswith("image")} == {"image 0", "image 3", "image 14"}
    assert sorted(set(family.firsts)) == [0, 4, 8]
    assert found.warning is None


def test_the_loop_judges_the_network_alone_and_keeps_its_scenes(model: SelfDistillation, probe: Batch) -> None:
    scenes = Counted(6)
    family = Levels(in_loop=True, train=Counted(2), test=scenes)
    judge = evaluator({"levels": family}, Noise(8, 2), None, batch_size=4)
    first, second = (judge.in_loop(model, HYPER, probe) for _ in range(2))
    assert list(first.results) == ["trained"]
    assert first.metrics["eval/level"] == second.metrics["eval/level"] == 2
    pictures = 2 * 6
    assert scenes.loads == 6 + pictures, "decoded once, and for the pictures"


def test_its_verdict_is_the_evaluations_warning(model: SelfDistillation) -> None:
    family = Levels(in_loop=True, train=Counted(2), test=Counted(8))
    found = evaluator({"levels": family}, Noise(8, 2), Noise(8, 2)).final(model.teacher["backbone"], None)
    assert "the level is odd" in str(found.warning)


def test_what_it_does_not_describe_is_refused(model: SelfDistillation) -> None:
    class Undescribed(Levels):
        scores: ClassVar[Mapping[str, Score]] = {"level": Score("higher")}

    family = Undescribed(in_loop=True, train=Counted(2), test=Counted(4))
    with pytest.raises(ValueError, match="Undescribed: gives seen, which its `scores` do not describe"):
        evaluator({"x": family}, Noise(8, 2), Noise(8, 2)).final(model.teacher["backbone"], None)


def test_not_one_scene_is_an_error(model: SelfDistillation) -> None:
    family = Levels(in_loop=True, train=Counted(2), test=Counted(2, broken=(0, 1)))
    with pytest.raises(ValueError, match="Levels: none of its 2 scenes could be decoded"):
        evaluator({"x": family}, Noise(8, 2), Noise(8, 2)).final(model.teacher["backbone"], None)


def test_scenes_are_not_kept_where_they_are_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluator_module, "KEEP_BYTES", 100)
    scenes = Counted(5)
    reader = SceneReader(scenes, 2, keep_bytes=100)
    assert [len(batch) for batch in reader] == [2, 2, 1]
    assert [len(batch) for batch in reader] == [2, 2, 1]
    assert scenes.loads == 10


def test_neither_scenes_nor_tokens_are_held_for_longer_than_a_batch() -> None:
    """At most those of one batch while the next one is made, however many there are."""
    held: dict[str, list[weakref.ref[Any]]] = {"scenes": [], "tokens": []}
    most = {"scenes": 0, "tokens": 0}

    def note(kind: str, array: NDArray[Any]) -> NDArray[Any]:
        held[kind].append(weakref.ref(array))
        most[kind] = max(most[kind], sum(reference() is not None for reference in held[kind]))
        return array

    class Watched(Counted):
        def load(self, index: int) -> Scene:
            scene = super().load(index)
            return Scene(note("scenes", scene.views), scene.truth)

    def encode(images: Tensor) -> Tensor:
        return torch.from_numpy(note("tokens", np.zeros((len(images), 4, 4, 8), dtype=np.float32)))

    family = Levels(in_loop=False, train=Watched(60), test=Watched(60))
    readers = SceneReader(family.parts.train, 4), SceneReader(family.parts.test, 4)  # type: ignore[arg-type]
    found = measure_dense(family, readers, {"trained": encode}, lambda work: work(), Preemption())
    assert found.rows["trained"] == {"level": 0, "seen": 60}
    assert len(held["tokens"]) == 2 * 15 + 1, "and those of the pictures"
    assert most["tokens"] <= 2 and most["scenes"] <= 8


def test_a_batch_of_large_scenes_is_smaller() -> None:
    scenes, few = Counted(64), []
    for shape in ((1, 32, 32), (1, 224, 224), (2, 224, 224), (1, 448, 448), (1, 2048, 4096)):
        scenes.shape = shape
        few.append(SceneReader(scenes, 16).batch_size)
    assert few == [16, 16, 8, 4, 1]


# --- the families that ship -------------------------------------------------------------------------------------------


def shipped(*overrides: str) -> dict[str, Metric]:
    small = ["evaluation.metric.correspondence.images=8", "evaluation.dense.train=12", "evaluation.dense.test=6"]
    config = plain(composed(["recipe=smoke", "metric=[correspondence,segmentation]", *small, *overrides]))
    return build_metrics(config)


def test_on_labelled_images_both_are_measured(model: SelfDistillation) -> None:
    """Noise around a level of its own for each class is told by any feature of the patch but its place."""
    found = evaluator(shipped(), Noise(40, 4), Noise(20, 4)).final(model.teacher["backbone"], None)
    assert set(found.columns) == {"correspondence", "photometric", "mIoU linear", "mIoU k-NN"}
    by_row = {row: scores["seg_accuracy"] for row, scores in found.results.items()}
    assert min(by_row["trained"], by_row["raw pixels"], by_row["colour histogram"]) > 75
    assert by_row["position alone"] < 50
    assert {name for name in found.metrics if name.startswith("eval/seg_iou")} == {
        f"eval/seg_iou/{n}" for n in range(4)
    }
    assert {"correspondence", "segmentation"} <= set(found.pictures)
    chance = found.metrics["eval/correspondence_chance"]
    assert chance == found.metrics["baseline/raw_pixels/correspondence_chance"] > 0


def test_numbers_at_a_further_size_are_those_of_an_evaluation_at_it_alone(model: SelfDistillation) -> None:
    images, backbone = (Noise(40, 4), Noise(20, 4)), model.teacher["backbone"]
    both = evaluator(shipped(), *images, more_sizes=[16]).final(backbone, None)
    alone = evaluator(shipped(), *images, size=16).final(backbone, None)
    at_16 = {name.removesuffix("/16"): value for name, value in both.metrics.items() if name.endswith("/16")}
    assert at_16 == {name: value for name, value in alone.metrics.items() if name in at_16}
    assert set(at_16) == {name for name in both.metrics if not name.endswith("/16")} == set(alone.metrics)
    assert both.metrics["eval/seg_miou"] != at_16["eval/seg_miou"]
    assert {"mIoU linear", "mIoU linear 16", "correspondence 16"} <= set(both.columns)
    assert {"segmentation", "segmentation_16", "correspondence_16", "pca", "pca_2x", "pca_16"} <= set(both.pictures)
    assert score_of("eval/seg_miou/16").better == "higher"


def test_without_baselines_the_numbers_of_the_network_are_the_same(model: SelfDistillation) -> None:
    images, backbone = (Noise(40, 4), Noise(20, 4)), model.teacher["backbone"]
    compared = evaluator(shipped(), *images).final(backbone, backbone)
    alone = evaluator(shipped(), *images, baselines=False).final(backbone, backbone)
    assert {"random init", "raw pixels", "position alone"} < set(compared.results)
    assert set(alone.results) == {"trained"}
    assert alone.metrics == {name: value for name, value in compared.metrics.items() if name.startswith("eval/")}
    assert set(alone.columns) == set(compared.columns)


def test_the_loop_has_one_size(model: SelfDistillation, probe: Batch) -> None:
    found = evaluator(shipped(), Noise(8, 2), Noise(8, 2), more_sizes=[16]).in_loop(model, HYPER, probe)
    assert "eval/correspondence" in found.metrics
    assert not [name for name in (*found.metrics, *found.pictures) if name.endswith("16")]


def test_scenes_that_have_one_size_are_refused_at_another() -> None:
    family = Levels(in_loop=False, train=Counted(2), test=Counted(2))
    with pytest.raises(ValueError, match=r"evaluation.more_sizes: has 16, but these scenes are 32 x 32 pixels at each"):
        evaluator({"levels": family}, Noise(8, 2), Noise(8, 2), more_sizes=[16]).prepare(8)


def test_without_labels_correspondence_remains(model: SelfDistillation) -> None:
    found = evaluator(shipped(), Noise(20, 4, labelled=False), None).final(model.teacher["backbone"], None)
    assert set(found.results["trained"]) == {"correspondence", "correspondence_photometric", "correspondence_chance"}
    assert "correspondence" in found.headline


def test_depth_is_measured_where_it_is_asked_for_and_needs_no_labels(model: SelfDistillation) -> None:
    """Of rooms with walls of one grey each, whose shade tells the faces apart. Errors stand in no chart of shares."""
    small = [
        "metric=[depth]",
        "objective_metric=eval/depth_rmse",
        "evaluation.depth.train=15",
        "evaluation.depth.test=8",
    ]
    families, images = build_metrics(plain(composed(["recipe=smoke", *small]))), Noise(20, 4, labelled=False)
    found = evaluator(families, images, None).final(model.teacher["backbone"], None)
    assert list(found.results) == ["trained", *DENSE_BASELINES]
    for scores in found.results.values():
        assert set(scores) == set(Depth.scores)
    rooms = families["depth"].scenes(images, None, 32, 8)  # type: ignore[attr-defined]
    train, test = ([part.load(n).truth for n in range(len(part))] for part in (rooms.train, rooms.test))
    of_the_mean = float(np.square(np.stack(test) - np.mean(train)).mean() ** 0.5)
    assert found.metrics["eval/depth_rmse"] < of_the_mean
    assert found.metrics["baseline/position_alone/depth_bins_rmse"] < 0.9 * of_the_mean
    assert found.headline == f"depth RMSE {found.metrics['eval/depth_rmse']:.3g}"
    assert set(found.pictures) == {"depth", "pca", "pca_2x", "similarity"}
    assert found.warning is None


# --- baselines --------------------------------------------------------------------------------------------------------


def test_patch_baselines_are_those_of_a_loop_over_patches() -> None:
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (2, 3, 24, 32), dtype=np.uint8))
    pixels, histogram, place = (read(images, 8) for read in (patch_pixels, patch_histogram, patch_position))
    for n, row, column in np.ndindex(2, 3, 4):
        patch = images[n, :, 8 * row : 8 * row + 8, 8 * column : 8 * column + 8]
        assert torch.allclose(pixels[n, row, column], (patch.float() / 127.5 - 1).flatten())
        assert torch.allclose(histogram[n, row, column], colour_histogram(patch[None], 4)[0])
        assert place[n, row, column].nonzero()[:, 0].tolist() == [row, 3 + column]
    large = patch_pixels(images, 16)[0, 0, 0]  # of 16 pixels a side, averaged to 8
    expected = (images[0, :, :16, :16].float() / 127.5 - 1).unfold(1, 2, 2).unfold(2, 2, 2).mean((-1, -2))
    assert torch.allclose(large, expected.flatten(), atol=1e-6)
