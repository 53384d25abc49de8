"""The families against the functions that compute their numbers, and what they say of themselves."""

import subprocess
import sys

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from dinoswap.config import measured
from dinoswap.config.command_line import compose_config
from dinoswap.config.schema import ConfigError
from dinoswap.metric import penalty_grid
from dinoswap.metric.base import WHOLE, Extent, ImageMetric, Part
from dinoswap.metric.features import FeatureStatistics
from dinoswap.metric.knn import NearestNeighbours
from dinoswap.metric.linear import LinearProbe
from dinoswap.metric.linear_sgd import LinearSgd
from dinoswap.metric.logistic_regression import linear_probe
from dinoswap.metric.neighbours import knn_accuracy


def blobs(count: int, classes: int, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % classes
    centres = torch.randn(classes, 12, generator=torch.Generator().manual_seed(0))
    return centres[labels] + 1.2 * torch.randn(count, 12, generator=generator), labels


def parts(classes: int, kinds: tuple[str, ...], train: int = 60) -> tuple[Part, Part]:
    made = []
    for seed, count in ((1, train), (2, 30)):
        features, labels = blobs(count, classes, seed)
        made.append(Part({kind: features.roll(place, 1)[:, : 12 - place] for place, kind in enumerate(kinds)}, labels))
    return made[0], made[1]


@pytest.mark.parametrize(("classes", "tops"), [(3, ["top1"]), (7, ["top1", "top5"])])
def test_knn_is_that_of_twenty_neighbours(classes: int, tops: list[str]) -> None:
    train, test = parts(classes, ("cls", "patch_mean"))
    values = NearestNeighbours(in_loop=True).measure(train, test)
    assert set(values) == {f"knn_{short}{top}" for short in ("", "patch_") for top in tops}
    for kind, short in (("cls", ""), ("patch_mean", "patch_")):
        expected = knn_accuracy(train.features[kind], train.labels, test.features[kind], test.labels, ks=(20,))
        assert [values[f"knn_{short}{top}"] for top in tops] == [expected[f"{top}_k20"] for top in tops]


def test_knn_with_fewer_images_than_neighbours() -> None:
    train, test = parts(3, (WHOLE,), train=12)
    split = train.features[WHOLE], train.labels, test.features[WHOLE], test.labels
    assert NearestNeighbours(in_loop=True).measure(train, test) == {"knn_top1": knn_accuracy(*split)["top1_k12"]}


def test_linear_names_accuracy_and_penalty() -> None:
    train, test = parts(3, ("cls", "patch_mean"))
    values = LinearProbe(in_loop=False, solver="auto").measure(train, test)
    for kind, short in (("cls", ""), ("patch_mean", "patch_")):
        expected = linear_probe(train.features[kind], train.labels, test.features[kind], test.labels)
        assert (values[f"linear_{short}top1"], values[f"linear_{short}c"]) == (expected["top1"], expected["c"])


def test_statistics_need_two_images() -> None:
    family = FeatureStatistics(in_loop=True)
    _, test = parts(3, ("cls",))
    assert set(family.measure(None, test)) == set(family.scores)
    assert family.measure(None, Part({"cls": test.features["cls"][:1]}, test.labels[:1])) == {}
    same = Part({"cls": torch.ones(30, 12)}, test.labels)
    assert "features are collapsing" in str(family.verdict(family.measure(None, same)))


def test_every_number_of_every_family_is_described() -> None:
    train, test = parts(7, ("cls", "patch_mean"))
    for family in measured.build_metrics(compose_config()).values():
        if not isinstance(family, ImageMetric):
            continue  # those that bring scenes of their own: tests/evaluation/test_dense.py
        kinds = {kind: test.features[kind] for kind in family.reads}
        values = family.measure(train if family.supervised else None, Part(kinds, test.labels))
        assert set(values) == set(family.scores)


# --- what configs and studies learn from them -------------------------------------------------------------------------


def test_names_directions_and_labels() -> None:
    names = {"knn_top1", "knn_patch_top1", "knn_top5", "knn_patch_top5", "linear_top1", "linear_patch_top1"}
    names |= {"linear_sgd_top1"}
    names |= {"seg_miou", "seg_accuracy", "seg_knn_miou", "seg_knn_accuracy"}
    others = {"rankme", "feature_std", "mean_cosine", "correspondence", "correspondence_photometric"}
    others |= {f"depth{head}_{name}" for head in ("", "_bins") for name in ("rmse", "abs_rel", "delta1")}
    assert set(measured.names()) == {f"eval/{name}" for name in names | others}
    assert measured.score_of("eval/mean_cosine").better == measured.score_of("eval/depth_bins_rmse").better == "lower"
    assert {name for name in measured.names() if measured.needs_labels(name)} == {f"eval/{name}" for name in names}
    assert not measured.needs_labels("eval/dino/target_entropy")


def test_what_a_config_leaves_out() -> None:
    config = compose_config(["metric=[knn]"])
    assert list(measured.build_metrics(config)) == ["knn"]
    assert measured.obstacle(config, "eval/rankme") == "metric=[knn,features]"
    assert measured.obstacle(compose_config(["evaluation.linear_probe=false"]), "eval/linear_patch_top1") == (
        "evaluation.linear_probe=true"
    )
    assert list(measured.build_metrics(compose_config(["evaluation.linear_probe=false"])))[:2] == ["knn", "features"]
    with pytest.raises(ConfigError, match=r"group 'metric' has no option 'linaer'. Did you mean 'linear'"):
        compose_config(["metric=[knn,linaer]"])


def test_names_are_known_without_torch() -> None:
    code = "import sys; from dinoswap.config import measured; measured.names(); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


# --- what families say they take --------------------------------------------------------------------------------------


def counted_flops(metric: ImageMetric, extent: Extent) -> int:
    """Returns the FLOPs of matrix products, which torch counts while a family measures random features."""
    generator = torch.Generator().manual_seed(0)

    def part(images: int) -> Part:
        labels = torch.arange(images) % extent.classes
        features = {kind: torch.randn(images, extent.width, generator=generator) for kind in metric.reads}
        return Part(features, labels)

    with FlopCounterMode(display=False) as counter:
        metric.measure(part(extent.train), part(extent.test))
    return int(counter.get_total_flops())


def test_neighbours_take_the_products_that_they_say() -> None:
    extent = Extent(train=60, test=40, classes=3, kinds=2, width=16)
    metric = NearestNeighbours(in_loop=True)
    assert metric.flops(extent) == counted_flops(metric, extent)


def test_the_grid_of_sgd_takes_the_products_that_it_says() -> None:
    """Those of the test images, which are classified once, are not in it."""
    extent = Extent(train=64, test=8, classes=3, kinds=2, width=16)
    metric = LinearSgd(in_loop=False, epochs=3, batch_size=32, learning_rates=(0.1, 0.01))
    of_test = 2 * extent.test * (1 + 2) * extent.width * extent.classes * 2
    assert metric.flops(extent) == counted_flops(metric, extent) - of_test


def test_a_probe_that_ends_at_its_limit_takes_about_what_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """Candidates read four fifths of the images."""
    monkeypatch.setattr(penalty_grid, "EVALUATIONS", 10)
    extent = Extent(train=90, test=30, classes=3, kinds=2, width=16)
    metric = LinearProbe(in_loop=False, solver="torch")
    assert 0.7 * metric.flops(extent) < counted_flops(metric, extent) < metric.flops(extent)
