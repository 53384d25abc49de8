"""Evaluations by two ranks: the numbers of one process, each image decoded once, a rank that works is waited for, and
a signal to one leaves them on both."""

import os
import signal
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from dinoswap import rng
from dinoswap.config.configuration import plain
from dinoswap.config.measured import build_metrics
from dinoswap.data.images import CorruptImage, Images, Pixels
from dinoswap.distributed import is_main, on_main, together
from dinoswap.distributed.group import process_group
from dinoswap.distributed.preemption import Preemption, StopAsked
from dinoswap.evaluation import features
from dinoswap.evaluation.features import EvalImages, extract
from dinoswap.metric.base import Part
from dinoswap.metric.linear_sgd import LinearSgd
from dinoswap.metric.neighbours import knn_accuracy
from dinoswap.metric.penalty_grid import linear_probe
from dinoswap.run.assemble import build_run
from dinoswap.run.loop import Run
from dinoswap.run.metrics import RunRecord
from ranks import launched
from small_models import composed

SETTINGS = [
    *("recipe=smoke", "trainer.precision=fp32", "tracker=none", "trainer.device=cpu"),
    *(
        "evaluation.images=43",
        "evaluation.in_loop_images=27",
        "evaluation.batch_size=8",
        "objectives.koleo.gather=true",
    ),
]
OF_SCENES = [
    "metric=[correspondence,segmentation]",
    *("evaluation.metric.correspondence.images=43", "evaluation.metric.segmentation.patches=200"),
    *("evaluation.dense.train=11", "evaluation.dense.test=9"),  # two batches, of 8 and of what is left
]
BROKEN = 3
"""Which of the evaluated test images cannot be decoded."""
TIMEOUT_MINUTES, LONGER = 0.25, 20.0  # seconds


def small(spread: str, workers: int, folder: Path) -> Run:
    cfg = plain(composed([*SETTINGS, f"distributed={spread}", f"data.workers={workers}"]))
    return build_run(cfg, folder, lambda: RunRecord(folder / "run.json", "", "", 0, {}, []))


def without(images: Images, row: int, loads: list[int]) -> Callable[[int], Pixels]:
    """What loads `images`, but for `row`, and notes what it loads."""
    load = images.load

    def loaded(number: int) -> Pixels:
        loads.append(number)
        if number == row:
            raise CorruptImage(str(number), "no bytes")
        return load(number)

    return loaded


def evaluations(spread: str, workers: int, folder: Path) -> dict[str, Any]:
    """Metrics of both, warning, what is in the pictures, and which test images this process decodes."""
    run, loads = small(spread, workers, folder), list[int]()
    model, hyper = run.trainer.model, run.trainer.schedules.at(0)
    test = run.evaluator.test
    assert test is not None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(features, "IN_PROCESS", 0)
        patch.setattr(test, "load", without(test, int(rng.fixed_subset(len(test), 43)[BROKEN]), loads))
        final = run.evaluator.final(model.teacher["backbone"], run.random_init)
        decoded = list(loads)
        quick = [run.evaluator.in_loop(model, hyper, run.dataset[0]).metrics for _ in range(2)]
        corrupt = run.evaluator._quick.test.corrupt
        run.evaluator.metrics = build_metrics(plain(composed([*SETTINGS, *OF_SCENES])))
        scenes = run.evaluator.final(model.teacher["backbone"], run.random_init)
    assert quick[0] == quick[1]
    return {
        "final": final.metrics,
        "quick": quick[0],
        "warning": final.warning,
        "examples": final.examples,
        "decoded": decoded,
        "corrupt": corrupt,
        "scenes": scenes.metrics,
        "picture": torch.tensor(scenes.pictures["segmentation"].tolist()),
    }


def left_by_a_signal_to_one(folder: Path, rank: int) -> tuple[bool, int]:
    """Whether rank 1, which gets it in its first batch, and rank 0 leave; and how many batches this one has read."""
    images = small("ddp", 0, folder).evaluator.train
    read: list[int] = []

    def reader(pixels: torch.Tensor) -> dict[str, torch.Tensor]:
        read.append(len(pixels))
        if rank == 1:
            os.kill(os.getpid(), signal.SIGUSR1)
        return {"mean": pixels.float().mean((1, 2, 3))[:, None]}

    with Preemption() as preemption:
        try:
            extract(EvalImages(images, 32, limit=64, batch_size=8), {"mean": reader}, preemption)
        except StopAsked:
            return True, len(read)
    return False, len(read)


def of_fewer_images_than_ranks(folder: Path) -> dict[str, Any]:
    """What each rank has of three images, which make one batch, and which part of it is its own."""
    images = small("ddp", 0, folder).evaluator.train
    reader = {"pixels": lambda pixels: {"first": pixels[:, :, 0, 0].float()}}
    found = extract(EvalImages(images, 32, limit=3, batch_size=8), reader)
    return {"of_all": found.of_all("pixels", "first"), "here": len(found.features["pixels"]["first"])}


