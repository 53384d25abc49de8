"""Both evaluations of a run on data sets that offer everything, less, or nothing to judge by."""

import math
import tracemalloc
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from dinoswap.config.sections import EvaluationSettings
from dinoswap.data.images import CorruptImage, Images
from dinoswap.evaluation import evaluator as evaluator_module
from dinoswap.evaluation.evaluator import SHOWN, Evaluator
from dinoswap.evaluation.measure import named
from dinoswap.evaluation.summary import Column
from dinoswap.metric.base import ImageMetric, Metric, Part, Score
from dinoswap.metric.features import FeatureStatistics
from dinoswap.metric.knn import NearestNeighbours
from dinoswap.metric.linear import LinearProbe
from dinoswap.model import SelfDistillation
from dinoswap.values import Batch
from options import build_settings
from small_models import small_batch, small_trainer

HYPER = {"teacher_temp": 0.05, "dino_local_weight": 1.0}
OF_TOKENS = {"pca", "pca_2x", "similarity"}
NAMES = ["knn_top1", "knn_patch_top1", "linear_top1", "linear_patch_top1"]


class Noise(Images):
    """Noise around a grey level of its own for each class: any features tell the classes apart."""

    classes = None
    blocks = ()

    def __init__(self, count: int, classes: int, labelled: bool = True, broken: tuple[int, ...] = ()) -> None:
        self.truth = np.arange(count) % classes
        self.labels: NDArray[np.int64] | None = self.truth if labelled else None
        self.broken = broken
        self.loads, self.peak = 0, 0  # bytes traced up to the last load

    def __len__(self) -> int:
        return len(self.truth)

    def load(self, row: int) -> NDArray[np.uint8]:
        self.loads, self.peak = self.loads + 1, tracemalloc.get_traced_memory()[1]
        if row in self.broken:
            raise CorruptImage(str(row), "no bytes")
        noise = np.random.default_rng(row).integers(0, 30, (32, 32, 3))
        return (noise + 60 * self.truth[row]).astype(np.uint8)

    def name(self, row: int) -> str:
        return str(row)


@pytest.fixture(scope="module")
def model() -> SelfDistillation:
    return small_trainer().model


@pytest.fixture(scope="module")
def probe() -> Batch:
    batch = small_batch(0)
    pixels = {name: (getattr(batch, name) * 50 + 128).clamp(0, 255).byte() for name in ("global_crops", "local_crops")}
    return replace(batch, **pixels, extra_crops=batch.extra_crops.byte())


FAMILIES = {
    "knn": NearestNeighbours(in_loop=True),
    "linear": LinearProbe(in_loop=False, solver="auto"),
    "features": FeatureStatistics(in_loop=True),
}


def evaluation_of(**changes: Any) -> EvaluationSettings:
    return build_settings(EvaluationSettings, "evaluation", **changes)


def evaluator(
    train: Images, test: Images | None, metrics: Mapping[str, Metric] = FAMILIES, size: int = 32, **settings: int
) -> Evaluator:
    half = torch.full((3,), 0.5)
    made = evaluation_of(batch_size=16, **settings)
    place = {"device": torch.device("cpu"), "autocast": None}
    return Evaluator(made, metrics, train, test, size=size, mean=half, std=half, **place)  # type: ignore[arg-type]


def test_final_judges_the_network_beside_three_baselines(model: SelfDistillation, tmp_path: Path) -> None:
    backbone, other = model.teacher["backbone"], small_trainer("seed=1").model.teacher["backbone"]
    found = evaluator(Noise(40, 4), Noise(20, 4)).final(backbone, other)
    assert list(found.results) == ["trained", "random init", "raw pixels", "colour histogram"]
    for name in NAMES:
        assert found.metrics[f"eval/{name}"] == 100
        assert found.metrics[f"baseline/random_init/{name}"] == 100
    assert found.metrics["baseline/colour_histogram/knn_top1"] == 100
    assert set(found.pictures) == {*OF_TOKENS, "accuracy"}
    found.save_pictures(tmp_path / "new" / "pictures")
    assert {path.name for path in (tmp_path / "new" / "pictures").iterdir()} == {
        f"{name}.png" for name in (*OF_TOKENS, "accuracy")
    }
    assert found.table().row_count == 4


def test_final_decodes_an_image_once_and_holds_one_batch(model: SelfDistillation) -> None:
    """Whatever is read of it: two networks, two baselines. Afterwards the few in the picture are decoded again."""
    train, test = Noise(60, 4), Noise(50, 4)
    judge = evaluator(train, test, {name: FAMILIES[name] for name in ("knn", "features")}, size=128)
    tracemalloc.start()
    judge.final(model.teacher["backbone"], model.student["backbone"])
    tracemalloc.stop()
    assert (train.loads, test.loads) == (60, 50 + SHOWN)
    image = 3 * 128**2
    assert 16 <= train.peak / image < 24  # read after the test images; a batch has 16
    assert test.peak / image < 5 * SHOWN + 8  # the pictures' images, once as they are and once of twice the side


def test_in_loop_keeps_decoded_images_up_to_a_bound(
    model: SelfDistillation, probe: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    for keep_bytes, decoded in ((40 * 3 * 32**2, 1), (0, 2)):
        monkeypatch.setattr(evaluator_module, "KEEP_BYTES", keep_bytes)
        train, test = Noise(40, 4), Noise(20, 4)
        judge = evaluator(train, test)
        found += [judge.in_loop(model, HYPER, probe) for _ in range(2)]
        assert (train.loads, test.loads) == (40 * decoded, 20 * decoded + 2 * SHOWN)
    assert all(each.metrics == found[0].metrics for each in found)


def test_in_loop_gives_the_names_of_the_final(model: SelfDistillation, probe: Batch) -> None:
    """So that their curve ends with the final value."""
    judge = evaluator(Noise(40, 4), Noise(20, 4), in_loop_images=20)
    quick = judge.in_loop(model, HYPER, probe)
    final = judge.final(model.teacher["backbone"], None)
    shared = {name for name in quick.metrics if "target" not in name and "prototype" not in name}
    assert shared <= set(final.metrics)
    assert {"eval/knn_top1", "eval/knn_patch_top1", "eval/rankme"} <= shared
    assert {"eval/dino/target_entropy", "eval/ibot/prototypes_used"} <= set(quick.metrics)
    assert set(quick.pictures) == {*OF_TOKENS, "crops"}


def test_an_evaluation_leaves_the_model_as_it_was(model: SelfDistillation, probe: Batch) -> None:
    before = {name: value.clone() for name, value in model.state_dict().items()}
    drawn = torch.get_rng_state()
    judge = evaluator(Noise(20, 2), Noise(20, 2))
    judge.in_loop(model, HYPER, probe)
    judge.final(model.teacher["backbone"], model.student["backbone"])
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), drawn)
    assert model.student.training
    assert not model.teacher.training


@pytest.mark.parametrize(
    ("train", "test"),
    [
        (Noise(20, 2), None),
        (Noise(20, 2, labelled=False), Noise(20, 2)),
        (Noise(20, 2), Noise(20, 2, labelled=False)),
        (Noise(20, 1), Noise(20, 2)),
    ],
    ids=["no test images", "train unlabelled", "test unlabelled", "one class"],
)
def test_without_two_labelled_classes_there_are_diagnostics_only(
    train: Images, test: Images | None, model: SelfDistillation, probe: Batch
) -> None:
    judge = evaluator(train, test)
    for found in (judge.in_loop(model, HYPER, probe), judge.final(model.teacher["backbone"], None)):
        assert found.results == {}
        assert not any("top1" in name for name in found.metrics)
        assert found.metrics["eval/rankme"] > 0
        assert "pca" in found.pictures
    assert found.warning is not None
    assert "no accuracies" in found.warning


def test_a_diverged_network_is_reported_and_stops_nothing(probe: Batch) -> None:
    model = small_trainer().model
    with torch.no_grad():
        model.teacher["backbone"].get_parameter("norm.weight").fill_(math.nan)
    judge = evaluator(Noise(20, 2), Noise(20, 2))
    for found in (judge.in_loop(model, HYPER, probe), judge.final(model.teacher["backbone"], None)):
        assert found.warning is not None
        assert "not finite" in found.warning
        assert not any("top1" in name for name in found.metrics)


def test_one_image_and_images_that_cannot_be_decoded(model: SelfDistillation) -> None:
    found = evaluator(Noise(1, 1), None).final(model.teacher["backbone"], None)
    assert found.metrics == {}
    found = evaluator(Noise(20, 2, broken=(3, 4)), Noise(20, 2, broken=(3,))).final(model.teacher["backbone"], None)
    assert found.warning is not None
    assert "3 images that cannot be decoded" in found.warning
    assert found.metrics["eval/knn_top1"] == 100
    found = evaluator(Noise(20, 2, broken=tuple(range(1, 20, 2))), Noise(20, 2)).final(model.teacher["backbone"], None)
    assert found.warning is not None
    assert "no accuracies" in found.warning  # one class is left