def shared_work() -> dict[str, Mapping[str, float]]:
    """Accuracies on features that hardly tell classes apart, so that a neighbour more or less decides."""
    generator = torch.Generator().manual_seed(0)
    labels = [torch.randint(0, 9, (count,), generator=generator) for count in (301, 111)]
    train, test = (torch.randn(len(part), 16, generator=generator) + 0.5 * (part[:, None] % 4) for part in labels)
    split = train, labels[0], test, labels[1]
    parts = [Part({"cls": split[n][:, :9], "patch_mean": split[n][:, 9:]}, split[n + 1]) for n in (0, 2)]
    sgd = LinearSgd(in_loop=False, epochs=4, batch_size=32, learning_rates=(0.01, 0.1, 1.0))
    return {
        "knn": knn_accuracy(*split, chunk=8, block=70),
        "linear": linear_probe(*split),
        "linear_sgd": sgd.measure(*parts),
    }


def waited_for(seconds: float) -> list[str]:
    """What a rank hears of work that takes longer than the timeout."""
    alone = on_main(lambda: (time.sleep(seconds if is_main() else 0), "fitted")[1])
    each = together(lambda: (time.sleep(0 if is_main() else seconds), "built")[1])
    return [alone, each]


def everything(folder: Path, rank: int) -> dict[str, Any]:
    with process_group(TIMEOUT_MINUTES):
        found: dict[str, Any] = {
            "ddp": evaluations("ddp", 0, folder),
            "fsdp2": evaluations("fsdp2", 2, folder),
            "shared": shared_work(),
            "few": of_fewer_images_than_ranks(folder),
            "left": left_by_a_signal_to_one(folder, rank),
            "waited": waited_for(LONGER),
        }
    return found


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    found = evaluations("none", 0, tmp_path_factory.mktemp("alone"))
    torch.set_num_threads(threads)
    return found


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("ranks")
    return launched(partial(everything, folder), folder, seconds=400)


@pytest.mark.parametrize("spread", ["ddp", "fsdp2"])
def test_metrics_are_those_of_one_process(spread: str, ranks: list[dict[str, Any]], alone: dict[str, Any]) -> None:
    """To the last bit, but for what is measured on the step's batch: its targets are summed in another order."""
    for found in (rank[spread] for rank in ranks):
        assert found["final"] == alone["final"]
        assert found["warning"] == alone["warning"]
        assert torch.equal(found["examples"], alone["examples"])
        assert found["scenes"] == alone["scenes"]
        assert {"eval/correspondence", "baseline/random_init/seg_knn_miou"} <= set(alone["scenes"])
        assert torch.equal(found["picture"], alone["picture"])
        assert found["corrupt"] == alone["corrupt"]
        assert list(alone["corrupt"].values()) == ["no bytes"]
        of_features = {name for name in alone["quick"] if name.count("/") == 1}
        assert len(of_features) >= 6
        assert {name: found["quick"][name] for name in of_features} == {n: alone["quick"][n] for n in of_features}
        assert found["quick"] == pytest.approx(alone["quick"], rel=1e-4)
    assert ranks[0][spread]["quick"] == ranks[1][spread]["quick"]


def test_each_image_is_decoded_by_one_rank(ranks: list[dict[str, Any]], alone: dict[str, Any]) -> None:
    """The first one decodes those of the picture again; with data workers none decodes any other."""
    first, other = (rank["ddp"]["decoded"] for rank in ranks)
    shown = 8
    assert sorted([*first[:-shown], *other]) == sorted(alone["decoded"][:-shown])
    assert [len(first) - shown, len(other)] == [24, 19]
    assert [len(rank["fsdp2"]["decoded"]) for rank in ranks] == [shown, 0]


def test_ranks_that_share_the_work_find_what_one_does(ranks: list[dict[str, Any]]) -> None:
    assert [rank["shared"] for rank in ranks] == [shared_work()] * 2


def test_a_rank_without_images_gets_the_features_of_all(ranks: list[dict[str, Any]]) -> None:
    assert [rank["few"]["here"] for rank in ranks] == [3, 0]
    assert ranks[0]["few"]["of_all"].shape == (3, 3)
    assert torch.equal(ranks[0]["few"]["of_all"], ranks[1]["few"]["of_all"])


def test_a_signal_to_one_rank_leaves_on_both_after_the_batch(ranks: list[dict[str, Any]]) -> None:
    assert [rank["left"] for rank in ranks] == [(True, 1), (True, 1)]


def test_a_rank_that_works_is_waited_for(ranks: list[dict[str, Any]]) -> None:
    """Longer than any collective waits."""
    assert LONGER > 60 * TIMEOUT_MINUTES
    assert [rank["waited"] for rank in ranks] == [["fitted", "built"]] * 2