def test_full_names() -> None:
    results = {"trained": {"knn_top1": 1.0, "linear_patch_c": 2.0}, "raw pixels": {"knn_top5": 4.0}}
    assert named(results) == {"eval/knn_top1": 1.0, "eval/linear_patch_c": 2.0, "baseline/raw_pixels/knn_top5": 4.0}


class PatchSpread(ImageMetric):
    """The mean distance of patch tokens from their image's mean, and the share of test images without a twin."""

    scores: ClassVar[Mapping[str, Score]] = {"patch_spread": Score("higher"), "unique": Score("higher", "%", "unique")}
    reads = ("patch",)
    supervised = True

    def measure(self, train: Part | None, test: Part) -> Mapping[str, float]:
        assert train is not None
        patch = test.features["patch"]
        return {
            "patch_spread": float((patch - patch.mean(1, keepdim=True)).norm(dim=-1).mean()),
            "unique": 100 * len(torch.unique(patch.mean(1), dim=0)) / len(patch),
        }


def test_a_family_reads_what_it_names_and_adds_its_columns(model: SelfDistillation, probe: Batch) -> None:
    """It has no number for whole images, so baselines have none of it either; others are as without it."""
    backbone, other = model.teacher["backbone"], small_trainer("seed=1").model.teacher["backbone"]
    judge = evaluator(Noise(40, 4), Noise(20, 4), FAMILIES | {"spread": PatchSpread(in_loop=True)})
    found, plain = judge.final(backbone, other), evaluator(Noise(40, 4), Noise(20, 4)).final(backbone, other)
    assert {name: found.metrics[name] for name in plain.metrics} == plain.metrics
    new = set(found.metrics) - set(plain.metrics)
    assert new == {f"{row}/{name}" for row in ("eval", "baseline/random_init") for name in PatchSpread.scores}
    assert found.columns == {**plain.columns, "unique": Column(("unique",), PatchSpread.scores["unique"])}
    images = torch.from_numpy(np.stack([judge._quick.test.crop(row) for row in range(20)]))
    with torch.no_grad():
        patch = backbone([((images / 255) - 0.5) / 0.5])[0].patch
    spread = (patch - patch.mean(1, keepdim=True)).norm(dim=-1).mean()
    assert found.metrics["eval/patch_spread"] == pytest.approx(float(spread), rel=1e-5)
    assert judge.in_loop(model, HYPER, probe).metrics["eval/patch_spread"] > 0


def test_a_family_cannot_give_what_it_does_not_describe(model: SelfDistillation) -> None:
    class Undescribed(PatchSpread):
        scores: ClassVar[Mapping[str, Score]] = {"unique": Score("higher")}

    with pytest.raises(ValueError, match="Undescribed: gives patch_spread, which its `scores` do not describe"):
        evaluator(Noise(20, 2), Noise(20, 2), {"x": Undescribed(in_loop=True)}).final(model.teacher["backbone"], None)


def test_without_any_family_there_are_pictures(model: SelfDistillation, probe: Batch) -> None:
    judge = evaluator(Noise(20, 2), Noise(20, 2), {})
    final = judge.final(model.teacher["backbone"], None)
    assert (final.metrics, final.warning, set(final.pictures)) == ({}, None, OF_TOKENS)
    assert not any("knn" in name for name in judge.in_loop(model, HYPER, probe).metrics)


def test_the_headline_is_the_first_number_of_the_table(model: SelfDistillation) -> None:
    families = dict(reversed(FAMILIES.items()))
    assert evaluator(Noise(40, 4), Noise(20, 4)).final(model.teacher["backbone"], None).headline == "k-NN CLS 100.0"
    found = evaluator(Noise(40, 4), Noise(20, 4), families).final(model.teacher["backbone"], None)
    assert found.headline == "linear CLS 100.0"
    assert evaluator(Noise(40, 4), None).final(model.teacher["backbone"], None).headline == ""


@pytest.mark.parametrize("name", ["size", "resize", "in_loop_images", "images", "batch_size"])
def test_bad_settings_are_named(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name}=0"):
        evaluation_of(**{name: 0})
